"""Errors to HTTP: the only place that knows which error has which status.

Source of the shapes: OpenAI's `error` object has four keys, all required, `param` and `code`
nullable; its clients retry 408, 409, 429 and 5xx unless `x-should-retry` says otherwise, and obey
`retry-after`.
"""

from __future__ import annotations

import msgspec

from modelyard.core.errors import ModelyardError

STATUS: dict[str, int] = {
    "invalid_request": 400,
    "invalid_config": 422,
    "wrong_task": 400,
    "forbidden": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "request_too_large": 413,
    "internal_error": 500,
    "bad_engine_answer": 502,
    "engine_died": 502,
    "upstreams_failed": 502,
    "upstream_redirects": 502,
    "upstream_refuses_key": 502,
    "engine_start_failed": 503,
    "insufficient_memory": 503,
    "no_device": 503,
    "queue_full": 503,
    "model_stopped": 503,
    "shutting_down": 503,
    "engine_timeout": 504,
    "wait_timeout": 504,
}

JSON_TYPE = (b"content-type", b"application/json")


def status_of(error: ModelyardError) -> int:
    """The status an error is answered with."""
    return STATUS.get(error.code, 500)


def openai_type(status: int) -> str:
    """OpenAI's coarse word for a status."""
    if status == 404:
        return "not_found_error"
    if status in (401, 403):
        return "permission_error"
    return "invalid_request_error" if status < 500 else "server_error"


def openai_error(error: ModelyardError) -> bytes:
    """The body of an error answer, as OpenAI's API shapes it."""
    return openai_body(status_of(error), str(error), error.code, error.param)


def openai_body(status: int, message: str, code: str | None, param: str | None) -> bytes:
    """An OpenAI error object from its parts."""
    detail = {"message": message, "type": openai_type(status), "param": param, "code": code}
    return msgspec.json.encode({"error": detail})


def headers_of(error: ModelyardError) -> list[tuple[bytes, bytes]]:
    """Headers that tell clients whether and when to try again."""
    headers = [JSON_TYPE, (b"x-should-retry", b"true" if error.retryable else b"false")]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
    return headers
