"""How full an engine says that it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from modelyard.core.specs import Endpoint
from modelyard.runtime.vitals import Gauges, gauges_in, read_gauges
from modelyard.testing.fake_vllm_answers import Scheduler

LLAMA_CPP = b"""# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 4
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 3
"""
OLD_VLLM = b"""vllm:num_requests_waiting{engine="0",model_name="a b"} 1.0
vllm:num_requests_waiting{engine="1",model_name="a b"} 2.0
vllm:gpu_cache_usage_perc{engine="0",model_name="a b"} 0.25
vllm:gpu_cache_usage_perc{engine="1",model_name="a b"} 0.75
"""


@pytest.mark.parametrize(
    ("text", "gauges"),
    [
        (LLAMA_CPP, Gauges(None, 3)),
        (OLD_VLLM, Gauges(0.75, 3)),
        (b"modelyard_reader_inputs_waiting 7\n", Gauges(None, 7)),
        (b"llamacpp:kv_cache_usage_ratio 0.5\nllamacpp:requests_def", Gauges(0.5, 0)),
        (b"something_else 5\n", None),
        (b"", None),
        (b"\xff\x00{\n}} 1\nvllm:num_requests_waiting\nvllm:num_requests_waiting nan\n", None),
        (b"vllm:num_requests_waiting -1\nvllm:num_requests_waiting inf\n", None),
    ],
)
def test_gauges_are_found_by_their_names_whatever_else_is_told(
    text: bytes, gauges: Gauges | None
) -> None:
    assert gauges_in(text) == gauges


def test_the_names_are_those_of_a_present_vllm() -> None:
    scheduler = Scheduler()
    with scheduler.ticket(), scheduler.ticket() as begun:
        begun.scheduled = True

        assert gauges_in(scheduler.metrics("a", 0).encode()) == Gauges(0.01, 1)


@asynccontextmanager
async def answering(answer: Callable[[], bytes]) -> AsyncIterator[Endpoint]:
    """An engine that answers anything with this."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])


async def test_an_engine_is_asked_and_believed() -> None:
    body = LLAMA_CPP
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with answering(lambda: head + body) as endpoint:
        assert await read_gauges(endpoint) == Gauges(None, 3)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n", b"no HTTP\r\n\r\n", b""],
)
async def test_an_engine_that_does_not_tell_is_not_full(answer: bytes) -> None:
    async with answering(lambda: answer) as endpoint:
        assert await read_gauges(endpoint) is None
