"""How long a server takes to listen, what it weighs, and how soon a cold model's first token comes.

Each figure is the median of several fresh starts: wall time from exec to the first answer of
/health, resident memory of the server (and of its guard) without any model, and wall time of a
streamed chat from the request to the first token while the model's engine is not running.

    python bench/startup.py [--json] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.resources import files
from pathlib import Path

import psutil

from modelyard.runtime.readiness import free_port

MODELS = Path(str(files("modelyard"))) / "demo_models"
QUESTION = {"role": "user", "content": "Hello"}


def once(folder: Path) -> dict[str, float]:
    """One server: started, measured, asked, ended."""
    port = free_port()
    argv = [str(Path(sys.executable).with_name("modelyard")), "serve", "--models-dir", str(MODELS)]
    env = {**os.environ, "MODELYARD_SERVER__STATE_DIR": str(folder)}
    begun = time.perf_counter()
    server = subprocess.Popen(
        [*argv, "--port", str(port)],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not answers(port):
            if server.poll() is not None:
                raise SystemExit(f"the server ended at once, with exit code {server.returncode}")
            time.sleep(0.005)
        listening_s = time.perf_counter() - begun
        process = psutil.Process(server.pid)
        resident = process.memory_info().rss
        first_token_s = until_first_token(port)
        guards = [child for child in process.children() if "guard.py" in " ".join(child.cmdline())]
        guard = sum(child.memory_info().rss for child in guards)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
    return {
        "listening_s": listening_s,
        "resident_mib": resident / 2**20,
        "guard_mib": guard / 2**20,
        "cold_first_token_s": first_token_s,
    }


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            return True
    except OSError:
        return False


def until_first_token(port: int) -> float:
    body = json.dumps({"model": "yard-chat", "messages": [QUESTION], "stream": True}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", body, {"content-type": "application/json"}
    )
    begun = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        for line in answer:
            if b'"content":"' in line and b'"content":""' not in line:
                return time.perf_counter() - begun
    raise SystemExit("the stream ended without a token")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rounds = [once(Path(folder)) for _ in range(args.rounds)]
    report = {
        key: round(statistics.median(figures[key] for figures in rounds), 3) for key in rounds[0]
    }
    if args.json:
        print(json.dumps(report))
        return
    for key, value in report.items():
        print(f"{key:<20}{value:>9}")


if __name__ == "__main__":
    main()
