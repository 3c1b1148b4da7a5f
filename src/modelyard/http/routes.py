"""The inference routes: path -> the task it serves and the path an engine knows it by.

Laws of this file:
- A path listed here never reaches the ASGI application when it is POSTed to; every other one does.
- Several spellings may lead to one route; the engine always gets the same one.
- A route of another dialect than OpenAI's has a function that translates its requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from modelyard.core.specs import Task
from modelyard.dialects import anthropic, ollama, rerank, responses
from modelyard.dialects.base import Dialect, Translate
from modelyard.dialects.openai import OPENAI
from modelyard.dialects.tokens import COUNT_PATH


@dataclass(frozen=True, slots=True)
class Route:
    task: Task | None
    """What a model must serve to be asked here; None for what any model can be asked."""
    engine_path: str
    streams: bool = False
    """Whether `"stream": true` makes the answer an event stream."""
    dialect: Dialect = OPENAI
    translate: Translate | None = None
    """From a client's body to what the engine is asked at `engine_path`; None for the same."""
    native_path: str | None = None
    """Where an engine that speaks the dialect itself takes the request as the client wrote it."""
    is_form: bool = False
    """Whether requests are `multipart/form-data` in place of JSON."""
    engine_request: bytes = field(init=False, default=b"")
    """The first line of the request that an engine gets."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "engine_request", request_line(self.engine_path))

    def of(self, task: Task) -> Route:
        """This route for a request that turned out to be of this task."""
        if task is self.task:
            return self
        usual = OF_TASK[task]
        return replace(self, task=task, engine_path=usual.engine_path, streams=usual.streams)


def request_line(path: str) -> bytes:
    """The first line of a request to an engine's route."""
    return b"POST %b HTTP/1.1\r\n" % path.encode()


CHAT = Route(Task.CHAT, "/v1/chat/completions", streams=True)
COMPLETION = Route(Task.COMPLETION, "/v1/completions", streams=True)
INFILL = Route(Task.COMPLETION, "/infill", streams=True)
EMBEDDING = Route(Task.EMBEDDING, "/v1/embeddings")
POOLING = Route(Task.EMBEDDING, "/pooling")
RERANK = Route(Task.RERANK, "/v1/rerank", dialect=rerank.DIALECT, translate=rerank.translate)
SCORE = Route(Task.RERANK, "/v1/score")
CLASSIFICATION = Route(Task.CLASSIFICATION, "/classify")
MODERATION = Route(Task.CLASSIFICATION, "/v1/moderations")
TRANSCRIPTION = Route(Task.TRANSCRIPTION, "/v1/audio/transcriptions", streams=True, is_form=True)
TRANSLATION = Route(Task.TRANSCRIPTION, "/v1/audio/translations", streams=True, is_form=True)
SPEECH = Route(Task.SPEECH, "/v1/audio/speech")
IMAGE = Route(Task.IMAGE, "/v1/images/generations")
IMAGE_EDIT = Route(Task.IMAGE, "/v1/images/edits", is_form=True)
IMAGE_VARIATION = Route(Task.IMAGE, "/v1/images/variations", is_form=True)
TOKENIZE = Route(None, "/tokenize")
DETOKENIZE = Route(None, "/detokenize")
APPLY_TEMPLATE = Route(Task.CHAT, "/apply-template")

OF_TASK: Final[Mapping[Task, Route]] = {
    Task.CHAT: CHAT,
    Task.COMPLETION: COMPLETION,
    Task.EMBEDDING: EMBEDDING,
    Task.RERANK: RERANK,
    Task.CLASSIFICATION: CLASSIFICATION,
    Task.TRANSCRIPTION: TRANSCRIPTION,
    Task.SPEECH: SPEECH,
    Task.IMAGE: IMAGE,
}
"""OpenAI's own route for a task, or the usual one where OpenAI has none."""

INFERENCE: dict[bytes, Route] = {
    b"/v1/chat/completions": CHAT,
    b"/v1/completions": COMPLETION,
    b"/infill": INFILL,
    b"/v1/embeddings": EMBEDDING,
    b"/pooling": POOLING,
    b"/v1/rerank": RERANK,
    b"/v2/rerank": RERANK,
    b"/rerank": RERANK,
    b"/v1/score": SCORE,
    b"/score": SCORE,
    b"/classify": CLASSIFICATION,
    b"/v1/moderations": MODERATION,
    b"/v1/audio/transcriptions": TRANSCRIPTION,
    b"/v1/audio/translations": TRANSLATION,
    b"/v1/audio/speech": SPEECH,
    b"/v1/images/generations": IMAGE,
    b"/v1/images/edits": IMAGE_EDIT,
    b"/v1/images/variations": IMAGE_VARIATION,
    b"/tokenize": TOKENIZE,
    b"/detokenize": DETOKENIZE,
    b"/apply-template": APPLY_TEMPLATE,
}
"""Every path that is an inference when it is POSTed to. Dialects add theirs below."""

INFERENCE |= {
    b"/api/chat": replace(CHAT, dialect=ollama.DIALECT, translate=ollama.chat),
    b"/api/generate": replace(CHAT, dialect=ollama.DIALECT, translate=ollama.generate),
    b"/api/embed": replace(EMBEDDING, dialect=ollama.DIALECT, translate=ollama.embed),
    b"/api/embeddings": replace(EMBEDDING, dialect=ollama.DIALECT, translate=ollama.embeddings),
}

INFERENCE |= {
    b"/v1/responses": replace(CHAT, dialect=responses.DIALECT, translate=responses.translate),
    b"/v1/responses/input_tokens": Route(
        Task.CHAT, COUNT_PATH, dialect=responses.DIALECT, translate=responses.count
    ),
}

INFERENCE |= {
    anthropic.PATH.encode(): replace(
        CHAT,
        dialect=anthropic.ANTHROPIC,
        translate=anthropic.translate,
        native_path=anthropic.PATH,
    ),
    anthropic.COUNT_PATH.encode(): Route(
        Task.CHAT,
        COUNT_PATH,
        dialect=anthropic.ANTHROPIC,
        translate=anthropic.count_tokens,
        native_path=anthropic.COUNT_PATH,
    ),
}
