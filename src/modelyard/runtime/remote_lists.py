"""The models of other people's endpoints: asked for at the start and from time to time.

Laws of this file:
- Nobody waits for an endpoint: what it listed last is served meanwhile, also what it listed in an
  earlier life of the server (`FILE`). A question has a bound in time and in bytes.
- An endpoint that does not answer keeps the models it had; why is told, and it is asked again.
- A key goes to its own endpoint: redirects are not followed, proxies are not asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import httpx
import msgspec

from modelyard.config.values import RemoteEndpoint
from modelyard.core.errors import ModelyardError
from modelyard.core.specs import Limits, ModelSpec
from modelyard.engines.remote import Remote, Target
from modelyard.engines.remote_models import MAX_MODELS, Offer, read_page, specs_of, written
from modelyard.runtime.remote_run import trusting
from modelyard.runtime.tasks import Tasks

log = logging.getLogger("modelyard")

FILE = "remote_models.json"
"""In the state folder: what each endpoint listed last."""
ANSWER_S = 30.0
"""Longest time that one endpoint's whole list may take."""
SILENCE_S = 10.0
MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_PAGES = 50
LEAST_APART_S = 1.0
FIRST_RETRY_S = 5.0
"""Pause after a question in vain; it doubles up to the time between two questions."""
LONGEST_RETRY_S = 600.0

Offers = tuple[Offer, ...]


