"""OpenAI's own dialect: the one that engines are asked in.

Source of the error shape: OpenAI's `error` object has four keys, all required, `param` and `code`
nullable (openapi.yaml). Its clients raise on a data event that holds such an object.
"""

from __future__ import annotations

from typing import Final

import msgspec

from modelyard.dialects.base import Dialect, Problem
from modelyard.dialects.sse import event


def error(problem: Problem) -> bytes:
    """The body of an error answer."""
    detail = {
        "message": problem.message,
        "type": error_type(problem.status),
        "param": problem.param,
        "code": problem.code,
    }
    return msgspec.json.encode({"error": detail})


def error_event(problem: Problem) -> bytes:
    """An error within a stream."""
    return event(error(problem))


def news(text: str, request_id: str, model: str, wall: float, *, is_first: bool) -> bytes:
    """A chunk of a streamed chat that says how the wait for its answer goes, as reasoning: clients
    show that apart from the answer and do not send it back. `wall` is in seconds since 1970."""
    role = {"role": "assistant"} if is_first else {}
    delta = {**role, "content": None, "reasoning_content": text}
    chunk = {
        "id": f"chatcmpl-{request_id}",
        "object": "chat.completion.chunk",
        "created": int(wall),
        "model": model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
    }
    return event(msgspec.json.encode(chunk))


def error_type(status: int) -> str:
    """OpenAI's coarse word for a status."""
    if status == 404:
        return "not_found_error"
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


OPENAI: Final = Dialect("openai", error)
