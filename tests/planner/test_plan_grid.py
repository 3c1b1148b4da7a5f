"""The planner's advice, tried on a grid of made-up cards for one model of each architecture.

The engine is the fake vLLM's, which keeps the accounts in books; it runs in this process, so that
a start takes milliseconds. `test_plan_vllm` starts whole servers.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.planner.large_models import Shape, folder
from tests.planner.machines import found_at, machine
from tests.planner.test_plan_vllm import MLA, fake_terms

from modelyard.config.plans import Ask
from modelyard.planner.layout import Reckoning
from modelyard.planner.plan import fallbacks, make_plan, view_of
from modelyard.testing.fake_books import FOLDER_VARIABLE, Book
from modelyard.testing.fake_page import OutOfMemory
from modelyard.testing.fake_vllm_core import EngineCore
from modelyard.testing.fake_vllm_options import arguments

CONTEXT = 32768
HOST_MIB = 64 * 1024
SIZES = tuple(round(640 * 1.4**step) for step in range(9))
"""From 0.6 to 9.2 GiB: from cards that hold nothing to cards that hold everything."""
_WIDE = Shape(16, 2048, 5632, 16, 4, words=32000, context=CONTEXT, head=128)
KINDS: Mapping[str, tuple[Shape, Mapping[str, object]]] = {
    "MHA": (Shape(16, 2048, 5632, 16, 16, words=32000, context=CONTEXT, head=128), {}),
    "GQA": (_WIDE, {}),
    "MQA": (Shape(16, 2048, 5632, 16, 1, words=32000, context=CONTEXT, head=128), {}),
    "MLA": (_WIDE, MLA),
    "window": (_WIDE, {"model_type": "mistral", "sliding_window": 4096}),
    "window and all": (_WIDE, {"model_type": "gemma3_text", "sliding_window": 1024}),
    "state and heads": (
        _WIDE,
        {
            "model_type": "qwen3_next",
            "linear_num_key_heads": 8,
            "linear_num_value_heads": 16,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
        },
    ),
}


def starts(place: Path, mib: int, words: list[str], like: Reckoning, share: float | None) -> bool:
    """Whether the engine loads, with this share of a card of `mib`."""
    book = Book.create(place, [f"{mib}MiB"])
    at = words.index("--max-model-len")
    tokens = like.layout.context * like.layout.sequences
    words = [*words[: at + 1], str(tokens), *words[at + 2 :]]
    if share is not None:
        words[words.index("--gpu-memory-utilization") + 1] = f"{share:.4f}"
    args = arguments([*words[1:], *fake_terms(like, 1)], {})
    try:
        EngineCore(SimpleNamespace(**vars(args)), book, "").answer({"op": "load"})
    except (ValueError, OutOfMemory):
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_planner_says_fits_starts_and_what_does_not_does_not(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, extra = KINDS[kind]
    found = found_at(folder(tmp_path / "model", shape, extra))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    said: dict[bool, int] = {True: 0, False: 0}
    for mib in SIZES:
        plan = make_plan(found, machine(mib, host=HOST_MIB), Ask(engine="vllm", context=CONTEXT))
        reckoned = plan.chosen.reckoning
        words = shlex.split(view_of(plan).commands[0])
        said[plan.fits] += 1
        if plan.fits:
            assert starts(tmp_path / f"{mib}", mib, words, reckoned, None), (mib, words)
            continue
        # Neither the advice nor any larger share of the card is enough.
        outside = reckoned.loads[0].needs_mib - int((reckoned.utilisation or 0) * mib)
        most = math.floor(max(0.0, mib - outside) / mib * 10000) / 10000
        for share in {min(1.0, reckoned.utilisation or 1.0), max(0.01, most), 1.0}:
            place = tmp_path / f"{mib}-{share}"
            assert not starts(place, mib, words, reckoned, share), (mib, share, words)
    assert min(said.values()) >= 1, said
    assert fallbacks(plan)
