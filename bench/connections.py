"""10 000 idle connections and 3 000 streams at once, in one server process.

Opens the connections (each asks once and is kept), then the streams, all at once and paced by the
engine; all must end whole. Fairness is how far the streams' durations lie apart: they are all paced
alike, so a server that is fair lets them all end at about the same time.

    .venv/bin/python -m bench.connections [--idle 10000] [--streams 3000] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import uvloop
from bench.corpus import started
from bench.gateway import free_port, wait_for

from modelyard.runtime import descriptors

CHUNKS = 30
PAUSE_MS = 400
AT_ONCE = 200
"""Connections that are being opened at a time."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def idle(port: int, gate: asyncio.Semaphore) -> Streams:
    """A connection that has asked once and is kept."""
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await ping(reader, writer)
        return reader, writer


async def ping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"the server answered {head[:60]!r}")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    await reader.readexactly(length)


async def stream(port: int) -> tuple[float, float]:
    """One stream: seconds to its first chunk and to its end. SystemExit if it is not whole."""
    asked = {
        "model": "bench",
        "messages": [],
        "stream": True,
        "chunks": CHUNKS,
        "pause_ms": PAUSE_MS,
    }
    body = json.dumps(asked, separators=(",", ":")).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    first = await reader.readuntil(b"data: ")
    first_s = time.monotonic() - begun
    rest = await reader.read(-1)
    writer.close()
    if not first.startswith(b"HTTP/1.1 200") or rest.count(b'" token"') != CHUNKS:
        raise SystemExit(f"a stream is not whole: {first[:40]!r} {rest[-80:]!r}")
    if not rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        raise SystemExit(f"a stream has no end: {rest[-80:]!r}")
    return first_s, time.monotonic() - begun


async def measure(
    port: int, server: psutil.Process, wanted: argparse.Namespace
) -> dict[str, float]:
    def mib() -> float:
        return round(server.memory_info().rss / 2**20, 1)

    empty_mib = mib()
    gate = asyncio.Semaphore(AT_ONCE)
    kept = await asyncio.gather(*(idle(port, gate) for _ in range(wanted.idle)))
    idle_mib = mib()
    before_s = sum(server.cpu_times()[:2])
    await asyncio.sleep(5)
    idle_cpu = (sum(server.cpu_times()[:2]) - before_s) / 5
    before_s = sum(server.cpu_times()[:2])
    times = await asyncio.gather(*(stream(port) for _ in range(wanted.streams)))
    stream_cpu_s = sum(server.cpu_times()[:2]) - before_s
    streams_mib = mib()
    for reader, writer in kept:  # all of them are still there
        await ping(reader, writer)
    firsts, wholes = sorted(first for first, _ in times), sorted(whole for _, whole in times)
    paced_s = CHUNKS * PAUSE_MS / 1000
    return {
        "idle": wanted.idle,
        "streams": wanted.streams,
        "empty MiB": empty_mib,
        "idle MiB": idle_mib,
        "KiB per idle connection": round((idle_mib - empty_mib) * 1024 / wanted.idle, 1),
        "CPU share of idle connections": round(idle_cpu, 4),
        "MiB with streams": streams_mib,
        "CPU us per chunk": round(stream_cpu_s / wanted.streams / CHUNKS * 1e6, 1),
        "paced s": paced_s,
        "shortest s": round(wholes[0], 2),
        "median s": round(statistics.median(wholes), 2),
        "longest s": round(wholes[-1], 2),
        "longest to first chunk s": round(firsts[-1], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--streams", type=int, default=3_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    needed, limit = 2 * args.streams + args.idle + 200, descriptors.raise_limit()
    if limit < needed:
        raise SystemExit(f"{needed} open files are needed, and {limit} are allowed (ulimit -Hn)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port, engine = free_port(), free_port()
        backend = [sys.executable, str(Path(__file__).with_name("backend.py")), "--port", "{port}"]
        model = {
            "engine": "command",
            "command": backend,
            "tasks": ["chat"],
            "options": {"port": engine},
            "memory": "1MiB",
            "preload": True,
        }
        server = {"port": port, "state_dir": str(folder), "keep_alive": "1h"}
        file = folder / "modelyard.yaml"
        file.write_text(json.dumps({"server": server, "models": {"bench": model}}))
        binary = str(Path(sys.executable).with_name("modelyard"))
        process = stack.enter_context(started([binary, "serve", "--config", str(file)]))
        wait_for(port)
        wait_for(engine)
        figures = uvloop.run(measure(port, psutil.Process(process.pid), args))
    if args.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value}")


if __name__ == "__main__":
    main()
