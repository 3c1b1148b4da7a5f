"""Whose turn it is on a connection: what the gateway's protocol asks of those who answer.

Laws of this file:
- Answers leave in the order in which their requests came, refusals included.
- After a refusal nothing more is read from the connection: where one request ended and the next
  began can no longer be known.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from modelyard.core.errors import ModelyardError
from modelyard.http.errors import headers_of, openai_error, status_of
from modelyard.runtime.framing import as_lines

if TYPE_CHECKING:
    from modelyard.http.gateway import GatewayProtocol
    from modelyard.http.record import Record

LINGER_S = 1.0
"""How long what a refused client still sends is dropped: closing on unread bytes would reset the
connection, and with it the answer."""


class Turn(Protocol):
    """One request and its answer; stands where uvicorn keeps its cycle."""

    more_body: bool
    """Whether the end of the request has not been read yet."""
    keep_alive: bool
    disconnected: bool

    @property
    def response_complete(self) -> bool:
        """Whether the answer is written to its end."""
        ...

    def begin(self) -> None:
        """All earlier answers have been written."""
        ...

    def receive(self, data: bytes) -> None:
        """A part of the request's body has come."""
        ...

    def reject(self, error: ModelyardError) -> None:
        """The rest of the request cannot be read."""
        ...

    def client_left(self) -> None:
        """The connection is gone."""
        ...

    def hold_engine(self) -> None:
        """The client does not read as fast as it is written to."""
        ...

    def resume_engine(self) -> None:
        """The client has read what it was sent."""
        ...


class Active(Protocol):
    """A request that is under way, as those see it who run the server."""

    record: Record

    @property
    def phase(self) -> IntEnum:
        """Where it is: reading, waiting, sending, answering, done."""
        ...

    @property
    def ticket(self) -> int:
        """What it waits for its model under; 0 if it does not wait."""
        ...

    def look(self, now: float) -> None:
        """Time-outs; called a few times a second."""
        ...

    def reject(self, error: ModelyardError) -> None:
        """It cannot go on."""
        ...

    def cancel(self) -> None:
        """Somebody who may wants it ended."""
        ...


class Refusal:
    """The answer to a request that is not read to its end, the last one of its connection."""

    more_body = False
    keep_alive = False
    disconnected = False
    response_complete = False

    def __init__(self, protocol: GatewayProtocol, error: ModelyardError) -> None:
        self._protocol = protocol
        self._error = error

    @property
    def message_event(self) -> Refusal:
        """uvicorn sets a cycle's event when the client is gone."""
        return self

    def set(self) -> None:
        """Nobody waits."""

    def begin(self) -> None:
        self._protocol.transport.write(answer_to(self._error, self._protocol.common_headers()))
        self.response_complete = True
        self._protocol.linger()

    def receive(self, data: bytes) -> None:
        """Nothing is read."""

    def reject(self, error: ModelyardError) -> None:
        """It is refused already."""

    def client_left(self) -> None:
        self.response_complete = True

    def hold_engine(self) -> None:
        """There is none."""

    def resume_engine(self) -> None:
        """There is none."""


def answer_to(error: ModelyardError, common: list[tuple[bytes, bytes]]) -> bytes:
    """A whole answer that says `error` and ends its connection."""
    body = openai_error(error)
    headers = [*common, *headers_of(error)]
    lines = as_lines(headers)
    framing = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body)
    return STATUS_LINE[status_of(error)] + lines + framing + body
