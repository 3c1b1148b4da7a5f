"""What a client asks, as engines are asked: understood once, written for whoever gets it.

Laws of this file:
- The client's words reach the engine as they are, but for what a dialect, a model's own settings
  or an engine's quirks change.
- Nothing here waits, and nothing here knows of connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelyard.core.errors import WrongTask
from modelyard.core.names import Names
from modelyard.core.specs import ModelSpec
from modelyard.dialects.base import LoadRequest, Reply
from modelyard.http import openai
from modelyard.http.routes import Route, request_line
from modelyard.runtime.upstream import Upstream

if TYPE_CHECKING:
    from modelyard.engines.quirks import Quirks


class Asking:
    """One request, from its body to the bytes that an engine gets."""

    __slots__ = ("_body", "_quirks", "body", "lets_go", "load", "reply", "route", "seen")

    def __init__(self, route: Route, body: bytearray, content_type: bytes) -> None:
        """Raises InvalidRequest."""
        self.route = route
        self._body = body
        self._quirks: Quirks | None = None
        """Of the engine that is being asked."""
        self.body: bytes | bytearray = body
        """The request in OpenAI's shape."""
        self.reply: Reply | None = None
        """Turns the answer into what the client expects, if that is not OpenAI's shape."""
        self.load: LoadRequest | None = None
        """What is asked in place of an inference: the model to be loaded, or let go."""
        self.lets_go = False
        """Whether the client wants the model let go once this request is over."""
        if route.translate is not None:
            self.translate()
        self.seen: openai.Peek = self._peek(content_type)

    def translate(self) -> None:
        """The body as engines take it, and a fresh reply. Raises InvalidRequest."""
        if self.route.translate is None:
            return
        asked = self.route.translate(bytes(self._body))
        if isinstance(asked, LoadRequest):
            self.load = asked
            self.lets_go = not asked.load
        elif asked is not None:
            self.body, self.reply = asked.body, asked.reply
            self.lets_go = asked.keep_alive_s == 0
            if asked.task is not None:
                self.route = self.route.of(asked.task)

    def _peek(self, content_type: bytes) -> openai.Peek:
        if self.load is not None:
            return openai.Peek(self.load.model)
        if self.route.is_form:
            return openai.peek_form(bytes(self._body), content_type)
        return openai.peek(self.body)

    @property
    def wants_stream(self) -> bool:
        return bool(self.seen.stream) and self.route.streams

    def model(self, names: Names) -> ModelSpec:
        """The model that is asked. Raises ModelNotFound and WrongTask."""
        spec = names.resolve(self.seen.model or "")
        task = self.route.task
        if task is not None and task not in spec.tasks and self.load is None:
            raise WrongTask(spec.id, sorted(spec.tasks), task)
        return spec

    def head_and_body(
        self, upstream: Upstream, forwarded: Sequence[bytes], request_id: bytes
    ) -> bytes:
        """The request as this upstream wants it; `forwarded` are header lines of the client."""
        route = self.route
        path, first, body = route.engine_path, route.engine_request, self.body
        if route.native_path is not None and route.native_path in upstream.speaks:
            path, body, self.reply = route.native_path, self._body, None
            first = request_line(path)
        elif self.wants_stream and upstream.tells_usage:
            body = openai.asking_for_usage(body, self.seen)
        quirks = self._quirks = upstream.quirks
        if quirks is not None:
            first = request_line(quirks.path(path))
            body = quirks.request(path, bytes(body))
        request: list[bytes | bytearray] = [
            first,
            upstream.own_headers,
            *forwarded,
            b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (request_id, len(body)),
            body,
        ]
        return b"".join(request)

    @property
    def rewrites(self) -> bool:
        """Whether a whole answer has to be turned into what the client expects."""
        quirks = self._quirks
        return self.reply is not None or (
            quirks is not None and self.route.engine_path in quirks.answers
        )

    def rewritten(self, answer: bytes) -> bytes:
        """A whole answer as the client expects it. Raises UnreadableAnswer."""
        quirks = self._quirks
        if quirks is not None:
            rewrite = quirks.answers.get(self.route.engine_path)
            if rewrite is not None:
                answer = rewrite(answer, bytes(self.body))
        return answer if self.reply is None else self.reply.whole(answer)
