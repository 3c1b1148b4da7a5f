"""The newest requests and answers as they were, for whoever looks for a fault. Off by default.

Laws of this file:
- Memory is bounded: each capture by `captures.max_body` for the request and for the answer, all of
  them together, those under way included, by MOST_HELD; the oldest go first.
- No credential is kept: header lines that are named like one are hidden when they come, and the
  configured secrets, and whatever looks like a key of ours, when a capture is complete. A secret
  that the bound cuts in two is hidden as well.
- What a request costs while this is off is one comparison.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from fastapi import APIRouter

from modelyard.config.publish import HIDDEN, SECRET_NAME
from modelyard.config.values import Captures as Settings
from modelyard.core.errors import NotFound
from modelyard.core.keys import KEY_TEXT
from modelyard.core.views import CaptureView
from modelyard.http.record import Record
from modelyard.runtime.upstream import Headers

MOST_HELD: Final = 64 * 1024 * 1024
"""Bytes of all captures together."""
SHORTEST_CUT: Final = 4
"""A secret's beginning of this many characters, at the very end of what is kept, is hidden."""
Write = Callable[[bytes], None]
_HIDDEN: Final = HIDDEN.encode()
_CUT_KEY: Final = re.compile(rb"my-[A-Za-z0-9._-]*\Z")


class Capture:
    """One request and its answer, while it is under way and after it."""

    __slots__ = (
        "_captures", "_keeps", "_write", "answer", "answer_bytes", "headers", "record", "request",
    )  # fmt: skip

    def __init__(
        self,
        captures: Captures,
        record: Record,
        headers: Headers,
        write: Write,
    ) -> None:
        self.record = record
        self.headers = [(name, _HIDDEN if _is_secret(name) else value) for name, value in headers]
        self.request = b""
        self.answer = bytearray()
        self.answer_bytes = 0
        """Bytes that went to the client, head and framing included."""
        self._captures = captures
        self._keeps = captures.settings.max_body_bytes
        self._write = write

    def write(self, data: bytes) -> None:
        """Send a part of the answer to the client, and keep what there is room for."""
        self._write(data)
        self.answer_bytes += len(data)
        room = min(self._keeps - len(self.answer), self._captures.room)
        if room > 0:
            part = data[:room]
            self.answer += part
            self._captures.held += len(part)

    def end(self, body: bytes | bytearray) -> None:
        """The exchange is over; `body` was its request."""
        self.request = bytes(body[: self._keeps])
        self._captures.complete(self, is_cut=len(body) > self._keeps)


class Captures:
    """The newest captures. `settings` and `secrets` may be replaced while requests go on."""

    def __init__(self, settings: Settings, secrets: Iterable[str] = ()) -> None:
        self.settings = settings
        self.are_on = False
        """Whether anything is captured."""
        self.held = 0
        """Bytes of all captures, those under way included."""
        self._kept: deque[Capture] = deque()
        self._secrets: tuple[bytes, ...] = ()
        self.follow(settings, secrets)

    @property
    def room(self) -> int:
        """Bytes that may still be kept."""
        return MOST_HELD - self.held

    def follow(self, settings: Settings, secrets: Iterable[str]) -> None:
        """Keep captures by these settings, without these secrets."""
        self.settings = settings
        self.are_on = settings.last > 0
        longest_first = sorted(secrets, key=len, reverse=True)
        self._secrets = tuple(secret.encode() for secret in longest_first)
        self._shrink()

    def open(self, record: Record, headers: Headers, write: Write) -> Capture:
        """Capture a request; its answer is to be written through the capture, and its end told."""
        return Capture(self, record, headers, write)

    def complete(self, capture: Capture, *, is_cut: bool) -> None:
        """Keep a capture; `is_cut` says that its request was longer than what it has of it."""
        answer = bytes(capture.answer)
        self.held -= len(answer)
        capture.request = self._without_secrets(capture.request, is_cut=is_cut)
        answer = self._without_secrets(answer, is_cut=len(answer) < capture.answer_bytes)
        capture.answer = bytearray(answer)
        capture.headers = [
            (name, self._without_secrets(value, is_cut=False)) for name, value in capture.headers
        ]
        self.held += _size(capture)
        self._kept.append(capture)
        self._shrink()

    def newest(self) -> list[Capture]:
        """All that are kept, newest first."""
        return list(reversed(self._kept))

    def clear(self) -> None:
        """Forget all that are complete."""
        self.held -= sum(map(_size, self._kept))
        self._kept.clear()

    def _shrink(self) -> None:
        while self._kept and (len(self._kept) > self.settings.last or self.held > MOST_HELD):
            self.held -= _size(self._kept.popleft())

    def _without_secrets(self, data: bytes, *, is_cut: bool) -> bytes:
        for secret in self._secrets:
            data = data.replace(secret, _HIDDEN)
        data = KEY_TEXT.sub(_HIDDEN, data)
        if not is_cut:
            return data
        data = _CUT_KEY.sub(_HIDDEN, data)
        for secret in self._secrets:
            for length in range(len(secret) - 1, SHORTEST_CUT - 1, -1):
                if data.endswith(secret[:length]):
                    data = data[:-length] + _HIDDEN
                    break
        return data


def routes(captures: Captures) -> APIRouter:
    router = APIRouter(prefix="/api/captures", tags=["captures"])

    @router.get("")
    async def newest() -> list[CaptureView]:
        """What was captured, newest first, without the bodies."""
        return [_view(capture, whole=False) for capture in captures.newest()]

    @router.get("/{request:path}")
    async def one(request: str) -> CaptureView:
        """One request and its answer."""
        for capture in captures.newest():
            if capture.record.id == request:
                return _view(capture, whole=True)
        raise NotFound(
            f"no request {request[:200]!r} was captured",
            hint="`captures.last` in the configuration says how many are",
        )

    @router.delete("", status_code=204)
    async def clear() -> None:
        """Forget what was captured."""
        captures.clear()

    return router


def _view(capture: Capture, *, whole: bool) -> CaptureView:
    record = capture.record
    return CaptureView(
        id=record.id,
        arrived_at=record.arrived,
        route=record.route,
        key=record.key,
        model=record.model,
        status=record.status,
        request_headers=[(_text(name), _text(value)) for name, value in capture.headers],
        request=_text(capture.request) if whole else "",
        request_bytes=record.bytes_in,
        answer=_text(capture.answer) if whole else "",
        answer_bytes=capture.answer_bytes,
    )


def _text(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "replace")


def _is_secret(name: bytes) -> bool:
    return name == b"cookie" or SECRET_NAME.search(name.decode("latin-1")) is not None


def _size(capture: Capture) -> int:
    lines = sum(len(name) + len(value) for name, value in capture.headers)
    return len(capture.request) + len(capture.answer) + lines
