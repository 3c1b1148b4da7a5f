"""What a client asks, as engines are asked: understood once, written for whoever gets it.

Laws of this file:
- The client's words reach the engine as they are, but for what a dialect, a model's own settings
  or an engine's quirks change.
- Nothing here waits, and nothing here knows of connections.
"""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING

from modelyard.core.errors import WrongTask
from modelyard.core.names import Names
from modelyard.core.shaping import Shape
from modelyard.core.specs import ModelSpec
from modelyard.dialects.base import LoadRequest, Reply
from modelyard.http import forms, openai, remotes
from modelyard.http.access import Caller, resolved
from modelyard.http.routes import Route, request_line
from modelyard.http.shaping import shaped
from modelyard.http.skim import Skim
from modelyard.runtime.framing import as_lines
from modelyard.runtime.upstream import Buffer, Headers, Upstream

if TYPE_CHECKING:
    from modelyard.engines.quirks import Quirks
    from modelyard.http.request_head import RequestHead


class Asking:
    """One request, from its body to the bytes that an engine gets."""

    # Most requests leave these as they are; making one costs only what is set in __init__.
    reply: Reply | None = None
    """Turns the answer into what the client expects, if that is not OpenAI's shape."""
    engine_reply: Reply | None = None
    """Turns the answer of an engine of another dialect into OpenAI's shape."""
    load: LoadRequest | None = None
    """What is asked in place of an inference: the model to be loaded, or let go."""
    shape: Shape | None = None
    """What the model, or the name it is asked by, changes."""
    keep_s: float | None = None
    """How long the client wants the model kept after this request; None says nothing."""
    _served_as: str | None = None
    """The model's name for its engine; None for the one that the client wrote."""
    _quirks: Quirks | None = None
    """Of the engine that is being asked."""

    def __init__(
        self,
        route: Route,
        body: bytes | bytearray,
        content_type: bytes,
        skim: Skim | None = None,
    ) -> None:
        """`skim` has gone through the body, if that is large. Raises InvalidRequest."""
        self.route = route
        self._body = body
        self._content_type = content_type
        self._skim = skim
        self.body = body
        """The request in OpenAI's shape."""
        if route.translate is not None:
            self.translate()
        self.seen = seen = self._peek(content_type)
        self.wants_stream = bool(seen.stream) and self.route.streams

    def translate(self) -> None:
        """The body as engines take it, and a fresh reply. Raises InvalidRequest."""
        if self.route.translate is None:
            return
        asked = self.route.translate(bytes(self._body))
        if isinstance(asked, LoadRequest):
            self.load = asked
            self.keep_s = asked.keep_alive_s if asked.load else 0.0
        elif asked is not None:
            self.body, self.reply = asked.body, asked.reply
            self.keep_s = asked.keep_alive_s
            if asked.task is not None:
                self.route = self.route.of(asked.task)

    def _peek(self, content_type: bytes) -> openai.Peek:
        if self.load is not None:
            return openai.Peek(self.load.model)
        if self.route.is_form:
            return openai.peek_form(bytes(self._body), content_type)
        seen = None if self._skim is None else self._skim.peek()
        return openai.peek(self.body) if seen is None else seen

    def prefix(self) -> int | None:
        """A hash of the beginning of the prompt, by which like ones find the same replica."""
        prompt = None if self._skim is None else self._skim.prompt(openai.PREFIX_BYTES)
        return openai.prefix(self.body) if prompt is None else zlib.crc32(prompt)

    def only(self, names: Names, caller: Caller) -> str:
        """The id of the model that is meant where none is named: the only one for this task that
        the caller may use. Raises InvalidRequest where there is none, or more than one.

        Clients of a server that has one model, like llama.cpp's, do not name it.
        """
        task = self.route.task
        fit = [
            spec.id
            for spec in names.specs
            if (task is None or task in spec.tasks) and caller.may_use(spec.id)
        ]
        if len(fit) != 1:
            raise openai.no_model()
        return fit[0]

    def aim(self, name: str, names: Names, caller: Caller) -> ModelSpec:
        """Have the request go to the model of this name. Raises ModelNotFound and WrongTask."""
        if not names.knows(name):
            spellings = self.route.dialect.spellings(name)
            name = next((each for each in spellings if names.knows(each)), name)
        meaning = resolved(names, name, caller)
        spec, task = meaning.spec, self.route.task
        if task is not None and task not in spec.tasks and self.load is None:
            raise WrongTask(spec.id, sorted(spec.tasks), task)
        self.shape = meaning.shape
        as_written = meaning.is_engines and name == self.seen.model
        self._served_as = None if as_written else spec.id
        return spec

    def head_and_body(
        self, upstream: Upstream, head: RequestHead, request_id: bytes
    ) -> tuple[bytes, Buffer]:
        """The request as this upstream wants it, and its body if that is too large to be copied."""
        route, shape = self.route, self.shape
        path, first = route.engine_path, route.engine_request
        asked, lead = self.body, b""
        if self._served_as is not None or (shape is not None and shape.changes_body):
            asked = self._changed(asked)
        body: Buffer = asked
        if route.native_path is not None and self._may_pass(upstream):
            path, body, self.reply = route.native_path, self._body, None
            first = request_line(path)
        elif self.wants_stream and upstream.tells_usage:
            lead, body = openai.asking_for_usage(asked, self.seen)
        quirks = upstream.quirks
        if quirks is not None and not quirks.concern(path):
            quirks = None
        self._quirks = quirks
        self.engine_reply = None
        if quirks is not None:
            first = request_line(quirks.path(path))
            if (reply_to := quirks.replies.get(path)) is not None:
                self.engine_reply = reply_to(lead + bytes(body), int(time.time()))
            lead, body = b"", quirks.request(path, lead + bytes(body))
        lines = head.lines
        if upstream.is_remote or (shape is not None and shape.headers):
            lines = _lines_for(upstream, shape, head.forwarded)
        length = len(lead) + len(body)
        request = b"%b%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b%b" % (
            first,
            upstream.own_headers,
            lines,
            request_id,
            length,
            lead,
            b"" if length > openai.LARGE_BODY else bytes(body),
        )
        return request, body if length > openai.LARGE_BODY else b""

    def _may_pass(self, upstream: Upstream) -> bool:
        """Whether the upstream takes the request in the client's own words, but for the name."""
        quirks, shape = upstream.quirks, self.shape
        is_named = self._served_as is None or (quirks is not None and bool(quirks.served_name))
        changes = shape is not None and shape.changes_body
        return self.route.native_path in upstream.speaks and is_named and not changes

    def _changed(self, body: bytes | bytearray) -> bytes:
        """The request as the model's shape has it, under a name that its engine knows."""
        if not self.route.is_form:
            return shaped(bytes(body), self.shape, self.route.task, self._served_as)
        if self._served_as is None:
            return bytes(body)
        return forms.with_field(bytes(body), self._content_type, "model", self._served_as)

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


def _lines_for(upstream: Upstream, shape: Shape | None, headers: Headers) -> bytes:
    """The client's header lines as this upstream gets them: not all of them leave this machine,
    and a shape puts its own in the place of those of the same name."""
    if upstream.is_remote:
        headers = remotes.fit_to_leave(headers)
    if shape is not None and shape.headers:
        ours = [(name.encode(), text.encode()) for name, text in shape.headers.items()]
        names = {name for name, _ in ours}
        headers = [*(header for header in headers if header[0] not in names), *ours]
    return as_lines(headers)
