"""HEAD is GET without the body (RFC 9110, 9.3.2), for everything that the application answers.

Laws of this file:
- The answer ends with its head, also where GET would go on for ever.
"""

from __future__ import annotations

from typing import Any


class HeadAsGet:
    """ASGI middleware. The server itself sees to it that no body is sent."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Any) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app({**scope, "method": "GET"}, receive, send_head)
