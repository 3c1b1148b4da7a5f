"""How the fake vLLM answers inference requests, and when it must wait or break off.

Laws of this file:
- Only the standard library is imported.
- While scheduling is paused nothing is generated; requests are taken and wait, for ever if need be.
- An aborted request ends well on the wire: what was said so far and finish_reason `abort`.
- An answer tells who gave it and to what; garbage tells neither.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from modelyard.testing.fake_answers import Completion, embeddings, ranking
from modelyard.testing.fake_http import (
    Fault,
    Refused,
    begin_events,
    end_events,
    error_body,
    send_event,
    send_json,
)

GARBAGE = "!"
_DIMENSION = 8


class EngineDead(Exception):
    """The engine process has ended."""


def engine_dead() -> Refused:
    """What a client is told of it."""
    return Refused(500, "EngineCore encountered an issue", "EngineDeadError")


class Engine(Protocol):
    """What performs the steps."""

    async def ask(self, op: str, **rest: object) -> dict[str, Any]: ...


class Server(Protocol):
    """What an answer needs to know of the server that gives it."""

    @property
    def args(self) -> argparse.Namespace: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def scheduler(self) -> Scheduler: ...
    @property
    def max_len(self) -> int: ...


@dataclass(eq=False)
class Ticket:
    """One request inside the engine."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it was aborted."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is no longer inside, for whatever reason."""
    scheduled: bool = False
    spared: bool = False
    """Whether it goes on although scheduling is paused."""


class Scheduler:
    """Which requests are inside, and whether they may go on."""

    def __init__(self) -> None:
        self.empty = asyncio.Event()
        self.empty.set()
        self.killed = False
        self._tickets: list[Ticket] = []
        self._going = asyncio.Event()
        self._going.set()
        self._prompt_tokens = 0
        self._generation_tokens = 0

    @property
    def active(self) -> int:
        return len(self._tickets)

    @contextmanager
    def ticket(self) -> Iterator[Ticket]:
        """A request inside the engine, until the block ends."""
        ticket = Ticket()
        self._tickets.append(ticket)
        self.empty.clear()
        try:
            yield ticket
        finally:
            self._tickets.remove(ticket)
            ticket.left.set()
            if not self._tickets:
                self.empty.set()

    async def may_go(self, ticket: Ticket) -> bool:
        """Wait while scheduling is paused; false if the request was aborted instead."""
        if not ticket.spared and not self._going.is_set():
            await self._either(self._going, ticket.ended)
        if self.killed:
            raise Fault("the engine died")
        ticket.scheduled = True
        return not ticket.ended.is_set()

    @staticmethod
    async def _either(*events: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def pause(self, *, spare: bool = False) -> None:
        """Generate nothing more until `resume`; `spare` lets those that are inside finish."""
        if spare and self._going.is_set():
            for ticket in self._tickets:
                ticket.spared = True
        self._going.clear()

    def resume(self) -> None:
        self._going.set()

    def abort(self) -> None:
        """End every request that is inside now; those that come later are not meant."""
        for ticket in self._tickets:
            ticket.ended.set()

    def kill(self) -> None:
        """Break off every request: the engine is dead."""
        self.killed = True
        self.abort()

    async def finish(self) -> None:
        """Wait until those that the pause spared have ended."""
        for ticket in [ticket for ticket in self._tickets if ticket.spared]:
            await ticket.left.wait()

    def count(self, prompt: int, generated: int) -> None:
        self._prompt_tokens += prompt
        self._generation_tokens += generated

    def metrics(self, model: str, level: int) -> str:
        """In Prometheus's text format, with the names of vLLM 0.32."""
        running = sum(ticket.scheduled for ticket in self._tickets)
        labels = f'engine="0",model_name="{model}"'
        values: dict[str, float] = {
            f"num_requests_running{{{labels}}}": running,
            f"num_requests_waiting{{{labels}}}": len(self._tickets) - running,
            f"kv_cache_usage_perc{{{labels}}}": min(1.0, running / 100),
            f"num_preemptions_total{{{labels}}}": 0,
            f"prompt_tokens_total{{{labels}}}": self._prompt_tokens,
            f"generation_tokens_total{{{labels}}}": self._generation_tokens,
        }
        for state, of_level in (("awake", 0), ("weights_offloaded", 1), ("discard_all", 2)):
            named = f'engine_sleep_state{{{labels},sleep_state="{state}"}}'
            values[named] = level == of_level
        lines = []
        for name, value in values.items():
            plain = name.partition("{")[0]
            kind = "counter" if plain.endswith("_total") else "gauge"
            lines += [f"# TYPE vllm:{plain} {kind}", f"vllm:{name} {float(value)}"]
        return "\n".join(dict.fromkeys(lines)) + "\n"


