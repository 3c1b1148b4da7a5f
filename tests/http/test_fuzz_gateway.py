"""A small part of `bench/fuzz_gateway.py`, with the same seed every time."""

from __future__ import annotations

import pytest
from tests.conftest import Serve
from tests.http.fuzzing import Fuzzer
from tests.http.test_hostile_engine import hostile

from modelyard.testing.server import fake_model

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_random_trouble_breaks_nothing_and_leaves_nothing(serve: Serve) -> None:
    models = fake_model("m", "--tokens", "20"), hostile("h")
    async with serve(*models, body_timeout_s=1.0, header_timeout_s=1.0) as server:
        fuzzer = Fuzzer(server, seed=7)
        await fuzzer.round(240)

    assert fuzzer.found.problems == []
    assert {"http", "json", "engine", "valid"} == set(fuzzer.found.tried)
    assert fuzzer.found.statuses[200] > 0
