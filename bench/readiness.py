"""How soon an engine is noticed to be ready, and what looking for it costs.

Engines of three kinds load for a random while: one answers 503 meanwhile (llama-server), one does
not listen yet (vLLM), one takes connections and is silent (a loader that blocks its own event
loop). Each tells when it became ready, by the clock that both processes share. `late_ms` is how
much later we knew, `cpu_percent` what we spent of one core on asking. `--calm` measures what comes
after the first ten seconds of a load.

    .venv/bin/python -m bench.readiness [--json] [--rounds 10] [--calm]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time

import uvloop

from modelyard.core.specs import Endpoint
from modelyard.runtime import readiness

KINDS = ("answers", "refuses", "silent")
BIRTH_S = 1.0
"""Longer than the engine's process takes to start, so that only its load is waited for."""


async def engine(kind: str, port: int, load_s: float) -> None:
    """One engine: it prints the moment of its readiness and answers until it is ended."""
    ready = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if kind == "silent":
            await ready.wait()
        await reader.readuntil(b"\r\n\r\n")
        status = 200 if ready.is_set() else 503
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
        writer.close()

    if kind == "refuses":
        await asyncio.sleep(load_s)
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    if kind != "refuses":
        await asyncio.sleep(load_s)
    ready.set()
    print(time.monotonic(), flush=True)
    await server.serve_forever()


async def once(kind: str, load_s: float) -> tuple[float, float]:
    """How late we knew, in ms, and the percentage of a core that waiting took."""
    port = readiness.free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--engine", kind, "--port", str(port), "--load", str(load_s),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        await asyncio.sleep(BIRTH_S)
        began, spent = time.monotonic(), time.process_time()
        await readiness.until_ready(Endpoint("127.0.0.1", port), "/health")
        known, spent = time.monotonic(), time.process_time() - spent
        became = float(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()
    return (known - became) * 1e3, spent / (known - began) * 100


async def measure(rounds: int) -> dict[str, dict[str, float]]:
    report = {}
    for kind in KINDS:
        figures = [await once(kind, BIRTH_S + random.uniform(0.5, 1.0)) for _ in range(rounds)]
        late = sorted(each[0] for each in figures)
        report[kind] = {
            "late_ms": round(statistics.median(late), 1),
            "late_ms_max": round(late[-1], 1),
            "cpu_percent": round(statistics.median(each[1] for each in figures), 2),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calm", action="store_true", help="as after the first ten seconds")
    parser.add_argument("--engine", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        asyncio.run(engine(args.engine, args.port, args.load))
        return
    if args.calm:
        readiness.EAGER_FOR_S = 0.0
    report = uvloop.run(measure(args.rounds))
    if args.json:
        print(json.dumps(report))
        return
    for kind, figures in report.items():
        print(f"{kind:<10}" + "".join(f"{name} {value:<8}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
