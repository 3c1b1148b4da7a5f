"""An engine that sends exactly the bytes that the request asks for, and nothing else.

A request's `wire` says them: a list of parts, each written by itself, then how the connection ends.
Parts are text whose characters are bytes (latin-1). Standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            lines = dict(line.partition(": ")[::2] for line in head.split("\r\n")[1:])
            body = await reader.readexactly(int(lines.get("content-length", "0")))
            if not head.startswith("post"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                continue
            wire = json.loads(body)["wire"]
            for part in wire["parts"]:
                writer.write(part.encode("latin-1"))
                await writer.drain()
                await asyncio.sleep(0.005)
            if wire["end"] == "close":
                return
            if wire["end"] == "reset":
                writer.transport.abort()
                return
            if wire["end"] == "silence":
                await asyncio.Event().wait()
    except (ConnectionError, asyncio.IncompleteReadError):
        return
    finally:
        writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    server = await asyncio.start_server(serve, "127.0.0.1", parser.parse_args().port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
