"""Waits until an order to a model is carried out, telling how it goes.

Laws of this file:
- The order is posted first and the news read after it: the news begin with the present state, so
  nothing can be missed and nothing old be taken for an answer.
- A wait ends: with what was wanted, with why it cannot come, or at its time-out.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator
from contextlib import closing

from modelyard.cli.progress import Listener, Progress, describe
from modelyard.cli.words import doing, span
from modelyard.client import ApiError, Client, ConnectionLost
from modelyard.core.errors import EngineStartFailed, ModelNotFound, ModelStopped, ModelyardError
from modelyard.core.views import Event, ModelView

LAST_LINES = 12
"""Log lines shown of an engine that did not start."""


class NotInTime(ModelyardError):
    """The time a person gave is over; the server goes on."""

    code = "wait_timeout"
    retryable = True


def until_ready(client: Client, model: str, timeout_s: float | None) -> ModelView:
    """Wait until a model that was started or restarted is ready.

    Raises EngineStartFailed with the last lines of its log, ModelStopped when somebody else has
    stopped it, ModelNotFound when it is removed, NotInTime.
    """

    def ready(view: ModelView) -> bool:
        if view.state == "failed":
            raise _start_failed(client, view)
        if view.state == "stopped" and view.waiting_for is None:
            raise ModelStopped(
                f"model {view.id!r} was stopped before it was ready",
                hint="somebody else stopped it, or another model needed its room; start it again",
            )
        return view.state == "ready"

    return _until(client, model, ready, timeout_s)


def until_stopped(client: Client, view: ModelView, timeout_s: float | None) -> ModelView:
    """Wait until the run that `view` shows is over. Raises NotInTime."""

    def over(now: ModelView) -> bool:
        return now.state in ("stopped", "failed", "backoff") or now.run > view.run

    return _until(client, view.id, over, timeout_s)


def until_asleep(client: Client, view: ModelView, timeout_s: float | None) -> ModelView:
    """Wait until the run that `view` shows has gone to sleep, or has ended. Raises NotInTime.

    An engine that does not give its memory back is stopped by the server: that ends the wait, too.
    """

    def over(now: ModelView) -> bool:
        return now.state not in ("suspending", "stopping") or now.run > view.run

    return _until(client, view.id, over, timeout_s)


def _until(
    client: Client, model: str, reached: Callable[[ModelView], bool], timeout_s: float | None
) -> ModelView:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    last: ModelView | None = None
    with Progress() as progress, closing(_news(client, model, deadline)) as news:
        for last in news:
            if reached(last):
                return last
            progress.show(describe(last))
    now = f"; it is {doing(last)}" if last else ""
    raise NotInTime(
        f"model {model!r} needs longer than {span(timeout_s)}{now}",
        hint="the server goes on; `modelyard ps` tells how far it is",
    )


def _news(client: Client, model: str, deadline: float | None) -> Generator[ModelView, None, None]:
    """The model as it is, and after each change, until the deadline."""
    mail: queue.SimpleQueue[Event | ModelyardError | None] = queue.SimpleQueue()
    with Listener(client.url, mail.put, mail.put):
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            try:
                news = mail.get(timeout=None if left is None else max(0.0, left))
            except queue.Empty:
                return
            if isinstance(news, ModelyardError):
                raise news
            if news is None:
                raise ConnectionLost(client.url, "the server ended its news")
            if news.topic == "removed" and news.data == model:
                raise ModelNotFound(model)
            if isinstance(news.data, ModelView) and news.data.id == model:
                yield news.data


def _start_failed(client: Client, view: ModelView) -> EngineStartFailed:
    """The reason with the last lines of the engine's log, and where all of it is."""
    reason = view.reason or "no reason was given"
    try:
        log = client.logs(view.id, LAST_LINES)
    except ApiError as error:
        return EngineStartFailed(view.id, reason, hint=f"its log cannot be read: {error.message}")
    lines = "".join(f"\n  | {line.text}" for line in log.lines)
    where = f"\nLogs: {log.path}" if log.path else ""
    return EngineStartFailed(view.id, f"{reason}{lines}{where}")
