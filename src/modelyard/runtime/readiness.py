"""Ports and readiness: is the engine there yet?

Laws of this file:
- A port is probed by binding it, never assumed.
- Readiness is the engine's own health route answering 200, asked again every 10 ms at first,
  because small models load in milliseconds, and every 15 ms later: whoever waits for a model that
  loads for minutes is not to wait for us as well.
- A probe that is not answered stays, and is answered as soon as the engine can: an engine that
  takes connections while it loads is not asked again and again.
"""

from __future__ import annotations

import asyncio
import socket

from modelyard.core.specs import Endpoint
from modelyard.runtime.dialing import open_streams

EAGER_INTERVAL_S = 0.01
CALM_INTERVAL_S = 0.015
"""An engine is to be noticed within 20 ms. Asking so often takes one or two percent of a
core while a model loads (bench/readiness.py)."""
EAGER_FOR_S = 10.0
ANSWER_TIMEOUT_S = 5.0


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


async def until_ready(endpoint: Endpoint, path: str) -> None:
    """Return once `GET path` answers 200. Never gives up: the caller bounds it."""
    loop = asyncio.get_running_loop()
    eager_until = loop.time() + EAGER_FOR_S
    while not await answers_200(endpoint, path):
        eager = loop.time() < eager_until
        await asyncio.sleep(EAGER_INTERVAL_S if eager else CALM_INTERVAL_S)


async def answers_200(endpoint: Endpoint, path: str) -> bool:
    """One probe. False for a refused connection, another status, silence, or nonsense."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await open_streams(endpoint)
            try:
                host = endpoint.authority
                request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                status_line = await reader.readline()
            finally:
                writer.close()
                await writer.wait_closed()
    except (OSError, TimeoutError, ValueError):
        return False
    parts = status_line.split(maxsplit=2)
    return len(parts) > 1 and parts[0].startswith(b"HTTP/") and parts[1] == b"200"
