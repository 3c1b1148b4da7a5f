"""Random trouble for the gateway for as long as is asked; what it finds is printed and kept.

Clients send mutations of the corpus, engines answer with mutations of answers, either leaves at any
moment, and engines are killed. After each round nothing may be held for anybody; errors in the log
and exceptions in the loop are findings. See tests/http/fuzzing.py.

    .venv/bin/python -m bench.fuzz_gateway --minutes 20 [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import psutil
import uvloop
from tests.http.fuzzing import Fuzzer
from tests.http.test_hostile_engine import hostile

from modelyard.config import Config, Devices
from modelyard.testing.server import fake_model, running

ROUND = 400


def held() -> str:
    """What this process holds, after everything that can go has gone."""
    gc.collect()
    process = psutil.Process(os.getpid())
    mib = process.memory_info().rss / 2**20
    tasks = len(asyncio.all_tasks())
    return f"{mib:.1f} MiB, {process.num_fds()} descriptors, {tasks} tasks"


async def fuzz(minutes: float, seed: int) -> int:
    config = Config(
        models=(fake_model("m", "--tokens", "20"), hostile("h")),
        devices=Devices(budget_mib={"cpu": 1000}),
    )
    with tempfile.TemporaryDirectory() as folder:
        async with running(
            config, Path(folder), body_timeout_s=1.0, header_timeout_s=1.0, keep_alive_s=3.0
        ) as server:
            until = time.monotonic() + minutes * 60
            clients = rounds = 0
            fuzzer = Fuzzer(server, seed)
            while rounds == 0 or time.monotonic() < until:
                await fuzzer.round(ROUND, kills=True)
                clients += ROUND
                rounds += 1
                if rounds in (1, 5) or rounds % 25 == 0 or fuzzer.found.problems:
                    print(f"{clients} clients, seed {seed}: {held()}", flush=True)
                if fuzzer.found.problems:
                    break
            found = fuzzer.found
            print(f"{clients} clients: {dict(found.tried)}, statuses {dict(found.statuses)}")
            print(f"at the end {held()}, loads {server.yard.loop.loads}")
            for problem in found.problems:
                print("PROBLEM", problem)
            return 1 if found.problems else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    sys.exit(uvloop.run(fuzz(args.minutes, args.seed)))


if __name__ == "__main__":
    main()
