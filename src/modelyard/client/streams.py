"""Answers that come bit by bit: server-sent events (WHATWG HTML, 9.2) as iterators.

Laws of this file:
- Lines end at a line feed and nowhere else: JSON may hold other characters that Python and httpx
  take for the end of a line.
- A stream may be closed from another thread, which ends the iteration without an error.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from modelyard.client.errors import ApiError, ConnectionLost
from modelyard.client.wire import Chunk, Usage, decoded, event, translated
from modelyard.core.errors import ModelyardError
from modelyard.core.views import Event

if TYPE_CHECKING:
    import httpx


class Stream:
    """The server-sent events of one answer, as bytes of JSON.

    `close` ends the iteration, also one that waits in another thread.
    """

    def __init__(self, url: str, response: httpx.Response) -> None:
        self._url = url
        self._response = response
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        try:
            with translated(self._url):
                for part in self._response.iter_bytes():
                    *lines, rest = (rest + part).split(b"\n")
                    for line in lines:
                        if line.startswith(b"data:"):
                            yield line[5:].strip()
        except ModelyardError:
            if not self.closed:
                raise
        finally:
            self._response.close()

    def close(self) -> None:
        self.closed = True
        stream = self._response.extensions.get("network_stream")
        connection = stream.get_extra_info("socket") if stream is not None else None
        if connection is not None:
            with suppress(OSError):  # it is closed already
                connection.shutdown(socket.SHUT_RDWR)


class Events:
    """Live news of a server: an iterator of `Event` that can be closed."""

    def __init__(self, url: str, stream: Stream) -> None:
        self._url = url
        self._stream = stream

    def __iter__(self) -> Iterator[Event]:
        for data in self._stream:
            yield event(self._url, data)

    def close(self) -> None:
        self._stream.close()


class Answer:
    """A streamed answer: iterate over its text. `usage` and `finish_reason` come with its end."""

    def __init__(self, url: str, stream: Stream) -> None:
        self._url = url
        self._stream = stream
        self.usage: Usage | None = None
        self.finish_reason: str | None = None

    def __iter__(self) -> Iterator[str]:
        ended = False
        for data in self._stream:
            if data == b"[DONE]":
                ended = True
                continue
            chunk = decoded(self._url, data, Chunk)
            if chunk.error is not None:
                raise ApiError(200, chunk.error.code or "internal_error", chunk.error.message)
            self.usage = chunk.usage or self.usage
            for choice in chunk.choices:
                self.finish_reason = choice.finish_reason or self.finish_reason
                if text := choice.delta.content or choice.text:
                    yield text
        if not ended and not self._stream.closed:
            raise ConnectionLost(self._url, "the stream has no end")

    def close(self) -> None:
        self._stream.close()
