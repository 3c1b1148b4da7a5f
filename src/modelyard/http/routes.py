"""The inference routes: path -> the task it serves and the path an engine knows it by.

Laws of this file:
- A path listed here never reaches the ASGI application when it is POSTed to; every other one does.
- Several spellings may lead to one route; the engine always gets the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelyard.core.specs import Task


@dataclass(frozen=True, slots=True)
class Route:
    task: Task
    engine_path: bytes
    streams: bool = False
    """Whether `"stream": true` makes the answer an event stream."""

    @property
    def engine_request(self) -> bytes:
        """The first line of the request that an engine gets."""
        return request_line(self.engine_path)


def request_line(path: bytes) -> bytes:
    """The first line of a request to an engine's route."""
    return b"POST %b HTTP/1.1\r\n" % path


CHAT = Route(Task.CHAT, b"/v1/chat/completions", streams=True)
COMPLETION = Route(Task.COMPLETION, b"/v1/completions", streams=True)
EMBEDDING = Route(Task.EMBEDDING, b"/v1/embeddings")
RERANK = Route(Task.RERANK, b"/v1/rerank")
SCORE = Route(Task.RERANK, b"/v1/score")

INFERENCE: dict[bytes, Route] = {
    b"/v1/chat/completions": CHAT,
    b"/v1/completions": COMPLETION,
    b"/v1/embeddings": EMBEDDING,
    b"/v1/rerank": RERANK,
    b"/v2/rerank": RERANK,
    b"/rerank": RERANK,
    b"/v1/score": SCORE,
    b"/score": SCORE,
}
