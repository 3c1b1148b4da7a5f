"""Exit codes, and how errors are told: one sentence on stderr, never a traceback.

Laws of this file:
- 0 ok, 1 failed, 2 usage, 3 server not running, 4 not found, 5 refused by policy, 130 interrupted.
- The code follows from the error's `code` alone, so that the server's errors and ours agree.
"""

from __future__ import annotations

import sys

from modelyard.core.errors import ModelyardError

OK, FAILED, USAGE, NOT_RUNNING, NOT_FOUND, REFUSED = range(6)
INTERRUPTED = 130
"""128 + SIGINT, as shells count."""

_BY_CODE = {
    "invalid_config": USAGE,
    "invalid_request": USAGE,
    "invalid_usage": USAGE,
    "server_not_running": NOT_RUNNING,
    "model_not_found": NOT_FOUND,
    "not_found": NOT_FOUND,
    "forbidden": REFUSED,
    "insufficient_memory": REFUSED,
    "invalid_api_key": REFUSED,
    "no_device": REFUSED,
    "queue_full": REFUSED,
    "rate_limit_exceeded": REFUSED,
    "request_too_large": REFUSED,
    "wrong_task": REFUSED,
}

_ADVICE = {
    "invalid_api_key": "set MODELYARD_API_KEY to a key that the server knows",
    "model_not_found": "`modelyard list` shows all models",
}
"""What to do about errors of the server that only the command line can say."""


class BadUsage(ModelyardError):
    """A command cannot be carried out as it was written."""

    code = "invalid_usage"


def code_of(error: ModelyardError) -> int:
    """The exit code for an error."""
    return _BY_CODE.get(error.code, FAILED)


def tell(error: ModelyardError) -> int:
    """Say what went wrong on stderr, and return the exit code."""
    from modelyard.cli.words import clean

    advice = _ADVICE.get(error.code)
    text = clean(str(error)) + (f"; {advice}" if advice else "")
    print(f"modelyard: {text}", file=sys.stderr)
    return code_of(error)
