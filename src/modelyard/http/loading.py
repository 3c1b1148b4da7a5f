"""What a client hears while it waits: how the load goes, that somebody is there, or nothing.

Laws of this file:
- Only requests that have waited for `server.heartbeat_after` come here; no other one pays for it.
- A heartbeat is the dialect's way of saying nothing. How the load goes is said only where somebody
  asked for it, in a form that no client takes for the answer.
- Names of other models are not told: whoever may not use them learns nothing of them.
- One line for each change, and a heartbeat where nothing changes.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Final

from modelyard.core.lifecycle import State
from modelyard.core.specs import ModelSpec, Task
from modelyard.dialects import openai
from modelyard.dialects.base import Reply, Talks

if TYPE_CHECKING:
    from modelyard.config import Server
    from modelyard.http.request_head import RequestHead
    from modelyard.http.routes import Route
    from modelyard.runtime.loop import Loop

LOOK_EVERY_S: Final = 1.0
"""How often is looked whether there is news."""
FARTHEST: Final = 100
"""Places of a queue that are counted."""
PERCENT_STEP: Final = 10

_WORDS: Final = {
    State.READY: "is busy",
    State.STARTING: "is starting",
    State.RESTARTING: "is starting again",
    State.WAKING: "is waking up",
    State.SUSPENDING: "is going to sleep and wakes again after that",
    State.STOPPING: "is stopping and starts again after that",
    State.BACKOFF: "failed to start and is tried again",
}
"""Every other state waits for memory."""


class Company:
    """Keeps one client company while it waits."""

    __slots__ = ("_began", "_every_s", "_heartbeat", "_id", "_last", "_name", "_said", "_tells",
                 "_told")  # fmt: skip

    def __init__(
        self,
        head: RequestHead,
        route: Route,
        spec: ModelSpec,
        settings: Server,
        *,
        began: float,
        request_id: str,
        name: str,
    ) -> None:
        """`began` is when the request came, `name` what the client calls the model."""
        self._heartbeat = route.dialect.heartbeat if _beats(head, settings) else None
        self._tells = route.task is Task.CHAT and _tells(head, spec)
        self._every_s = settings.heartbeat_every_s
        self._began = began
        self._id = request_id
        self._name = name
        self._said = ""
        self._told = 0
        """How often something was told."""
        self._last = 0.0

    def say(self, now: float, line: str, reply: Reply | None, wall: float) -> bytes | None:
        """What the client gets now, None for nothing at all; `line` says how its wait goes, and
        `wall` is `now` in seconds since 1970."""
        if self._tells and line != self._said:
            form = self._form(f"{self._name}: {line}\n", reply, wall)
            if form is not None:
                self._said, self._last = line, now
                self._told += 1
                return form
        if self._heartbeat is None or now - self._last < self._every_s:
            return None
        self._last = now
        return self._heartbeat

    def next_look(self, now: float) -> float:
        """When there may be something to say again."""
        if self._heartbeat is None and not self._tells:
            return float("inf")
        return now + (min(LOOK_EVERY_S, self._every_s) if self._tells else self._every_s)

    def line(self, yard: Loop, spec: ModelSpec, ticket: int, now: float) -> str:
        """How the wait goes, in a few words; `ticket` is 0 once a replica has been granted."""
        if not self._tells:
            return ""
        if not ticket:
            return f"ready after {now - self._began:.0f} s" if not self._is_ready_said else self._said
        return _progress(yard, spec, ticket)

    @property
    def _is_ready_said(self) -> bool:
        return self._said.startswith("ready")

    def resume(self, reply: Reply | None, wall: float) -> None:
        """Another reply goes on where one left off that has told nothing but the wait."""
        for _ in range(self._told):
            self._form("", reply, wall)

    def _form(self, text: str, reply: Reply | None, wall: float) -> bytes | None:
        """The dialect's form of a text about the wait; None where it has none."""
        if isinstance(reply, Talks):
            return reply.waiting(wall)
        if reply is None and self._heartbeat_is_comment:
            return openai.waiting(text, self._id, self._name, wall, is_first=not self._told)
        return None
