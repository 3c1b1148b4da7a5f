"""What a request costs in the gateway, next to nginx doing the same, in the same run.

CPU time (user + system) of the proxy's own processes, divided by the requests that were answered,
or by the stream chunks that the engine wrote meanwhile. The proxy has one core to itself; load
generator and engine share another. The proxies take turns, several rounds each; the ratio of the
medians is what counts, because absolute times depend on the machine and on whoever shares it.

What runs is the package as users install it, its hot path compiled where there is a C compiler: it
is built first (`bench/compiled.py`). `--interpreted` measures the sources as they are.

`modelyard` has all features on: a key that is checked, limits of requests and tokens, usage asked
for and hidden, records. `bare` is the same without keys.

    make bench [ARGS="--json --seconds 3 --rounds 3"]

Needs nginx and wrk on the PATH (Debian: apt-get install nginx wrk) and two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from modelyard.core.keys import SECRET_BYTES, digest_of, key_text

HERE = Path(__file__).parent
CONNECTIONS = 32
PROMPT = "Tell me about the sea, please. " * 15

NGINX_CONF = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
worker_rlimit_nofile 16384; events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 4096; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; client_body_buffer_size 1m;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""

WRK_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
wrk.body = [[{body}]]
"""


@dataclass(frozen=True)
class Workload:
    """What is asked, again and again."""

    key: str
    title: str
    chunks: int = 0
    """Chunks of each answer; 0 for one JSON document."""
    pause_ms: int = 1
    prompt: str = PROMPT
    connections: int = CONNECTIONS
    seconds: float = 0.0
    """Length of one measurement, if it must be longer than usual."""


