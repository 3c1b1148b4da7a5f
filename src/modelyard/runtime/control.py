"""Requests to an engine's own control routes. Nothing of a client ever gets here.

Laws of this file:
- A call that does not end in 2xx within its time is a `ControlFailed` with what the engine said.
"""

from __future__ import annotations

import asyncio

from modelyard.core.errors import ModelyardError
from modelyard.core.specs import Call, Endpoint

MAX_ANSWER = 64 * 1024
MAX_QUOTED = 300


class ControlFailed(ModelyardError):
    """An engine did not do what it was told."""

    code = "control_failed"


class Unreachable(ControlFailed):
    """An engine took no connection: most likely its end is about to be reported."""


async def call(endpoint: Endpoint, order: Call) -> None:
    """Make one call. Raises ControlFailed, and Unreachable if the engine never heard of it."""
    try:
        async with asyncio.timeout(order.timeout_s):
            status, answer = await _exchange(endpoint, order)
    except TimeoutError:
        raise ControlFailed(f"{order}: no answer after {order.timeout_s:g} s") from None
    except ConnectionRefusedError as error:
        raise Unreachable(f"{order}: {error}") from None
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        raise ControlFailed(f"{order}: {error or type(error).__name__}") from None
    if not 200 <= status < 300:
        raise ControlFailed(f"{order}: status {status}: {answer[:MAX_QUOTED].strip()}")


async def _exchange(endpoint: Endpoint, order: Call) -> tuple[int, str]:
    body = (order.body or "").encode()
    head = [
        f"{order.method} {order.path} HTTP/1.1",
        f"Host: {endpoint}",
        "Connection: close",
        f"Content-Length: {len(body)}",
    ]
    if order.body is not None:
        head.append("Content-Type: application/json")
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        status_line = await reader.readline()
        rest = await reader.read(MAX_ANSWER)
    finally:
        writer.close()
    _, _, text = rest.partition(b"\r\n\r\n")
    return int(status_line.split()[1]), text.decode("utf-8", "replace")