class RemoteLists:
    """What the endpoints of a configuration list."""

    def __init__(self, engine: Remote, state_dir: Path) -> None:
        self._engine = engine
        self._file = state_dir / FILE
        self._endpoints: tuple[RemoteEndpoint, ...] = ()
        self._listed: dict[str, Offers] = {}
        """By what `_place` says of an endpoint."""
        self._trouble: dict[str, str] = {}
        """Why an endpoint did not list its models, by its name."""
        self._tasks = Tasks()
        self._writing = asyncio.Lock()
        self._changed: Callable[[], None] = _unheard

    def open(self, endpoints: Sequence[RemoteEndpoint]) -> None:
        """Take up what was listed in an earlier life. Blocks on the disk."""
        self._endpoints = tuple(endpoints)
        if any(each.models is None for each in endpoints):
            self._listed = _read(self._file)

    def begin(self, changed: Callable[[], None]) -> None:
        """Ask from now on; `changed` is called whenever `specs` says something new."""
        self._changed = changed
        for endpoint in self._endpoints:
            if endpoint.models is None:
                self._tasks.spawn(self._follow(endpoint), f"list the models of {endpoint.name}")

    async def follow(self, endpoints: Sequence[RemoteEndpoint]) -> None:
        """Ask these endpoints in place of those so far."""
        if tuple(endpoints) == self._endpoints:
            return
        await self._tasks.close()
        self._trouble.clear()
        self._endpoints = tuple(endpoints)
        self.begin(self._changed)

    async def close(self) -> None:
        await self._tasks.close()

    def specs(self, limits: Limits, taken: Iterable[str]) -> tuple[list[ModelSpec], list[str]]:
        """The models of all endpoints, less those whose names are `taken`, and what is wrong."""
        names = set(taken)
        models: list[ModelSpec] = []
        problems = [f"remote {name}: {why}" for name, why in dict(self._trouble).items()]
        for endpoint in self._endpoints:
            if endpoint.models is None:
                listed = self._listed.get(_place(endpoint), ())
                offers = tuple((offer.name, offer) for offer in listed)
            else:
                offers = written(endpoint)
            found, collide = specs_of(endpoint, offers, limits, names)
            models += found
            problems += collide
            names.update(spec.id for spec in found)
        return models, problems

    # ------------------------------------------------------------------------------------- inside

    async def _follow(self, endpoint: RemoteEndpoint) -> None:
        """Ask one endpoint for ever, or until it has answered where it is to be asked once."""
        pause_s = FIRST_RETRY_S
        while True:
            before = self._trouble.get(endpoint.name)
            try:
                is_new = await self._ask(endpoint)
            except _NoList as error:
                self._trouble[endpoint.name] = str(error)
                is_new = before != str(error)
                if is_new:
                    log.warning("remote %s: %s", endpoint.name, error)
            else:
                self._trouble.pop(endpoint.name, None)
                is_new = is_new or before is not None
                pause_s = FIRST_RETRY_S
            if is_new:
                self._changed()
            if endpoint.name not in self._trouble:
                if endpoint.refresh_s is None:
                    return
                await asyncio.sleep(max(LEAST_APART_S, endpoint.refresh_s))
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, endpoint.refresh_s or LONGEST_RETRY_S, LONGEST_RETRY_S)

    async def _ask(self, endpoint: RemoteEndpoint) -> bool:
        """Learn what the endpoint has; whether that is news. Raises _NoList."""
        try:
            target = await asyncio.to_thread(self._engine.target, endpoint.upstream, "")
            async with asyncio.timeout(ANSWER_S):
                offers = await _listing(target, endpoint.upstream.dialect == "anthropic")
        except TimeoutError:
            raise _NoList(f"it has not listed its models within {ANSWER_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _NoList(f"its models cannot be listed: {_words(error)}") from None
        except (OSError, ValueError, ModelyardError) as error:
            raise _NoList(f"its models cannot be listed: {error}") from None
        place = _place(endpoint)
        if self._listed.get(place) == offers:
            return False
        self._listed[place] = offers
        async with self._writing:
            known = {_place(each) for each in self._endpoints}
            listed = {where: offers for where, offers in self._listed.items() if where in known}
            await asyncio.to_thread(_write, self._file, listed)
        return True


class _NoList(Exception):
    """Why an endpoint's models could not be listed, in words that hold no secret."""


def _unheard() -> None:
    """What is new before anybody wants to hear of it."""


async def _listing(target: Target, in_pages: bool) -> Offers:
    """The whole list, page by page."""
    context = await asyncio.to_thread(trusting, target.ca_file) if target.is_tls else False
    lines = (line.split(": ", 1) for line in target.headers.decode("ascii").splitlines())
    client = httpx.AsyncClient(
        verify=context,
        # What is not asked for packed cannot unpack to more than it is.
        headers={"accept-encoding": "identity", **dict(lines)},
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(SILENCE_S, connect=target.connect_timeout_s),
    )
    offers: list[Offer] = []
    after: str | None = None
    async with client:
        for _ in range(MAX_PAGES):
            asked = {"limit": "1000"} if in_pages else {}
            page = read_page(
                await _get(client, target, asked | ({} if after is None else {"after_id": after}))
            )
            offers += page.offers
            after = page.next
            if after is None or len(offers) >= MAX_MODELS:
                break
    return tuple(offers[:MAX_MODELS])


async def _get(client: httpx.AsyncClient, target: Target, asked: dict[str, str]) -> bytes:
    url = httpx.URL(target.name + target.models_path).copy_merge_params(asked)
    said = b""
    async with client.stream("GET", url) as response:
        if response.is_redirect:
            raise ValueError(f"it answers with a redirect ({response.status_code}), not followed")
        if response.status_code in (401, 403):
            raise ValueError(f"it refuses the key (status {response.status_code})")
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"it answers with status {response.status_code}")
        async for part in response.aiter_bytes():
            said += part
            if len(said) > MAX_ANSWER_BYTES:
                raise ValueError(f"its list is longer than {MAX_ANSWER_BYTES} bytes")
    return said


def _words(error: Exception) -> str:
    """What went wrong; a time-out of httpx says nothing by itself."""
    return str(error) or f"no answer within {SILENCE_S:g} s"


def _place(endpoint: RemoteEndpoint) -> str:
    """Stands for where and as whom an endpoint is asked, without telling it."""
    upstream = endpoint.upstream
    said = (upstream.url, upstream.key, upstream.key_header, upstream.dialect)
    return hashlib.sha256(repr(said).encode()).hexdigest()


def _read(file: Path) -> dict[str, Offers]:
    """What was written; nothing where the file is not there or is not ours."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Offers])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("%s cannot be read (%s); it will be written anew", file, error)
        return {}


def _write(file: Path, listed: dict[str, Offers]) -> None:
    beside = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(msgspec.json.encode(listed))
        beside.replace(file)
    except OSError as error:
        log.warning("%s cannot be written: %s", file, error)
