"""Ports and readiness: is the engine there yet?

Laws of this file:
- A port is probed by binding it, never assumed.
- Readiness is the engine's own health route answering 200, asked again quickly at first, because
  small models load in milliseconds, and more calmly later.
"""

from __future__ import annotations

import asyncio
import socket

from modelyard.core.specs import Endpoint

EAGER_INTERVAL_S = 0.01
CALM_INTERVAL_S = 0.1
EAGER_FOR_S = 10.0
ANSWER_TIMEOUT_S = 5.0


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def is_taken(endpoint: Endpoint) -> bool:
    """Whether something already listens where an engine with a fixed port is to listen."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((endpoint.host, endpoint.port))
        except OSError:
            return True
    return False


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
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            try:
                request = f"GET {path} HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                status_line = await reader.readline()
            finally:
                writer.close()
                await writer.wait_closed()
    except (OSError, TimeoutError, ValueError):
        return False
    parts = status_line.split(maxsplit=2)
    return len(parts) > 1 and parts[0].startswith(b"HTTP/") and parts[1] == b"200"
