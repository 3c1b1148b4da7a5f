"""Every error that Modelyard tells a person or a client about.

Laws of this file:
- A message says what failed and with which numbers; `hint` says what to do about it.
- `code` is stable and machine readable; `http/errors.py` alone turns it into a status.
- `retryable` says whether the same request can succeed later without anybody acting.
"""

from __future__ import annotations

from collections.abc import Sequence


class ModelyardError(Exception):
    """Base of all errors that may reach a user."""

    code = "internal_error"
    retryable = False
    hint: str | None = None
    param: str | None = None
    retry_after_s: float | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if hint is not None:
            self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidRequest(ModelyardError):
    """The request itself is wrong; sending it again cannot help."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param


class BodyTooLarge(ModelyardError):
    code = "request_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"the request body is larger than {limit_bytes} bytes",
            hint="raise server.max_body if such requests are wanted",
        )


class RequestTimeout(ModelyardError):
    """The client took too long to send its request."""

    code = "request_timeout"
    retryable = True


class Forbidden(ModelyardError):
    """The request came by a way that is not allowed (foreign host name, foreign web page)."""

    code = "forbidden"


class NotFound(ModelyardError):
    """What is named is not there."""

    code = "not_found"


class Unauthorized(ModelyardError):
    """Nobody knows who asks: no key, a wrong one, or one that has expired."""

    code = "invalid_api_key"


class RateLimited(ModelyardError):
    """The key's limits do not allow the request now."""

    code = "rate_limit_exceeded"
    retryable = True

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestCancelled(ModelyardError):
    """Somebody who may has cancelled the request."""

    code = "request_cancelled"


class ModelNotFound(ModelyardError):
    code = "model_not_found"
    param = "model"

    def __init__(self, name: str, near: Sequence[str] = ()) -> None:
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        super().__init__(f"there is no model named {name!r}{meant}")
        self.near = tuple(near)


class WrongTask(ModelyardError):
    """The model exists but does not serve the task of this route."""

    code = "wrong_task"
    param = "model"

    def __init__(self, model: str, tasks: Sequence[str], asked: str) -> None:
        has = ", ".join(sorted(tasks))
        super().__init__(f"model {model!r} serves {has}, and this route asks for {asked}")


class ModelTooLarge(ModelyardError):
    """The model cannot fit on the devices whatever is stopped."""

    code = "insufficient_memory"


class NoDevice(ModelyardError):
    """No profile of the model finds the devices it requires."""

    code = "no_device"


class QueueFull(ModelyardError):
    code = "queue_full"
    retryable = True
    retry_after_s = 5.0

    def __init__(self, model: str, size: int, retry_after_s: float = 5.0) -> None:
        super().__init__(f"{size} requests already wait for model {model!r}")
        self.retry_after_s = retry_after_s


class WaitTimeout(ModelyardError):
    """A request waited longer than `max_wait` for its model."""

    code = "wait_timeout"
    retryable = True
    retry_after_s = 10.0


class EngineStartFailed(ModelyardError):
    """The engine of a model did not become ready."""

    code = "engine_start_failed"

    def __init__(self, model: str, reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"the engine of model {model!r} did not start: {reason}", hint=hint)


class EngineDied(ModelyardError):
    """The engine ended while it was answering."""

    code = "engine_died"
    retryable = True

    def __init__(self, model: str, detail: str = "the connection to it closed") -> None:
        super().__init__(f"the engine of model {model!r} ended before the answer did: {detail}")


class EngineTimeout(ModelyardError):
    code = "engine_timeout"
    retryable = True

    def __init__(self, model: str, silent_s: float) -> None:
        super().__init__(
            f"the engine of model {model!r} sent nothing for {silent_s:g} s",
            hint="raise response_timeout if such pauses are normal for this model",
        )


class BadEngineAnswer(ModelyardError):
    """The engine's answer is not valid HTTP."""

    code = "bad_engine_answer"

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(f"the engine of model {model!r} sent an answer that is not HTTP: {detail}")


class UpstreamsFailed(ModelyardError):
    """No upstream of a remote model could serve the request."""

    code = "upstreams_failed"
    retryable = True

    def __init__(self, model: str, said: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"no upstream of model {model!r} could serve the request: {said}")
        self.retry_after_s = retry_after_s


class UpstreamRedirects(ModelyardError):
    """An engine or a remote answered with a redirect, which is not followed."""

    code = "upstream_redirects"

    def __init__(self, model: str, status: int, target: str) -> None:
        to = f" to {target}" if target else ""
        super().__init__(
            f"the upstream of model {model!r} answered with a redirect (status {status}){to}",
            hint="redirects are not followed, because they would carry the request and its key "
            "elsewhere; write the final address into the configuration",
        )


class UpstreamRefusesKey(ModelyardError):
    """A remote does not accept the key that is configured for it."""

    code = "upstream_refuses_key"

    def __init__(self, model: str, upstream: str, status: int) -> None:
        super().__init__(
            f"{upstream} does not accept the key configured for model {model!r} (status {status})",
            hint="set the upstream's `key` in the configuration",
        )


class ModelStopped(ModelyardError):
    """Somebody stopped or removed the model while the request waited."""

    code = "model_stopped"
    retryable = True


class ShuttingDown(ModelyardError):
    code = "shutting_down"
    retryable = True
    retry_after_s = 5.0

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class LaunchError(ModelyardError):
    """A process could not be started at all (program missing, not executable, bad folder)."""

    code = "launch_failed"


class ConfigError(ModelyardError):
    """All problems of a configuration at once, one line each, with their key paths."""

    code = "invalid_config"

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        listed = "\n".join(f"  {problem}" for problem in problems)
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(f"{where}: {len(problems)} {noun}\n{listed}")
        self.problems = tuple(problems)
