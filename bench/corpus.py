"""The corpus of odd requests against this gateway and against nginx, in front of the same engine.

Prints a table of the cases in which the two answer differently, and how many engine requests each
let through. Needs nginx on the PATH (Debian: apt-get install nginx); the tests do not.

    .venv/bin/python -m bench.corpus [--all]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.gateway import free_port, wait_for
from tests.http.corpus.cases import Case, cases
from tests.http.corpus.wire import converse

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  client_max_body_size 32m;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{engine}; proxy_http_version 1.1; proxy_set_header Connection "";
    }}
  }}
}}
"""
AFTER = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
MODEL = "m"


@contextmanager
def started(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def requests_of(engine: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{engine}/stats", timeout=5) as answer:
        return int(json.load(answer)["requests"])


async def tried(port: int, engine: int, case: Case) -> tuple[str, int]:
    """What a server answers, and how many requests it let through."""
    before = requests_of(engine)
    then = AFTER if case.open else b""
    heard = await converse(port, case.data, wanted=len(case.answers), then=then)
    said = " ".join(map(str, heard.statuses[: len(case.answers)])) or "closed"
    if heard.trouble == "the connection stays open and nothing comes":
        said += " (stays open)"
    return said, requests_of(engine) - before


async def compare(ours: int, nginx: int, engine: int, *, shows_all: bool) -> None:
    print("| case | wanted | Modelyard | nginx | to the engine | why |\n|---|---|---|---|---|---|")
    agreed = different = 0
    passed = [0, 0]
    for case in cases():
        said, through = await tried(ours, engine, case)
        theirs, theirs_through = await tried(nginx, engine, case)
        passed[0] += through
        passed[1] += theirs_through
        agreed += said == theirs
        different += said != theirs
        if said != theirs or shows_all:
            wanted = " ".join(map(str, case.answers))
            counts = f"{through} / {theirs_through}"
            print(f"| {case.name} | {wanted} | {said} | {theirs} | {counts} | {case.why} |")
    print(f"\n{agreed} answered alike, {different} differently;", end=" ")
    print(f"to the engine {passed[0]} by Modelyard, {passed[1]} by nginx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--all", action="store_true", help="show cases answered alike, too")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine, ours, nginx = free_port(), free_port(), free_port()
        command = [sys.executable, "-m", "modelyard.testing.fake_engine", "--model", MODEL]
        model = {
            "engine": "command",
            "command": [*command, "--port", "{port}", "--tokens", "2"],
            "tasks": ["chat"],
            "options": {"port": engine},
            "memory": "1MiB",
            "preload": True,
        }
        config = {
            "server": {"port": ours, "state_dir": str(folder)},
            "models": {MODEL: model, "n": {**model, "options": {}, "preload": False}},
        }
        file = folder / "modelyard.yaml"
        file.write_text(json.dumps(config))
        binary = str(Path(sys.executable).with_name("modelyard"))
        stack.enter_context(started([binary, "serve", "--config", str(file)]))
        conf = folder / "nginx.conf"
        conf.write_text(NGINX.format(folder=folder, engine=engine, port=nginx))
        stack.enter_context(started(["nginx", "-c", str(conf), "-p", str(folder)]))
        wait_for(ours)
        wait_for(engine)
        wait_for(nginx)
        asyncio.run(compare(ours, nginx, engine, shows_all=args.all))


if __name__ == "__main__":
    main()
