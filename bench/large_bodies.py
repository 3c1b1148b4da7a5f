"""How long a large request holds up everybody else.

A server on uvloop, and in the same loop a probe that wants to be called every millisecond: what it
is called too late is what any stream would have waited. On a machine that others use, too, the
system adds waits of its own, so the CPU time that the loop took between two calls is told as well.
A client process sends bodies of 20 MB, one after the other; the engine is a process of its own.

    PYTHONPATH=build/compiled .venv/bin/python -m bench.large_bodies [--mb 20] [--times 10]

as users have it; `make compiled` builds that. Without PYTHONPATH the sources are measured, which
look at a body at once.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import uvloop

from modelyard.config import Config, Devices
from modelyard.core.specs import Limits, ModelSpec, Task
from modelyard.testing.server import running

EVERY_S = 0.001


class Probe:
    """Notes how much too late the loop calls it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._late_ms: list[float] = []
        self._busy_ms: list[float] = []
        self._due, self._cpu_s = time.monotonic(), time.thread_time()
        self._again()

    def _again(self) -> None:
        now, cpu_s = time.monotonic(), time.thread_time()
        self._late_ms.append(max(0.0, now - self._due) * 1000)
        self._busy_ms.append((cpu_s - self._cpu_s) * 1000)
        self._due, self._cpu_s = now + EVERY_S, cpu_s
        self._loop.call_later(EVERY_S, self._again)

    def taken(self) -> str:
        """What was noted since the last call."""
        late, busy = max(self._late_ms), max(self._busy_ms)
        self._late_ms, self._busy_ms = [], []
        return f"longest delay {late:.1f} ms, longest CPU time in one go {busy:.1f} ms"


def body(kind: str, megabytes: int, stream: bool) -> bytes:
    size = megabytes * 1_000_000
    if kind == "image":
        content: object = [{"type": "image_url", "image_url": {"url": "x" * size}}]
    elif kind == "text":
        content = 'word \\n"quoted" ' * (size // 20)
    elif kind == "parts":
        content = [{"type": "text", "text": "abc"}] * (size // 33)
    elif kind == "ids":  # of tokens
        content = [list(range(1000, 3000))] * (size // 12_000)
    else:
        content = [[[]]] * (size // 6)
    asked = {"model": "bench", "stream": stream, "messages": [{"role": "user", "content": content}]}
    return json.dumps(asked).encode()


def send(port: int, megabytes: int, times: int) -> None:
    """The client process."""
    for kind in ("image", "text", "parts", "ids", "nested"):
        for stream in (False, True):
            data = body(kind, megabytes, stream)
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            for _ in range(times):
                with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as said:
                    said.read()
            print(f"{kind}, {'stream' if stream else 'json'}", flush=True)
            sys.stdin.readline()  # until it has been noted


async def measure(megabytes: int, times: int) -> None:
    backend = Path(__file__).with_name("backend.py")
    model = ModelSpec(
        "bench",
        "command",
        frozenset({Task.CHAT}),
        command=(sys.executable, str(backend), "--port", "{port}"),
        estimate_mib=10,
        limits=Limits(),
        preload=True,
    )
    config = Config(models=(model,), devices=Devices(budget_mib={"cpu": 1000}))
    with tempfile.TemporaryDirectory() as folder:
        async with running(config, Path(folder), max_body_bytes=64 * 2**20) as server:
            await asyncio.sleep(2)
            gc.collect()
            gc.freeze()  # as `serve` does
            probe = Probe()
            await asyncio.sleep(2)
            print(f"nothing sent: {probe.taken()}")
            argv = [__file__, "--port", str(server.port), "--mb", str(megabytes)]
            client = await asyncio.create_subprocess_exec(
                sys.executable, *argv, "--times", str(times),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert client.stdin is not None, "piped"
            assert client.stdout is not None, "piped"
            while line := await client.stdout.readline():
                print(f"{line.decode().strip()}: {probe.taken()}", flush=True)
                client.stdin.write(b"\n")
            await client.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mb", type=int, default=20)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--port", type=int, help="be the client of the server there")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    if args.port:
        send(args.port, args.mb, args.times)
    else:
        uvloop.run(measure(args.mb, args.times))


if __name__ == "__main__":
    main()
