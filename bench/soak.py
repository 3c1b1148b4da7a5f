"""Mixed load for half an hour: does everything that was taken come back?

One process is the server (all of it, as `modelyard serve` runs it), one the clients: JSON answers,
streams, embeddings, wrong requests, clients that leave at once and in the middle, slow readers; an
engine is killed now and then. Before and after, what the server holds is counted: descriptors,
tasks, leases, connections, memory.

    .venv/bin/python -m bench.soak --minutes 30 [--kill-every 20]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import uvloop

from modelyard.config import Config, Devices
from modelyard.core.specs import Task
from modelyard.testing.server import Running, fake_model, running

WORKERS = 24
MODEL_MIB = 35
ROOM_MIB = 3 * MODEL_MIB + 10
"""For three of the four models: they take turns."""
SETTLE_S = 5.0


# ------------------------------------------------------------------------------------------ clients


async def ask(port: int, chance: random.Random, counts: Counter[str]) -> None:
    """One request of some kind."""
    kind = chance.choices(
        ["json", "stream", "leave", "abort", "slow", "embed", "wrong"], [30, 25, 10, 10, 2, 15, 8]
    )[0]
    model = chance.choices(["one", "two", "three"], [10, 3, 1])[0]
    text = f"{chance.getrandbits(64):x}"
    asked: dict[str, object] = {
        "model": "vectors" if kind == "embed" else model,
        "messages": [{"role": "user", "content": text}],
        "input": text,
        "max_tokens": 200 if kind in ("abort", "slow") else chance.choice([2, 20, 60]),
        "stream": kind in ("stream", "abort", "slow"),
    }
    if kind == "wrong":
        asked["model"] = "nobody"
    path = "/v1/embeddings" if kind == "embed" else "/v1/chat/completions"
    body = json.dumps(asked).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        if kind == "leave":
            await asyncio.sleep(chance.choice([0, 0.001, 0.02]))
            writer.transport.abort()
        elif kind == "abort":
            await reader.read(chance.choice([1, 200, 3000]))
            writer.transport.abort()
        elif kind == "slow":
            while await reader.read(500):  # noqa: ASYNC110  # it reads slowly, it does not wait
                await asyncio.sleep(0.01)
        else:
            answer = await reader.read()
            counts[f"{kind} {answer[9:12].decode() or 'closed'}"] += 1
            if answer[9:10] == b"5":
                said = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
                counts[f"{said['code']}: {said['message'][:160]}"] += 1
            whole = answer.endswith((b"}", b"0\r\n\r\n"))
            counts["cut"] += not whole
            return
        counts[kind] += 1
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def worker(port: int, until: float, seed: int, counts: Counter[str]) -> None:
    chance = random.Random(seed)
    while time.monotonic() < until:
        try:
            async with asyncio.timeout(60):
                await ask(port, chance, counts)
        except TimeoutError:
            counts["no answer in 60 s"] += 1
        except OSError as error:
            counts[type(error).__name__] += 1
        await asyncio.sleep(0.01)


async def load(port: int, minutes: float) -> None:
    counts: Counter[str] = Counter()
    until = time.monotonic() + minutes * 60
    await asyncio.gather(*(worker(port, until, seed, counts) for seed in range(WORKERS)))
    print("clients:", dict(sorted(counts.items())), flush=True)


# ------------------------------------------------------------------------------------------- server


def held(server: Running) -> dict[str, float]:
    """What the server holds now."""
    gc.collect()
    process, loop = psutil.Process(os.getpid()), server.yard.loop
    slots = loop.scheduler.models.values()
    return {
        "MiB": round(process.memory_info().rss / 2**20, 1),
        "descriptors": process.num_fds(),
        "tasks": len(asyncio.all_tasks()),
        "connections": len(server.yard.gateway.connections),
        "exchanges": len(server.yard.gateway.active),
        "leases": sum(slot.in_flight for slot in slots),
        "waiting": loop.waiting,
        "engines": len(loop.runs),
    }


async def kill_engines(server: Running, every_s: float) -> None:
    chance = random.Random(3)
    while True:
        await asyncio.sleep(every_s)
        pids = [run.pid for run in server.yard.loop.runs.values() if run.pid is not None]
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(pids), signal.SIGKILL)


async def run_load(port: int, minutes: float) -> None:
    argv = [sys.executable, __file__, "--port", str(port), "--minutes", str(minutes)]
    clients = await asyncio.create_subprocess_exec(*argv)
    await clients.wait()


async def soak(minutes: float, kill_every_s: float) -> None:
    chatting = [
        fake_model(name, "--tokens", "30", "--tps", "400", mib=MODEL_MIB)
        for name in ("one", "two", "three")
    ]
    vectors = fake_model(
        "vectors", "--tasks", "embedding", tasks=frozenset({Task.EMBEDDING}), mib=MODEL_MIB
    )
    config = Config(models=(*chatting, vectors), devices=Devices(budget_mib={"cpu": ROOM_MIB}))
    with tempfile.TemporaryDirectory() as folder:
        async with running(config, Path(folder)) as server:
            await run_load(server.port, 0.5)  # what is kept for good is taken in the beginning
            await asyncio.sleep(SETTLE_S)
            print("begin:", held(server), flush=True)
            killing = asyncio.create_task(kill_engines(server, kill_every_s), name="kill engines")
            for part in range(5):
                await run_load(server.port, minutes / 5)
                print(f"part {part + 1}:", held(server), flush=True)
            killing.cancel()
            await asyncio.sleep(SETTLE_S)
            print("end:", held(server), flush=True)
            records = server.yard.gateway.records
            answered, loads = server.yard.gateway.answered, server.yard.loop.loads
            print(f"answered {answered}, loads {loads}, records dropped {records.dropped}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kill-every", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--port", type=int, help="be the clients of the server there")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    if args.port:
        uvloop.run(load(args.port, args.minutes))
    else:
        uvloop.run(soak(args.minutes, args.kill_every))


if __name__ == "__main__":
    main()
