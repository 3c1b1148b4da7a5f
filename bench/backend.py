"""The engine of the benchmarks: answers at once, and costs as little as Python can.

A POST whose body says `"stream":true` gets an event stream of `"chunks":N` chunks, one write each
and `"pause_ms":N` apart, so that a proxy meets every chunk by itself; 64 and 1 where it does not
say. Any other gets one JSON answer of about 700 bytes, the size of a short chat completion. `GET
/chunks` tells how many chunks were written.

    python bench/backend.py --port 9001
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
from typing import cast

import httptools
import uvloop

TEXT = "The quick brown fox jumps over the lazy dog. " * 8
ANSWER = (
    '{"id":"chatcmpl-1","object":"chat.completion","created":1763000000,"model":"bench","choices":'
    f'[{{"index":0,"message":{{"role":"assistant","content":"{TEXT}"}},"finish_reason":"stop"}}],'
    '"usage":{"prompt_tokens":100,"completion_tokens":80,"total_tokens":180}}'
).encode()
JSON_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
)
CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1763000000,"model":'
    b'"bench","choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}\n\n'
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
FRAME = b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
LAST = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


CHUNKS = re.compile(rb'"chunks":(\d+)')
PAUSE_MS = re.compile(rb'"pause_ms":(\d+)')


class Engine(asyncio.Protocol):
    """One connection."""

    pause_s = 0.001
    url = b""
    written = 0
    """Chunks, on all connections."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        body, self.body = self.body, b""
        if b'"stream":true' in body:
            chunks, pause_ms = CHUNKS.search(body), PAUSE_MS.search(body)
            self.pause_s = int(pause_ms[1]) / 1000 if pause_ms else 0.001
            self.transport.write(STREAM_HEAD)
            self.send(int(chunks[1]) if chunks else 64)
        elif self.url == b"/chunks":
            count = b"%d" % Engine.written
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(count) + count
            )
        else:
            self.transport.write(JSON_HEAD + ANSWER)

    def send(self, left: int) -> None:
        if self.transport.is_closing():
            return
        if not left:
            self.transport.write(LAST)
            return
        self.transport.write(FRAME)
        Engine.written += 1
        asyncio.get_running_loop().call_later(self.pause_s, self.send, left - 1)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--core", type=int, help="run on this core alone")
    args = parser.parse_args()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", args.port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