class Generation:
    """One chat or plain completion. Raises Refused for what vLLM refuses."""

    def __init__(self, server: Server, name: str, body: dict[str, Any], *, chat: bool) -> None:
        if chat and not isinstance(body.get("messages"), list):
            raise Refused(400, "Field required: messages", "BadRequestError")
        self._server = server
        self._body = body
        self._completion = Completion(name, body, server.args.fake_tokens, chat=chat)
        self._prompt = len(self._completion.prompt.split())
        asked = body.get("max_completion_tokens") or body.get("max_tokens") or 0
        if self._prompt + int(asked) > server.max_len:
            raise Refused(
                400,
                f"This model's maximum context length is {server.max_len} tokens. However, you"
                f" requested {self._prompt + int(asked)} tokens.",
                "BadRequestError",
            )
        self._said: list[str] = []
        self._reason = "length"

    async def answer(self, writer: asyncio.StreamWriter) -> None:
        with self._server.scheduler.ticket() as ticket:
            if self._body.get("stream"):
                await self._stream(ticket, writer)
            else:
                async for _ in self._tokens(ticket):
                    pass
                whole = self._completion.whole("".join(self._said))
                send_json(writer, 200, self._ended(whole))
        self._server.scheduler.count(self._prompt, len(self._said))

    async def _stream(self, ticket: Ticket, writer: asyncio.StreamWriter) -> None:
        begin_events(writer)
        try:
            async for token in self._tokens(ticket):
                send_event(writer, json.dumps(self._completion.part(token)))
                await writer.drain()
            for part in self._completion.ending():
                send_event(writer, json.dumps(self._ended(part)))
        except EngineDead:
            # The status is sent: vLLM, too, tells of it inside the stream and ends that as usual.
            send_event(writer, json.dumps(error_body(engine_dead())))
        end_events(writer)

    async def _tokens(self, ticket: Ticket) -> AsyncIterator[str]:
        server, tps = self._server, self._server.args.fake_tps
        for index, word in enumerate(self._completion.tokens()):
            if not await server.scheduler.may_go(ticket):
                self._reason = "abort"
                return
            if not index:
                # The first step tells whether there is a device, and what lies in the weights.
                garbage = (await server.engine.ask("step"))["garbage"]
            self._said.append(GARBAGE if garbage else word)
            yield self._said[-1]
            if tps:
                await asyncio.sleep(1 / tps)

    def _ended(self, part: dict[str, Any]) -> dict[str, Any]:
        for choice in part["choices"]:
            choice["finish_reason"] = self._reason
        if "usage" in part:
            length = len(self._said)
            part["usage"].update(completion_tokens=length, total_tokens=self._prompt + length)
        return part


async def pooled(
    server: Server, name: str, path: str, body: dict[str, Any], writer: asyncio.StreamWriter
) -> None:
    """Answer an embedding or a rerank request."""
    with server.scheduler.ticket() as ticket:
        if not await server.scheduler.may_go(ticket):
            raise Refused(500, "the request was aborted")
        garbage = (await server.engine.ask("step"))["garbage"]
        source = GARBAGE if garbage else name
        if path.endswith("rerank"):
            send_json(writer, 200, ranking(name, body))
        else:
            send_json(writer, 200, {**embeddings(source, _DIMENSION, body), "model": name})
