"""Downloads as the server runs them: several at once, the rest in a queue, each with its story.

Laws of this file:
- Every download is a named task around a process of its own; ending the task ends the process, and
  what was fetched stays on the disk for the next attempt.
- Files go into the models folders and the folder for downloads, wherever an order says.
- The same order twice is one download. Orders beyond `MOST_WAITING` are refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelyard.config import Config
from modelyard.config.pulling import ENDED, PULLS, PullTrouble, PullView, PullWanted
from modelyard.config.values import Downloads
from modelyard.core.errors import Forbidden, InvalidRequest, ModelyardError
from modelyard.core.views import Event
from modelyard.downloads.job import Chosen, Failed, Finished, Job, Moved, News, PullFailed, Waits
from modelyard.downloads.names import HUGGING_FACE, Asked, read_name
from modelyard.downloads.places import own_folder
from modelyard.downloads.process import news_of
from modelyard.runtime.broadcast import Broadcast
from modelyard.runtime.tasks import Tasks

MOST_WAITING = 64
MOST_REMEMBERED = 50
SPEED_OVER_S = 5.0
"""Speeds are means of about so long."""

_ENDPOINTS = {HUGGING_FACE: "https://huggingface.co", "modelscope": "https://modelscope.cn"}


def with_downloads(config: Config) -> Config:
    """`config` with the folder for downloads among its models folders, once there is one."""
    folder = own_folder(config.models_dirs, config.downloads.dir, config.server.state_dir)
    if not folder.is_dir() or any(folder.is_relative_to(d) for d in config.models_dirs):
        return config
    return replace(config, models_dirs=(*config.models_dirs, folder))


class TooManyPulls(ModelyardError):
    """There are more downloads waiting than anybody can mean."""

    code = "queue_full"
    retryable = True
    retry_after_s = 60.0


class PullNotFound(ModelyardError):
    code = "not_found"

    def __init__(self, pull: str) -> None:
        super().__init__(
            f"there is no download {pull!r}", hint="`GET /api/pulls` lists those there are"
        )


@dataclass(slots=True)
class _Pull:
    view: PullView
    job: Job
    task: asyncio.Task[None] | None = None
    speed: _Speed = field(default_factory=lambda: _Speed())


class Pulls:
    """All downloads since the start."""

    def __init__(
        self,
        settings: Downloads,
        dirs: Callable[[], Sequence[Path]],
        broadcast: Broadcast,
        env: Mapping[str, str],
        *,
        state_dir: Path,
        prefers_gguf: Callable[[], bool] = lambda: False,
        landed: Callable[[Path], Awaitable[None]] | None = None,
    ) -> None:
        """`dirs` are the models folders at present. `prefers_gguf` tells whether no engine here
        runs anything else. `landed` is told the models folder that new files came into."""
        self._settings = settings
        self._dirs = dirs
        self._broadcast = broadcast
        self._env = env
        self._state_dir = state_dir
        self._prefers_gguf = prefers_gguf
        self._landed = landed
        self._tasks = Tasks()
        self._room = asyncio.Semaphore(settings.parallel)
        self._pulls: dict[str, _Pull] = {}
        self._count = 0

    @property
    def folder(self) -> Path:
        """Where downloads go that name no folder."""
        return own_folder(self._dirs(), self._settings.dir, self._state_dir)

    def start(self, wanted: PullWanted) -> PullView:
        """Order a download; the order that is there already if it is the same.

        Raises InvalidRequest for what names no repository, Forbidden for a folder that is not one
        of ours, TooManyPulls.
        """
        asked = read_name(wanted.model, wanted.hub)
        job = self._job(asked, wanted)
        same = next((p for p in self._pulls.values() if p.job == job and not _over(p)), None)
        if same is not None:
            return same.view
        if sum(not _over(pull) for pull in self._pulls.values()) >= MOST_WAITING:
            raise TooManyPulls(f"{MOST_WAITING} downloads are waiting or running already")
        self._count += 1
        name = f"{asked.repo}:{asked.quantization}" if asked.quantization else asked.repo
        view = PullView(
            id=str(self._count),
            model=name,
            hub=job.hub,
            state="queued",
            revision=job.revision,
            asked_at=round(time.time(), 3),
        )
        pull = self._pulls[view.id] = _Pull(view, job)
        pull.task = self._tasks.spawn(self._run(pull), f"pull {name}")
        self._forget()
        self._publish(pull)
        return view

    def cancel(self, pull_id: str) -> PullView:
        """End a download; what was fetched stays for the next attempt. Raises PullNotFound."""
        pull = self._pulls.get(pull_id)
        if pull is None:
            raise PullNotFound(pull_id)
        if not _over(pull) and pull.task is not None:
            pull.task.cancel()
            self._change(pull, state="cancelled", speed_bytes_s=None, eta_s=None)
        return pull.view

    def view(self, pull_id: str) -> PullView:
        """One download. Raises PullNotFound."""
        if pull_id not in self._pulls:
            raise PullNotFound(pull_id)
        return self._pulls[pull_id].view

    def views(self) -> list[PullView]:
        """All downloads that are remembered, the oldest first."""
        return [pull.view for pull in self._pulls.values()]

    async def close(self) -> None:
        """End them all, and wait until their processes are gone."""
        for pull_id in self._pulls:
            self.cancel(pull_id)
        await self._tasks.close()

    # ------------------------------------------------------------------------------------- inside

    def _job(self, asked: Asked, wanted: PullWanted) -> Job:
        settings, hub = self._settings, asked.hub
        chosen = settings.endpoint if hub == HUGGING_FACE else settings.modelscope_endpoint
        usual = self._env.get("HF_ENDPOINT") if hub == HUGGING_FACE else None
        if asked.revision and wanted.revision and asked.revision != wanted.revision:
            raise InvalidRequest(
                f"the address says revision {asked.revision!r}, and {wanted.revision!r} was asked"
            )
        if asked.quantization and wanted.files:
            raise InvalidRequest("a quantisation and --file exclude each other; leave one out")
        files = tuple(wanted.files) or ((asked.file,) if asked.file else ())
        offline = self._env.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        return Job(
            repo=asked.repo,
            hub=hub,
            folder=str(self._folder_for(wanted.to)),
            endpoint=(chosen or usual or _ENDPOINTS[hub]).rstrip("/"),
            revision=wanted.revision or asked.revision,
            quantization=asked.quantization,
            files=files,
            pickle=wanted.pickle,
            offline=settings.offline or offline,
            prefers_gguf=self._prefers_gguf(),
        )

    def _folder_for(self, to: str | None) -> Path:
        if to is None:
            return self.folder
        try:
            folder = Path(to).expanduser()
            real = folder.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # an unknown home, a null character
            raise InvalidRequest(f"{to!r} is not a folder: {error}") from None
        ours = [*self._dirs(), self.folder]
        if not folder.is_absolute() or not any(real.is_relative_to(d.resolve()) for d in ours):
            raise Forbidden(
                f"downloads may not go to {to}",
                hint=f"this server's folders are {', '.join(str(d) for d in ours)}; add others to"
                " models_dirs",
            )
        return folder

    async def _run(self, pull: _Pull) -> None:
        try:
            async with self._room:
                self._change(pull, state="looking")
                await self._transfer(pull)
        except OSError as error:
            trouble = PullTrouble("internal_error", f"cannot start a download process: {error}")
            self._change(pull, state="failed", error=trouble)
        finally:
            trouble = PullTrouble("internal_error", "a bug in Modelyard; the log has its traceback")
            self._change(pull, state="failed", error=trouble)  # nothing if it is over already

    async def _transfer(self, pull: _Pull) -> None:
        try:
            await asyncio.to_thread(Path(pull.job.folder).mkdir, parents=True, exist_ok=True)
        except OSError as error:
            trouble = PullTrouble("cannot_write", f"{pull.job.folder}: {error.strerror}")
            self._change(pull, state="failed", error=trouble)
            return
        news = news_of(pull.job, self._environment())
        try:
            async for each in news:
                await self._heard(pull, each)
        finally:
            await news.aclose()

    async def _heard(self, pull: _Pull, news: News) -> None:
        match news:
            case Waits():
                self._change(pull, state="waiting")
            case Chosen():
                pull.speed.begin(news.done_bytes)
                self._change(
                    pull,
                    state="downloading",
                    commit=news.commit,
                    folder=news.folder,
                    files=list(news.files),
                    notes=list(news.notes),
                    total_bytes=news.total_bytes,
                    done_bytes=news.done_bytes,
                )
            case Moved():
                speed = pull.speed.at(news.done_bytes)
                left = max(pull.view.total_bytes - news.done_bytes, 0)
                self._change(
                    pull,
                    done_bytes=news.done_bytes,
                    current=news.current,
                    speed_bytes_s=speed and round(speed),
                    eta_s=round(left / speed, 1) if speed else None,
                )
            case Finished():
                if self._landed is not None:
                    await self._landed(Path(pull.job.folder))
                total = pull.view.total_bytes
                self._change(pull, state="done", done_bytes=total, current=None, eta_s=None)
            case Failed():
                trouble = PullTrouble(news.code, news.message)
                self._change(pull, state="failed", error=trouble, eta_s=None)

    def _environment(self) -> dict[str, str]:
        """What the process is given: ours, with the configured secrets in the hubs' own words."""
        env = dict(self._env) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        env["HF_HUB_DISABLE_TELEMETRY"] = env["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
        if self._settings.endpoint:
            env["HF_ENDPOINT"] = self._settings.endpoint
        if self._settings.token:
            env["HF_TOKEN"] = self._settings.token
        if self._settings.modelscope_token:
            env["MODELSCOPE_API_TOKEN"] = self._settings.modelscope_token
        return env

    def _change(self, pull: _Pull, **changes: object) -> None:
        if _over(pull):  # a cancelled one hears the last news of its process
            return
        if changes.get("state") in ENDED:
            changes["ended_at"] = round(time.time(), 3)
        pull.view = replace(pull.view, **changes)  # type: ignore[arg-type]  # fields of the view
        self._publish(pull)

    def _publish(self, pull: _Pull) -> None:
        if self._broadcast.wanted(PULLS):
            self._broadcast.publish(Event(PULLS, pull.view))

    def _forget(self) -> None:
        """Only so many of those that ended are remembered."""
        ended = [name for name, pull in self._pulls.items() if _over(pull)]
        for name in ended[: max(len(ended) - MOST_REMEMBERED, 0)]:
            del self._pulls[name]


def _over(pull: _Pull) -> bool:
    return pull.view.state in ENDED


def failure(view: PullView) -> PullFailed | None:
    """The error of a download that failed."""
    return PullFailed(view.error.code, view.error.message) if view.error else None


class _Speed:
    """Bytes per second, smoothed."""

    def __init__(self) -> None:
        self._bytes = 0
        self._at = 0.0
        self._value: float | None = None

    def begin(self, n_bytes: int) -> None:
        self._bytes, self._at = n_bytes, time.monotonic()

    def at(self, n_bytes: int) -> float | None:
        now = time.monotonic()
        passed = now - self._at
        if passed > 0:
            speed = max(n_bytes - self._bytes, 0) / passed
            weight = min(passed / SPEED_OVER_S, 1.0)
            self._value = (
                speed if self._value is None else self._value + weight * (speed - self._value)
            )
            self._bytes, self._at = n_bytes, now
        return self._value
