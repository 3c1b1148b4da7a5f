"""What a request costs in the gateway, next to nginx doing the same, in the same run.

CPU time (user + system) of the proxy's own processes, divided by the requests or stream chunks that
went through. The proxy has one core to itself; load generator and engine share another. The two
proxies take turns, several rounds each; the ratio of the medians is what counts, because absolute
times depend on the machine and on whoever shares it.

    make bench [ARGS="--json --seconds 3 --rounds 3"]

Needs nginx and wrk on the PATH (Debian: apt-get install nginx wrk) and two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
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

HERE = Path(__file__).parent
CHUNKS = 64
CONNECTIONS = 32
PROMPT = "Tell me about the sea, please. " * 15

NGINX_CONF = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
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
wrk.headers["Authorization"] = "Bearer sk-bench"
wrk.body = [[{body}]]
"""


@dataclass(frozen=True)
class Proxy:
    name: str
    port: int
    processes: list[psutil.Process]

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


def start_nginx(stack: ExitStack, folder: Path, engine: int, core: int) -> Proxy:
    port = free_port()
    conf = folder / "nginx.conf"
    conf.write_text(NGINX_CONF.format(folder=folder, engine=engine, port=port))
    argv = [shutil.which("nginx") or "nginx", "-c", str(conf), "-p", str(folder)]
    process = stack.enter_context(running(argv, core, stderr=subprocess.DEVNULL))
    wait_for(port)
    master = psutil.Process(process.pid)
    return Proxy("nginx", port, [master, *master.children()])


def start_gateway(stack: ExitStack, folder: Path, engine: int, args: argparse.Namespace) -> Proxy:
    """A whole Modelyard, which starts the benchmark's engine on the other core."""
    port = free_port()
    backend = [sys.executable, str(HERE / "backend.py"), "--port", "{port}"]
    config = {
        "server": {"port": port, "state_dir": str(folder / "state")},
        "models": {
            "bench": {
                "engine": "command",
                "command": [*backend, "--chunks", str(CHUNKS), "--core", str(args.load_core)],
                "tasks": ["chat"],
                "options": {"port": engine},
                "memory": "1MiB",
                "preload": True,
            }
        },
    }
    file = folder / "modelyard.yaml"
    file.write_text(json.dumps(config))
    argv = [str(Path(sys.executable).with_name("modelyard")), "serve", "--config", str(file)]
    process = stack.enter_context(
        running(argv, args.proxy_core, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    )
    wait_for(port)
    wait_for(engine)
    return Proxy("modelyard", port, [psutil.Process(process.pid)])


def load(proxy: Proxy, script: Path, seconds: float, core: int) -> tuple[int, float]:
    """Requests answered and CPU seconds of the proxy. Any failed request is an error."""
    before = proxy.cpu_s()
    argv = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "-s", str(script)]
    argv.append(f"http://127.0.0.1:{proxy.port}/v1/chat/completions")
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    spent = proxy.cpu_s() - before
    counted = re.search(r"(\d+) requests in", done.stdout)
    if counted is None or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise SystemExit(f"{proxy.name} did not answer every request:\n{done.stdout}")
    return int(counted[1]), spent


def measure(proxies: list[Proxy], script: Path, args: argparse.Namespace) -> dict[str, float]:
    """Median CPU microseconds a request, by proxy."""
    costs: dict[str, list[float]] = {proxy.name: [] for proxy in proxies}
    for proxy in proxies:
        load(proxy, script, 1, args.load_core)
    for _ in range(args.rounds):
        for proxy in proxies:
            requests, spent = load(proxy, script, args.seconds, args.load_core)
            costs[proxy.name].append(spent / requests * 1e6)
    return {name: statistics.median(values) for name, values in costs.items()}


def scripts(folder: Path) -> tuple[Path, Path]:
    paths = []
    for name, streams in (("json", False), ("stream", True)):
        request = {
            "model": "bench",
            "stream": streams,
            "messages": [{"role": "user", "content": PROMPT}],
        }
        path = folder / f"{name}.lua"
        path.write_text(WRK_SCRIPT.format(body=json.dumps(request, separators=(",", ":"))))
        paths.append(path)
    return paths[0], paths[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=3, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--proxy-core", type=int, default=1)
    parser.add_argument("--load-core", type=int, default=0)
    args = parser.parse_args()
    for tool in ("nginx", "wrk"):
        if shutil.which(tool) is None:
            print(f"{tool} is not on the PATH: apt-get install nginx wrk", file=sys.stderr)
            return 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        engine = free_port()
        gateway = start_gateway(stack, folder, engine, args)
        proxies = [start_nginx(stack, folder, engine, args.proxy_core), gateway]
        json_script, stream_script = scripts(folder)
        request = measure(proxies, json_script, args)
        stream = measure(proxies, stream_script, args)
    chunk = {name: us / CHUNKS for name, us in stream.items()}
    rows = [("JSON request", "json_request", request), ("stream chunk", "stream_chunk", chunk)]
    report: dict[str, object] = {}
    for _, key, times in rows:
        report[f"{key}_ratio"] = round(times["modelyard"] / times["nginx"], 2)
        report[f"{key}_us"] = {name: round(us, 2) for name, us in times.items()}
    if args.json:
        print(json.dumps(report))
        return 0
    print(f"{'CPU time':<16}{'nginx':>12}{'modelyard':>12}{'ratio':>8}")
    for title, key, times in rows:
        ratio = report[f"{key}_ratio"]
        print(f"{title:<16}{times['nginx']:>9.1f} us{times['modelyard']:>9.1f} us{ratio!s:>8}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
