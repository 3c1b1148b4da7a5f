"""Fixtures for tests that run a whole server."""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings

from modelyard.config import Config, Devices
from modelyard.core.policy import Policy
from modelyard.core.specs import ModelSpec
from modelyard.testing.server import Running, running

# The same examples every time, however slow the machine: that a test passes is not left to chance.
# `pytest --hypothesis-profile explore` looks for new ones.
PATIENT = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("explore", PATIENT)
settings.register_profile("tests", PATIENT, derandomize=True)
settings.load_profile("tests")

Serve = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`async with serve(model, ..., mib=200) as server`: these models under this budget."""

    def start(
        *models: ModelSpec,
        mib: int = 1000,
        dirs: tuple[Path, ...] = (),
        fair_after_s: float = 20.0,
        **settings: Any,
    ) -> AbstractAsyncContextManager[Running]:
        config = Config(
            models=models,
            models_dirs=dirs,
            devices=Devices(budget_mib={"cpu": mib}),
            scheduling=Policy(fair_after_s=fair_after_s),
        )
        return running(config, tmp_path / "state", **settings)

    return start


@pytest.fixture
async def nothing_left() -> AsyncIterator[None]:
    """Fails a test that leaves a process, a descriptor, a thread or a task behind."""
    await asyncio.to_thread(int)  # the pool's threads stay, and they are not what is counted
    before = _held()
    yield
    try:
        async with asyncio.timeout(60):
            while _held() - before:
                await asyncio.sleep(0.02)
    except TimeoutError:
        assert set() == _held() - before  # the difference is the message


def _held() -> set[str]:
    """What this process has of the system's, by name."""
    names = {f"thread {thread.name}" for thread in threading.enumerate()}
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    names |= {f"task {task.get_name()}" for task in tasks if task}
    # By number: what else psutil says of a process (running, sleeping) changes by itself.
    names |= {f"process {child.pid}" for child in psutil.Process().children(recursive=True)}
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208  # no Path objects: they are counted
        with contextlib.suppress(OSError):
            names.add(f"descriptor {number} {os.readlink(f'/proc/self/fd/{number}')}")  # noqa: PTH115
    return {name for name in names if "thread asyncio_" not in name}
