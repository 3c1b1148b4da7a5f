"""Requests that are timed, few among many: when did the first byte of the answer come?

Laws of this file:
- A probe waits neither for another nor for a moment that suits the server.
- Time runs from sending to the return of the call that says that something can be read; a request
  that is sent late because this program had no processor is not the server's fault.
"""

from __future__ import annotations

import json
import random
import select
import socket
import time
from collections import deque
from contextlib import ExitStack, closing

from bench.gateway import PROMPT, Workload

PROBES = 400
"""A second, to all servers together."""
LINES = 16
"""Connections to each server; a stream keeps its own for some 20 ms."""
ANSWER_WITHIN_S = 10.0
LAST_CHUNK = b"0\r\n\r\n"
PERCENTILES = {"p50": 0.50, "p99": 0.99}


def request_for(workload: Workload, key: str) -> bytes:
    """The request of the load, for a probe."""
    body = json.dumps(
        {
            "model": "bench",
            "stream": bool(workload.chunks),
            "chunks": workload.chunks,
            "pause_ms": workload.pause_ms,
            "messages": [{"role": "user", "content": PROMPT}],
        },
        separators=(",", ":"),
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Line:
    """One kept connection to a server, and the answer that comes on it."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.socket = socket.create_connection(("127.0.0.1", port), ANSWER_WITHIN_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.asked = 0.0
        self.answer = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def ask(self, request: bytes) -> None:
        self.answer = b""
        self.asked = time.perf_counter()
        self.socket.sendall(request)

    def hears(self) -> bool:
        """Read on; whether the answer is whole. Raises RuntimeError if it is none."""
        data = self.socket.recv(65536)
        self.answer += data
        if not data or not self.answer.startswith(b"HTTP/1.1 200"[: len(self.answer)]):
            raise RuntimeError(f"{self.name} answered {self.answer[:200]!r}")
        head, end, body = self.answer.partition(b"\r\n\r\n")
        _, sized, rest = head.lower().partition(b"content-length:")
        if sized and end:
            return len(body) >= int(rest.split(b"\r\n", 1)[0])
        return body.endswith(LAST_CHUNK)


def line_to(name: str, port: int, stack: ExitStack) -> Line:
    return stack.enter_context(closing(Line(name, port)))


def lines_to(name: str, port: int, request: bytes, stack: ExitStack) -> deque[Line]:
    """Kept connections that have carried a request, like those of a client that has been here."""
    lines = deque[Line]()
    for _ in range(LINES):
        line = line_to(name, port, stack)
        line.ask(request)
        while not line.hears():
            pass
        lines.append(line)
    return lines


def probed(ports: dict[str, int], request: bytes, seconds: float) -> dict[str, list[float]]:
    """Milliseconds to the first byte, by server; they take turns, and no probe waits for another.

    Raises RuntimeError if one is not answered properly.
    """
    times: dict[str, list[float]] = {name: [] for name in ports}
    with ExitStack() as stack:
        free = {name: lines_to(name, port, request, stack) for name, port in ports.items()}
        turns, asked = deque(ports), set[Line]()
        due = time.perf_counter()
        last = due + seconds
        while due < last or asked:
            if due < last and time.perf_counter() >= due:
                name = turns[0]
                line = free[name].popleft() if free[name] else line_to(name, ports[name], stack)
                line.ask(request)
                asked.add(line)
                turns.rotate()
                due += random.expovariate(PROBES)
            wait = due - time.perf_counter() if due < last else ANSWER_WITHIN_S
            ready, _, _ = select.select(asked, (), (), max(0.0, wait))
            now = time.perf_counter()
            for line in ready:
                if not line.answer:
                    times[line.name].append((now - line.asked) * 1e3)
                if line.hears():
                    asked.discard(line)
                    free[line.name].append(line)
            if not ready and due >= last:
                raise RuntimeError(f"no whole answer within {ANSWER_WITHIN_S:g} s")
    return times


def percentiles(times: list[float]) -> dict[str, float]:
    """What so many of 100 times stay below, by name."""
    ordered = sorted(times)
    return {name: ordered[int(len(ordered) * share)] for name, share in PERCENTILES.items()}
