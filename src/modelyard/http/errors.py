"""Errors to HTTP: the only place that knows which error has which status.

OpenAI's clients retry 408, 409, 429 and 5xx unless `x-should-retry` says otherwise, and obey
`retry-after`.
"""

from __future__ import annotations

import math

from modelyard.core.errors import ModelyardError, Unauthorized
from modelyard.dialects import openai
from modelyard.dialects.base import Problem

STATUS: dict[str, int] = {
    "invalid_request": 400,
    "invalid_config": 422,
    "wrong_task": 400,
    "invalid_api_key": 401,
    "forbidden": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "request_cancelled": 410,  # clients retry 409 by themselves
    "request_too_large": 413,
    "request_target_too_long": 414,
    "unsupported_content_encoding": 415,
    "expectation_failed": 417,
    "upgrade_required": 426,
    "rate_limit_exceeded": 429,
    "request_head_too_large": 431,
    "internal_error": 500,
    "unsupported_transfer_encoding": 501,
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
    "http_version_not_supported": 505,
}

JSON_TYPE = (b"content-type", b"application/json")


def status_of(error: ModelyardError) -> int:
    """The status an error is answered with."""
    return STATUS.get(error.code, 500)


def problem_of(error: ModelyardError, request_id: str = "") -> Problem:
    """An error of ours, for a dialect to shape."""
    return Problem(status_of(error), str(error), error.code, error.param, request_id)


def openai_error(error: ModelyardError) -> bytes:
    """The body of an error answer, as OpenAI's API shapes it."""
    return openai.error(problem_of(error))


def headers_of(error: ModelyardError) -> list[tuple[bytes, bytes]]:
    """Headers that tell clients whether and when to try again."""
    headers = [JSON_TYPE, (b"x-should-retry", b"true" if error.retryable else b"false")]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
