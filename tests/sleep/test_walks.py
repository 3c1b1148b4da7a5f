"""Random walks of a whole server: real engine processes, fake cards that keep books.

Each seed builds a machine and models, does at random what people, clients and fate do, lets it
settle, and then asks what must be true whatever happened. MODELYARD_WALKS=200 walks 200 seeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelyard.config import Config, Devices
from modelyard.core.lifecycle import State
from modelyard.core.policy import Policy
from modelyard.core.specs import Limits, ModelSpec
from modelyard.core.state import ReplicaState
from modelyard.devices.base import Probe
from modelyard.runtime import memory_watch
from modelyard.runtime.loop import Loop
from modelyard.runtime.remote_run import Run
from modelyard.testing.fake_books import Book
from modelyard.testing.fake_gpu import HOST, FakeGpuProbe, FakeHostProbe, OutOfMemory
from modelyard.testing.fake_page import STRANGER, Event
from modelyard.testing.server import running

CARD = "RTX 4060"
WALKS = int(os.environ.get("MODELYARD_WALKS", "6"))
STEPS = 20
RESERVE_MIB = 100
NOISE_MIB = 16
MARGIN_MIB = 80
"""By how much a claim may exceed the most that was ever held: what is learned from measurements has
a margin of at most 64 MiB and is rounded up to 16, and these models take 50 less than declared."""
AT_REST = frozenset({State.STOPPED, State.READY, State.ASLEEP, State.FAILED})
CLEAN = frozenset(
    [
        *("engine_died", "engine_start_failed", "engine_timeout", "insufficient_memory"),
        *("model_stopped", "no_device", "wait_timeout"),
        "EngineCore encountered an issue",  # a vLLM's own, whose engine process was killed
    ]
)
"""Errors that clients may be told in a walk, in which engines are killed and cards vanish."""
FLAWS = (
    *[()] * 5,
    ("--fake-leak", "120MiB"),
    ("--fake-wake-fails",),
    ("--fake-crash-on-wake",),
    ("--fake-lie-about-sleep",),
)

pytestmark = pytest.mark.usefixtures("nothing_left")


@dataclass(slots=True)
class Walk:
    """One walk: its dice, the machine it is on, and what its clients heard."""

    dice: random.Random
    book: Book
    loop: Loop
    http: httpx.AsyncClient
    names: Sequence[str]
    fateful: bool
    """Whether strangers and cards do as they like, which no scheduler can foresee."""
    heard: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    clients: list[asyncio.Task[None]] = field(default_factory=list)

    # ---------------------------------------------------------------------------------- the steps

    async def step(self) -> None:
        """Do one thing."""
        steps: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (9, self.ask),
            (4, self.ask_and_leave),
            (6, self.order),
            (1, self.kill),
        ]
        if self.fateful:
            steps += [(2, self.stranger), (1, self.card)]
        weights, does = zip(*steps, strict=True)
        await self.dice.choices(does, weights)[0]()
        if self.dice.random() < 0.7:
            await asyncio.sleep(self.dice.uniform(0, 0.15))

    async def ask(self) -> None:
        for _ in range(self.dice.choice((1, 1, 3))):
            work = self.request(self.dice.choice(self.names), self.dice.random() < 0.5)
            self.clients.append(asyncio.create_task(work, name="client"))

    async def ask_and_leave(self) -> None:
        await self.ask()
        client = self.clients[-1]
        asyncio.get_running_loop().call_later(self.dice.uniform(0, 0.3), client.cancel)

    async def order(self) -> None:
        orders = ("sleep?level=1", "sleep?level=2", "sleep?level=2", "wake", "stop", "restart")
        path = f"/api/models/{self.dice.choice(self.names)}/{self.dice.choice(orders)}"
        answer = await self.http.post(path)
        if answer.status_code != 202 and answer.json()["error"]["code"] not in CLEAN:
            self.wrong.append(f"{path}: {answer.status_code} {answer.text}")

    async def kill(self) -> None:
        """Kill one process of an engine, whichever it is."""
        pids = [pid for run in self.loop.runs.values() if run.pid for pid in run.pids() if pid > 0]
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.dice.choice(pids), signal.SIGKILL)

    async def stranger(self) -> None:
        """Somebody else takes memory that no claim of ours is meant for, or goes."""
        card = self.dice.choice([gpu.id for gpu in self.book.accounts()] or [HOST])
        mib = self.dice.choice((0, 500, 1500, 3000))
        with contextlib.suppress(OutOfMemory):
            if mib <= self.unclaimed(card) and card != HOST:
                self.book.stranger(card, mib)

    async def card(self) -> None:
        """A card vanishes, or all that have vanished come back."""
        present = [gpu.id for gpu in self.book.accounts()]
        if len(present) == len(self.cards):
            self.book.vanish(self.dice.choice(present))
        else:
            self.repair()

    # -------------------------------------------------------------------------------- the clients

    async def request(self, model: str, is_stream: bool) -> None:
        """Ask, and note what came back; what may not come back is noted as wrong."""
        messages = [{"role": "user", "content": f"hello {model}"}]
        tokens = self.dice.randrange(4, 20)
        body = {"model": model, "messages": messages, "max_tokens": tokens, "stream": is_stream}
        try:
            answer = await self.http.post("/v1/chat/completions", json=body)
        except httpx.HTTPError as broken:
            # An engine may break; the connection to us may not. A stream says how it ended.
            self.wrong.append(f"{model}: {broken!r}")
            return
        said, reason, error = _read(answer)
        self.heard[error or "answered"] += 1
        if error and error not in CLEAN:
            self.wrong.append(f"{model}: {answer.status_code} {answer.text}")
        if not error and (reason != "length" or not said.startswith(f"{model}: echo of")):
            self.wrong.append(f"{model} said {said!r} and ended by {reason}")

    # ---------------------------------------------------------------------------------- the truth

    @property
    def cards(self) -> list[str]:
        return sorted({event.device for event in self.book.events()} - {HOST, ""})

    def unclaimed(self, card: str) -> int:
        held = sum(slot.held_mib.get(card, 0) for slot in self.loop.scheduler.models.values())
        account = self.book.account(card)
        own = sum(account.by_process_mib.values())
        return account.total_mib - RESERVE_MIB - max(held, own) - (account.used_mib - own)

    def repair(self) -> None:
        present = {gpu.id for gpu in self.book.accounts()}
        for card in self.lost(present):
            self.book.come_back(card)

    def lost(self, present: set[str]) -> list[str]:
        vanished = {event.device for event in self.book.events() if event.what == "vanish"}
        return sorted(vanished - present)

    async def settle(self) -> None:
        """Undo what fate did, and wait until every client is served and nothing moves."""
        self.repair()
        for gpu in self.book.accounts():
            self.book.stranger(gpu.id, 0)
        await asyncio.gather(*self.clients, return_exceptions=True)
        async with asyncio.timeout(60):
            while self.restless or self.returning or not await self.is_seen():
                await asyncio.sleep(0.02)

    async def is_seen(self) -> bool:
        """Have the devices read; false if a replica changed meanwhile, so that it may be wrong."""
        before = self.states()
        await self.loop.device_watch.sample()
        return before == self.states()

    def states(self) -> list[tuple[str, State, int]]:
        return [(replica.key, replica.state, replica.life.run) for replica in self.replicas]

    @property
    def replicas(self) -> list[ReplicaState]:
        slots = self.loop.scheduler.models.values()
        return [replica for slot in slots for replica in slot.replicas]

    @property
    def restless(self) -> bool:
        wanted = any(slot.wanted for slot in self.loop.scheduler.models.values())
        return wanted or any(replica.state not in AT_REST for replica in self.replicas)

    @property
    def returning(self) -> bool:
        """Whether memory that was given back is not free yet."""
        accounts = self.book.accounts()
        return any(each.used_mib > sum(each.by_process_mib.values()) for each in accounts)

    def disagreements(self) -> Iterator[str]:
        """Where, at rest, what we believe and what the books say are not the same."""
        for slot in self.loop.scheduler.models.values():
            if slot.in_flight or slot.queue:
                yield f"{slot.spec.id} has {slot.in_flight} leases and {len(slot.queue)} waiting"
        if self.loop.waiting:
            yield f"{self.loop.waiting} requests wait"
        ours = [(self.replica_of(run), run.pids()) for run in self.loop.runs.values()]
        for device in self.loop.scheduler.devices:
            if device.id == HOST:
                continue
            account = self.book.account(device.id)
            known: set[int] = set()
            for replica, pids in ours:
                known |= pids
                real = sum(mib for pid, mib in account.by_process_mib.items() if pid in pids)
                claim = replica.held_mib.get(device.id, 0)
                asleep = replica.state is State.ASLEEP
                who = f"{replica.key} ({replica.state})"
                if real > claim + NOISE_MIB * asleep:
                    yield f"{who} holds {real} of {claim} MiB on {device.id}"
                if asleep and claim > real + NOISE_MIB:
                    yield f"{who} claims {claim} for {real} MiB on {device.id}"
                if claim > max(declared(replica), self.most_held) + MARGIN_MIB:
                    yield f"{who} claims {claim} MiB on {device.id}"
            if orphans := set(account.by_process_mib) - known:
                yield f"{orphans} hold memory of {device.id} and belong to no run"
            if device.strangers_mib > NOISE_MIB:
                yield f"{device.strangers_mib} MiB of {device.id} count as a stranger's"

    def replica_of(self, run: Run) -> ReplicaState:
        replica = self.loop.scheduler.models[run.spec.id].replica_of(run.run)
        assert replica is not None, "a run that lasts is known"
        return replica

    @property
    def most_held(self) -> int:
        """The most that one process of ours ever held on a card."""
        held: Counter[tuple[str, int]] = Counter()
        most = 0
        for event in self.book.events():
            if event.what in ("take", "give", "died") and event.pid and event.device != HOST:
                held[event.device, event.pid] += event.mib
                most = max(most, held[event.device, event.pid])
        return most

    def violations(self) -> list[str]:
        """What the books forbid, but for what a stranger did after a start had been decided."""
        if not self.fateful:
            return self.book.violations()
        return [*_avoidable(self.book.events())]


def declared(replica: ReplicaState) -> int:
    """What the profile that a replica runs with names for each of its cards."""
    assert replica.placement is not None, "who holds memory has a place"
    (profile,) = [each for each in replica.spec.profiles if each.name == replica.placement.profile]
    return max(profile.memory_mib.values())


def _read(answer: httpx.Response) -> tuple[str, str | None, str | None]:
    """What was said, why it ended, and which error came instead or in the end."""
    if answer.headers["content-type"] == "text/event-stream":
        lines = (line for line in answer.text.splitlines() if line.startswith("data: {"))
        events = [json.loads(line.removeprefix("data: ")) for line in lines]
    else:
        events = [answer.json()]
    said, reason = "", None
    for event in events:
        if error := event.get("error"):
            return said, None, str(error["message" if error["code"] in (None, 500) else "code"])
        (choice,) = event["choices"]
        said += choice.get("message", choice.get("delta", {})).get("content") or ""
        reason = choice["finish_reason"] or reason
    return said, reason, None


def _avoidable(events: Sequence[Event]) -> Iterator[str]:
    """Overlaps, and refusals to engines on whose card no stranger came since shortly before."""
    came: dict[str, float] = {}
    began: dict[tuple[str, int | None], float] = {}
    for event in events:
        if event.what == "take" and event.tag == STRANGER:
            came[event.device] = event.at_s
        elif event.what == "begin":
            began[event.device, event.pid] = event.at_s
        if event.beside:
            yield f"{event.tag} on {event.device} beside {', '.join(event.beside)}"
        since = began.get((event.device, event.pid), event.at_s) - 1.0
        if event.what == "refuse" and event.tag != STRANGER and came.get(event.device, 0) < since:
            yield f"{event.mib} MiB of {event.tag} did not fit on {event.device}"


def _models(dice: random.Random, vllm: Any, wide: Sequence[str]) -> list[ModelSpec]:
    """Three or four; those whose names are in `wide` are spread over two cards."""
    limits = Limits(
        idle_sleep_s=dice.choice((None, 0.15)),
        idle_stop_s=dice.choice((None, 1.0)),
        max_wait_s=20,
        stop_grace_s=1.0,
        drain_timeout_s=2.0,
    )
    timing = ("--fake-load", "60ms", "--fake-sleep-time", "30ms", "--fake-wake-time", "30ms")
    models = []
    for name in "abcd"[: dice.choice((3, 4))]:
        arguments = (*timing, "--fake-tps", "80", *dice.choice(FLAWS))
        mib = dice.choice((2400, 3800, 5000))
        model = vllm(name, *arguments, mib=mib, limits=limits)
        if name in wide:
            model = _spread(model, vllm(name, *arguments, mib=mib // 2 + 300, devices=(CARD, CARD)))
        models.append(model)
    return models


def _spread(narrow: ModelSpec, wide: ModelSpec) -> ModelSpec:
    """A model that runs on two cards if it can, else on one."""
    (one,), (two,) = narrow.profiles, wide.profiles
    two = replace(two, name="two cards", command=wide.command)
    return replace(narrow, profiles=(two, one))


@contextlib.asynccontextmanager
async def _walk(seed: int, vllm: Any, folder: Path, state: Path) -> AsyncIterator[Walk]:
    dice = random.Random(seed)
    cards = dice.choice((1, 2))
    lag_s = dice.choice((0.0, 0.05))
    book = Book.create(folder, ["8GiB"] * cards, names=[f"NVIDIA GeForce {CARD}"], lag_s=lag_s)
    for gpu in book.accounts():
        book.stranger(gpu.id, 1)
        book.stranger(gpu.id, 0)
    # Dice of their own: the same seed does the same on one card and on two.
    wide = random.Random(seed).sample("abcd", 2) if cards == 2 else ()
    models = _models(dice, vllm, wide)
    config = Config(
        models=tuple(models),
        devices=Devices(reserve_mib=RESERVE_MIB, sample_every_s=0.05),
        scheduling=Policy(
            fair_after_s=0.5, backoff_s=0.05, max_start_attempts=10, failed_cooldown_s=0.1
        ),
    )
    probes: list[Probe] = [FakeHostProbe(folder), FakeGpuProbe(folder)]
    async with (
        running(config, state, devices=probes) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        names = [model.id for model in models]
        yield Walk(dice, book, server.yard.loop, http, names, fateful=seed % 2 == 1)


@pytest.mark.parametrize("seed", range(WALKS))
async def test_whatever_happens_memory_is_never_promised_twice_and_no_request_is_lost(
    seed: int, vllm: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_watch, "SETTLE_S", 0.5)
    async with _walk(seed, vllm, folder, tmp_path / "state") as walk:
        for _ in range(STEPS):
            await walk.step()
        await walk.settle()

        assert walk.wrong == []
        assert walk.violations() == []
        assert list(walk.disagreements()) == []
        assert sum(walk.heard.values()) == sum(not c.cancelled() for c in walk.clients)

        for name in walk.names:  # the misfortune is over: everybody can be had again
            before = walk.heard["answered"]
            await walk.request(name, is_stream=False)
            assert walk.heard["answered"] == before + 1, (name, walk.heard)
        await walk.settle()
        assert walk.wrong == []
        assert walk.violations() == []
        assert list(walk.disagreements()) == []
    left = [gpu.by_process_mib for gpu in walk.book.accounts()]
    assert left == [{}] * len(left)
