"""Runs one model file in the real llama.cpp server, in a process of its own.

Laws of this file:
* `python -m training.engine FILE KIND PORT` serves until it is killed; KIND is chat, embed or
  rerank.
* `serving(...)` yields the base URL once the server is healthy, and always ends the process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_SECONDS = 60.0
CONTEXT = 512
REPOSITORY = Path(__file__).resolve().parent.parent


def serve(file: str, kind: str, port: int) -> None:
    """Loads the file and serves it for ever."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_ctx = CONTEXT
    parameters.n_parallel = 1
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = 1
    parameters.use_jinja = True
    if kind != "chat":
        parameters.embedding = True
        parameters.n_ubatch = CONTEXT
    if kind == "rerank":
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    server = xllamacpp.Server(parameters)
    while server is not None:
        time.sleep(3600)


def post(url: str, body: dict[str, Any]) -> Any:
    """The JSON answer to a JSON request."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the engine ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise TimeoutError("the engine did not become healthy")


@contextmanager
def serving(file: Path, kind: str) -> Iterator[str]:
    """Serves the file while the block runs."""
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "training.engine", str(file), kind, str(port)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(url, process)
        yield url
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