WORKLOADS = (
    Workload("json_request", "JSON request"),
    Workload("json_100k", "JSON request of 100 kB", prompt="Tell me about the sea. " * 4450),
    Workload("stream_chunk", "chunk of a stream of 64", chunks=64),
    Workload("stream_1000_chunk", "chunk of a stream of 1000", chunks=1000, seconds=5.0),
    Workload(
        "paced_2000_chunk", "chunk of 2000 paced streams",
        chunks=64, pause_ms=100, connections=2000, seconds=14.0,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Proxy:
    name: str
    port: int
    processes: list[psutil.Process]
    engine: int
    """The port of the engine behind it."""

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(argv: list[str], core: int, **kwargs: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process pinned to one core, ended with the block."""
    process = subprocess.Popen(  # type: ignore[call-overload]  # kwargs are Popen's own
        argv, preexec_fn=lambda: os.sched_setaffinity(0, {core}), **kwargs
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int, path: str = "/health") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing answers on port {port}")


def is_compiled(gateway: Proxy) -> bool:
    """What the server says of itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/api/version") as answer:
        return bool(json.load(answer)["compiled"])


def run_what_users_install() -> None:
    """From now on this process starts servers from the package that `bench/compiled.py` builds."""
    build = [sys.executable, str(HERE / "compiled.py")]
    done = subprocess.run(build, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    os.environ["PYTHONPATH"] = done.stdout.strip()


def start_nginx(stack: ExitStack, folder: Path, engine: int, core: int) -> Proxy:
    port = free_port()
    conf = folder / "nginx.conf"
    conf.write_text(NGINX_CONF.format(folder=folder, engine=engine, port=port))
    argv = [shutil.which("nginx") or "nginx", "-c", str(conf), "-p", str(folder)]
    process = stack.enter_context(running(argv, core, stderr=subprocess.DEVNULL))
    wait_for(port)
    master = psutil.Process(process.pid)
    return Proxy("nginx", port, [master, *master.children()], engine)


def start_gateway(
    stack: ExitStack, folder: Path, engine: int, args: argparse.Namespace, key: str
) -> Proxy:
    """A whole Modelyard, which starts the benchmark's engine on the other core.

    The package is the one that PYTHONPATH names, else the sources.
    """
    port = free_port()
    backend = [sys.executable, str(HERE / "backend.py"), "--port", "{port}"]
    name = "modelyard" if key else "bare"
    config: dict[str, object] = {
        "server": {"port": port, "state_dir": str(folder / name)},
        "models": {
            "bench": {
                "engine": "command",
                "command": [*backend, "--core", str(args.load_core)],
                "tasks": ["chat"],
                "options": {"port": engine},
                "memory": "1MiB",
                "preload": True,
            }
        },
    }
    if key:
        limits = {"requests": "1000M/min", "tokens": "1000000M/min", "concurrency": 100000}
        config["keys"] = {"bench": {"digest": digest_of(key), "limits": limits}}
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(config))
    argv = [str(Path(sys.executable).with_name("modelyard")), "serve", "--config", str(file)]
    process = stack.enter_context(
        running(argv, args.proxy_core, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    )
    wait_for(port)
    wait_for(engine)
    return Proxy(name, port, [psutil.Process(process.pid)], engine)


def chunks_written(engine: int) -> int:
    """By the engine on this port, since it began."""
    with urllib.request.urlopen(f"http://127.0.0.1:{engine}/chunks") as answer:
        return int(answer.read())


def load(
    proxy: Proxy, script: Path, workload: Workload, seconds: float, core: int
) -> tuple[int, float]:
    """Requests answered, or chunks of streams, and CPU seconds of the proxy. Any failed request is
    an error."""
    before, chunks_before = proxy.cpu_s(), chunks_written(proxy.engine)
    argv = [
        "wrk",
        "-t1",
        f"-c{workload.connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        "20s",
    ]
    argv += ["-s", str(script), f"http://127.0.0.1:{proxy.port}/v1/chat/completions"]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    spent, chunks = proxy.cpu_s() - before, chunks_written(proxy.engine) - chunks_before
    counted = re.search(r"(\d+) requests in", done.stdout)
    if counted is None or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise SystemExit(f"{proxy.name} did not answer every request:\n{done.stdout}")
    return chunks if workload.chunks else int(counted[1]), spent


def measure(
    proxies: list[Proxy], script: Path, workload: Workload, args: argparse.Namespace
) -> dict[str, float]:
    """Median CPU microseconds a request, or a chunk, by proxy."""
    costs: dict[str, list[float]] = {proxy.name: [] for proxy in proxies}
    seconds = max(args.seconds, workload.seconds)
    for proxy in proxies:
        load(proxy, script, workload, min(seconds, 1 + workload.seconds / 2), args.load_core)
    for _ in range(args.rounds):
        for proxy in proxies:
            passed, spent = load(proxy, script, workload, seconds, args.load_core)
            costs[proxy.name].append(spent / passed * 1e6)
    return {name: statistics.median(values) for name, values in costs.items()}


def script_for(folder: Path, workload: Workload, key: str) -> Path:
    request = {
        "model": "bench",
        "stream": bool(workload.chunks),
        "chunks": workload.chunks,
        "pause_ms": workload.pause_ms,
        "messages": [{"role": "user", "content": workload.prompt}],
    }
    path = folder / f"{workload.key}.lua"
    body = json.dumps(request, separators=(",", ":"))
    path.write_text(WRK_SCRIPT.format(body=body, key=key))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=3, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", metavar="KEY", help="one workload, like json_request")
    parser.add_argument("--interpreted", action="store_true", help="run the sources as they are")
    parser.add_argument("--proxy-core", type=int, default=1)
    parser.add_argument("--load-core", type=int, default=0)
    args = parser.parse_args()
    for tool in ("nginx", "wrk"):
        if shutil.which(tool) is None:
            print(f"{tool} is not on the PATH: apt-get install nginx wrk", file=sys.stderr)
            return 1
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if args.interpreted:
        os.environ.pop("PYTHONPATH", None)
    else:
        run_what_users_install()
    key = key_text("bench", os.urandom(SECRET_BYTES))
    report: dict[str, object] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        engine = free_port()
        gateways = [
            start_gateway(stack, folder, engine, args, key),
            start_gateway(stack, folder, free_port(), args, ""),
        ]
        proxies = [start_nginx(stack, folder, engine, args.proxy_core), *gateways]
        report["compiled"] = is_compiled(gateways[0])
        if not args.json:
            how = f"CPU time, {'compiled' if report['compiled'] else 'interpreted'}"
            print(f"{how:<28}{'nginx':>10}{'modelyard':>12}{'bare':>10}{'ratio':>8}{'bare':>7}")
        for workload in WORKLOADS:
            if args.only in (None, workload.key):
                us = measure(proxies, script_for(folder, workload, key), workload, args)
                report |= _reported(workload, us, show=not args.json)
    if args.json:
        print(json.dumps(report))
    return 0


def _reported(workload: Workload, us: dict[str, float], *, show: bool) -> dict[str, object]:
    ratio, bare = (round(us[name] / us["nginx"], 2) for name in ("modelyard", "bare"))
    if show:
        times = f"{us['nginx']:>7.1f} us{us['modelyard']:>9.1f} us{us['bare']:>7.1f} us"
        print(f"{workload.title:<28}{times}{ratio:>8}{bare:>7}", flush=True)
    return {
        f"{workload.key}_ratio": ratio,
        f"{workload.key}_bare_ratio": bare,
        f"{workload.key}_us": {name: round(value, 2) for name, value in us.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
