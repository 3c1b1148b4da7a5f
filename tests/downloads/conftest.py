"""A fake hub for each test, and downloads that go to it through the real client library."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.downloads.fake_hub import Hub, Repository, running_hub

from modelyard.config.pulling import ENDED, PULLS, PullView, PullWanted
from modelyard.config.values import Downloads
from modelyard.runtime.broadcast import Broadcast
from modelyard.runtime.pulls import Pulls
from modelyard.testing.server import DEMO_MODELS

CHAT = (DEMO_MODELS / "yard-chat.gguf").read_bytes()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as started:
        started.repositories["yard/chat-GGUF"] = Repository(
            {"chat-Q4_K_M.gguf": CHAT, "chat-Q8_0.gguf": CHAT[::-1], "README.md": b"# chat"}
        )
        yield started


@pytest.fixture(autouse=True)
def _no_hub_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token, mirror, proxy or cache of whoever runs the tests is seen."""
    for name in list(os.environ):
        if (
            name.startswith(("HF_", "HUGGING", "MODELSCOPE", "MODELYARD_"))
            or "PROXY" in name.upper()
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@dataclass
class Yard:
    """Downloads without a server around them."""

    pulls: Pulls
    broadcast: Broadcast
    folder: Path

    async def ended(self, view: PullView) -> PullView:
        """The download when it is over."""
        with self.broadcast.subscribe([PULLS]) as news:
            if (now := self.pulls.view(view.id)).state in ENDED:
                return now
            async for event in news:
                told: Any = event.data
                if told.id == view.id and told.state in ENDED:
                    return self.pulls.view(view.id)
        raise AssertionError("the news ended")

    async def until(self, view: PullView, done_bytes: int) -> PullView:
        """The download when so much of it is here."""
        async with asyncio.timeout(60):
            while (now := self.pulls.view(view.id)).done_bytes < done_bytes:
                assert now.state not in ENDED, now
                await asyncio.sleep(0.02)
        return now

    async def pull(self, model: str, **wanted: Any) -> PullView:
        return await self.ended(self.pulls.start(PullWanted(model, **wanted)))


MakeYard = Callable[..., AbstractAsyncContextManager[Yard]]


@pytest.fixture
def make_yard(hub: Hub, tmp_path: Path) -> MakeYard:
    """`async with make_yard(parallel=1) as yard`: downloads with these settings."""

    @asynccontextmanager
    async def make(*, env: dict[str, str] | None = None, **settings: Any) -> AsyncIterator[Yard]:
        folder = tmp_path / "models"
        folder.mkdir(exist_ok=True)
        usual = Downloads(endpoint=hub.url, modelscope_endpoint=hub.url)
        broadcast = Broadcast()
        pulls = Pulls(
            replace(usual, **settings),
            lambda: [folder],
            broadcast,
            dict(os.environ) | (env or {}),
            state_dir=tmp_path / "state",
        )
        try:
            yield Yard(pulls, broadcast, folder)
        finally:
            await pulls.close()

    return make


@pytest.fixture
async def yard(make_yard: MakeYard) -> AsyncIterator[Yard]:
    async with make_yard() as made:
        yield made


def below(folder: Path) -> set[str]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
