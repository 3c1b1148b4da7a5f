"""What a client hears while it waits: how the load goes, that somebody is there, or nothing.

Laws of this file:
- Only requests that have waited for `server.heartbeat_after` come here; no other one pays for it.
- A heartbeat is the dialect's way of saying nothing. How the load goes is said only where somebody
  asked for it, in a form that no client takes for the answer.
- Names of other models are not told: whoever may not use them learns nothing of them.
- One line for each change, and a heartbeat where nothing changes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Final

from modelyard.core.lifecycle import State
from modelyard.core.specs import ModelSpec, Task
from modelyard.core.state import ModelState
from modelyard.dialects import openai
from modelyard.dialects.base import Reply, WaitingReply

if TYPE_CHECKING:
    from modelyard.config import Server
    from modelyard.http.request_head import RequestHead
    from modelyard.http.routes import Route
    from modelyard.runtime.loop import Loop

HEADER: Final = b"x-modelyard-loading-state"
LOOK_EVERY_S: Final = 1.0
"""How often is looked whether there is news."""
FARTHEST: Final = 100
"""Places of a queue that are counted."""
PERCENT_STEP: Final = 10

_WORDS: Final[Mapping[State, str]] = {
    State.READY: "is busy",
    State.STARTING: "is starting",
    State.RESTARTING: "is starting again",
    State.WAKING: "is waking up",
    State.SUSPENDING: "is going to sleep and wakes again after that",
    State.STOPPING: "is stopping and starts again after that",
    State.BACKOFF: "failed to start and is tried again",
}
"""In every other state a model waits for memory."""


class Company:
    """Keeps one client company while it waits."""

    __slots__ = (
        "_began", "_dialect", "_every_s", "_heartbeat", "_id", "_last", "_name", "_said", "_tells",
        "_told",
    )  # fmt: skip

    def __init__(
        self,
        head: RequestHead,
        route: Route,
        spec: ModelSpec,
        settings: Server,
        *,
        began: float,
        name: str,
        request_id: str,
    ) -> None:
        """`began` is when the request came, `name` what its client calls the model."""
        self._dialect = route.dialect
        self._heartbeat = route.dialect.heartbeat if _hears_beats(head, settings) else None
        self._tells = route.task is Task.CHAT and _wants_news(head, spec)
        self._every_s = settings.heartbeat_every_s
        self._began = began
        self._name = name
        self._id = request_id
        self._said = ""
        self._told = 0
        """How often news were told."""
        self._last = -math.inf

    def word(
        self, yard: Loop, model: str, ticket: int, reply: Reply | None, now: float
    ) -> bytes | None:
        """What the client gets now; None for nothing at all.

        `ticket` is the request's in the queue of `model`, 0 once a replica has been granted.
        """
        if self._tells:
            line = _progress(yard, model, ticket) if ticket else self._ready(now)
            if line != self._said:
                self._said = line
                news = self._form(f"{self._name}: {line}\n", reply)
                if news is not None:
                    self._last = now
                    return news
        if self._heartbeat is None or now < self._last + self._every_s:
            return None
        self._last = now
        return self._heartbeat

    def next_look(self, now: float) -> float:
        """When there may be something to say again."""
        if self._tells:
            return now + min(LOOK_EVERY_S, self._every_s)
        return math.inf if self._heartbeat is None else now + self._every_s

    def resume(self, reply: Reply | None) -> None:
        """Bring a fresh reply to where the one before it was, which had told nothing but news."""
        for _ in range(self._told):
            if isinstance(reply, WaitingReply):
                reply.waiting(time.time())

    def _ready(self, now: float) -> str:
        if not self._said or self._said.startswith("ready"):  # said before, or waited for nobody
            return self._said
        return f"ready after {now - self._began:.0f} s"

    def _form(self, text: str, reply: Reply | None) -> bytes | None:
        """The dialect's form of a text about the wait; None where it has none."""
        if isinstance(reply, WaitingReply):
            self._told += 1
            return reply.waiting(time.time())
        if reply is not None or self._dialect is not openai.OPENAI:
            return None
        self._told += 1
        return openai.news(text, self._id, self._name, time.time(), is_first=self._told == 1)


def _hears_beats(head: RequestHead, settings: Server) -> bool:
    """Whether heartbeats are sent to this client."""
    key = head.caller.key
    wanted = settings.heartbeats
    if key is not None and key.heartbeats is not None:
        wanted = key.heartbeats
    if not wanted or not settings.no_heartbeats_for:
        return wanted
    agent = head.said(b"user-agent").decode("latin-1").lower()
    return not any(fnmatchcase(agent, each.lower()) for each in settings.no_heartbeats_for)


def _wants_news(head: RequestHead, spec: ModelSpec) -> bool:
    """Whether somebody asked to hear how the load goes."""
    said = head.said(HEADER).strip().lower()
    if said in (b"true", b"1"):
        return True
    return spec.loading_state and said not in (b"false", b"0")


def _progress(yard: Loop, model: str, ticket: int) -> str:
    """How far a model is for whom waits for it with this ticket."""
    slot = yard.scheduler.models.get(model)
    if slot is None:
        return "is gone"
    return _phase(yard, slot) + _place(slot, ticket)


def _phase(yard: Loop, slot: ModelState) -> str:
    run = yard.runs.get((slot.spec.id, slot.best.life.run))
    progress = run.progress if run is not None else None
    if slot.state is not State.STARTING or progress is None:
        return _WORDS.get(slot.state, "waits for memory")
    if progress.percent is None:
        return progress.phase
    return f"{progress.phase}, {int(progress.percent) // PERCENT_STEP * PERCENT_STEP} %"


def _place(slot: ModelState, ticket: int) -> str:
    """The place in a queue of several; empty for who waits alone or far behind."""
    if len(slot.queue) < 2:
        return ""
    ahead = islice(slot.queue.in_order(), FARTHEST)
    place = next((at for at, each in enumerate(ahead, start=1) if each.ticket == ticket), 0)
    return f", place {place} of {len(slot.queue)} in its queue" if place else ""
