"""Our own requests to engines: how an answer ends, and which of its words are quoted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from modelyard.core.specs import Call, Endpoint
from modelyard.runtime.control import ControlFailed, NoAnswer, Unreachable, call
from modelyard.runtime.readiness import free_port

Answering = Callable[[bytes], Awaitable[Endpoint]]
ORDER = Call("POST", "/do", "{}", timeout_s=5.0)


@pytest.fixture
async def answering() -> AsyncIterator[Answering]:
    """`endpoint = await answering(bytes)`: a server that says this and keeps its connections."""
    servers: list[asyncio.Server] = []
    held: list[asyncio.StreamWriter] = []

    async def begin(answer: bytes) -> Endpoint:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            held.append(writer)
            await reader.readuntil(b"\r\n\r\n{}")
            writer.write(answer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        servers.append(server)
        return Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])

    yield begin
    for writer in held:
        writer.close()
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.0 201 Created\r\n\r\nno length",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n" + b"x" * 70_000,
    ],
)
async def test_an_answer_ends_where_it_says_although_the_connection_stays(
    answering: Answering, answer: bytes
) -> None:
    await call(await answering(answer), ORDER)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "no such model", "code": 404}}', "no such model"),
        (b'{"error": "busy"}', "busy"),
        (b'{"object": "error", "message": "too\\n long"}', "too long"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"detail": [{"msg": "field required"}]}', "[{'msg': 'field required'}]"),
        (b'{"what": 1}', '{"what": 1}'),
        (b"[1]", "[1]"),
        (b"plain text", "plain text"),
        (b"\xff", "�"),
        (b"", "and no words"),
        (b"w" * 1000, "w" * 300),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_error_is_quoted_in_the_engines_words(
    answering: Answering, body: bytes, words: str, chunked: bool
) -> None:
    if chunked:
        chunk = b"%x;note=1\r\n%b\r\n" % (len(body), body) if body else b""
        head, body = b"transfer-encoding: Chunked", chunk + b"0\r\n\r\n"
    else:
        head = b"content-length: %d" % len(body)
    endpoint = await answering(b"HTTP/1.1 500 Oops\r\n" + head + b"\r\n\r\n" + body)

    with pytest.raises(ControlFailed) as failed:
        await call(endpoint, ORDER)

    assert str(failed.value) == f"POST /do: status 500: {words}"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"x" * 200_000,
    ],
)
async def test_nonsense_is_a_failure_and_no_crash(answering: Answering, answer: bytes) -> None:
    with pytest.raises(ControlFailed):
        await call(await answering(answer), ORDER)


async def test_silence_and_absence_are_told_apart(answering: Answering) -> None:
    with pytest.raises(NoAnswer, match=r"^POST /do: no answer after 0\.05 s$"):
        await call(await answering(b""), Call("POST", "/do", "{}", 0.05))
    with pytest.raises(Unreachable):
        await call(Endpoint("127.0.0.1", free_port()), ORDER)
