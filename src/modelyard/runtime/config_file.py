"""The configuration file of a server, or of none: read anew while the server runs, and assigned to.

Laws of this file:
- One change at a time. A file that is wrong changes nothing: neither the server nor the file.
- An assignment or a key is written only after the whole file was checked with it, engines included.
- What a server cannot change while it runs (its listener, its devices) is told, not half done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields
from pathlib import Path

from modelyard.config import Config
from modelyard.config.assignment import Assignment, AssignmentView, Reloaded, Wanted
from modelyard.config.edit import current, replace_file, with_assignment, with_key
from modelyard.config.keyring import KeyChange, KeyWanted
from modelyard.config.load import usual_path
from modelyard.core.errors import ConfigError, InvalidRequest, NotFound
from modelyard.core.keys import admin_is_open
from modelyard.core.specs import ModelSpec, OptionValue
from modelyard.engines.assigning import options_for

Read = Callable[[Path | None, bytes | None], Config]
"""The configuration in the file at this path, or in these bytes if they stand for the file's."""

LIVE = frozenset(
    {"models", "remotes", "models_dirs", "limits", "path", "written", "assigned", "notes", "keys"}
    | {"captures"}
)
"""Fields of a `Config` that a running server takes over."""


class ConfigFile:
    """The file behind a configuration. `adopt` makes a server follow it, and blocks nothing."""

    def __init__(
        self,
        config: Config,
        read: Read,
        problems: Callable[[Config], list[str]],
        adopt: Callable[[Config], Awaitable[None]],
        specs: Callable[[], Mapping[str, ModelSpec]],
    ) -> None:
        self.config = config
        self._begun = config
        """What a server began with, and still is in all that it cannot change."""
        self._read = read
        self._problems = problems
        self._adopt = adopt
        self._specs = specs
        self._lock = asyncio.Lock()

    @property
    def path(self) -> Path:
        """The file, or where it would be."""
        return self.config.path or usual_path()

    async def reload(self) -> Reloaded:
        """Read the file anew and follow it. Raises ConfigError with all problems."""
        async with self._lock:
            return await self._follow(await asyncio.to_thread(self._checked, None))

    def assignment(self, spec: ModelSpec) -> AssignmentView:
        """What is assigned to a model."""
        return self._view(spec, self.config.assigned.get(spec.id, Assignment()))

    async def assign(self, spec: ModelSpec, wanted: Wanted) -> AssignmentView:
        """Add to what is assigned to a model, and follow the file.

        Raises InvalidRequest for what its engine cannot do, ConfigError with all problems that the
        file would have, or if it cannot be written.
        """
        options = options_for(spec.engine, wanted)
        async with self._lock:
            before = self.config.assigned.get(spec.id, Assignment())
            return await self._write(spec, before.plus(wanted.devices, options))

    async def clear(self, spec: ModelSpec) -> AssignmentView:
        """Take back all that is assigned to a model, and follow the file."""
        async with self._lock:
            return await self._write(spec, Assignment())

    async def add_key(self, name: str, wanted: KeyWanted) -> KeyChange:
        """Let in a key, and follow the file.

        Raises InvalidRequest for a name that is taken, ConfigError with all problems that the file
        would have, or if it cannot be written.
        """
        async with self._lock:
            if name in {key.name for key in self.config.keys}:
                raise InvalidRequest(
                    f"there is a key named {name!r} already",
                    hint="choose another name, or remove that one first",
                )
            return await self._change_key(name, wanted.entry())

    async def remove_key(self, name: str) -> KeyChange:
        """Let a key in no more, and follow the file. Raises as `add_key` does, and NotFound."""
        async with self._lock:
            if name not in {key.name for key in self.config.keys}:
                raise NotFound(f"there is no key named {name!r}")
            return await self._change_key(name, None)

    # ------------------------------------------------------------------------------------- inside

    async def _change_key(self, name: str, entry: dict[str, OptionValue] | None) -> KeyChange:
        from modelyard.config.rules import is_loopback  # validates: what only reads needs none

        config = await asyncio.to_thread(self._with_key, name, entry)
        await self._follow(config)
        is_open = admin_is_open(config.keys, is_loopback=is_loopback(config.server.host))
        return KeyChange(name, str(self.path), bool(config.keys), not is_open)

    def _with_key(self, name: str, entry: dict[str, OptionValue] | None) -> Config:
        """Write the file and return what it says now. Blocks."""
        path = self.path
        old = current(path)
        new = with_key(old or b"", str(path), name, entry)
        config = self._checked(new, path)
        if (name in {key.name for key in config.keys}) is (entry is None):
            raise ConfigError(str(path), [f"keys.{name}: it is not written in this file"])
        replace_file(path, new, old)
        return config

    async def _write(self, spec: ModelSpec, assignment: Assignment) -> AssignmentView:
        config = await asyncio.to_thread(self._written, spec, assignment)
        if config is None:
            return self._view(spec, assignment)
        await self._follow(config)
        return self._view(spec, assignment, changed=True)

    def _written(self, spec: ModelSpec, assignment: Assignment) -> Config | None:
        """Write the file and return what it says now; None if it says so already. Blocks."""
        path = self.path
        old = current(path)
        new = with_assignment(old or b"", str(path), spec.id, assignment, _entry(spec))
        if new == (old or b""):
            return None
        config = self._checked(new, path)
        if config.assigned.get(spec.id, Assignment()) != assignment:
            raise ConfigError(str(path), [f"models.{spec.id}.assigned: it is set elsewhere, too"])
        replace_file(path, new, old)
        return config

    def _checked(self, content: bytes | None, path: Path | None = None) -> Config:
        """The configuration, all of it right. Blocks; raises ConfigError."""
        path = path or self.config.path
        config = self._read(path, content)
        problems = self._problems(config)
        if problems:
            raise ConfigError(str(path or "configuration"), problems)
        return config

    async def _follow(self, config: Config) -> Reloaded:
        before = self._specs()
        await self._adopt(config)
        self.config = config
        after = self._specs()
        return Reloaded(
            path=str(config.path) if config.path else None,
            added=sorted(set(after) - set(before)),
            changed=sorted(
                name for name in before if name in after and before[name] != after[name]
            ),
            removed=sorted(set(before) - set(after)),
            needs_restart=[
                field.name
                for field in fields(Config)
                if field.name not in LIVE
                and getattr(self._begun, field.name) != getattr(config, field.name)
            ],
        )

    def _view(
        self, spec: ModelSpec, assignment: Assignment, *, changed: bool = False
    ) -> AssignmentView:
        path = str(self.config.path) if self.config.path else None
        devices, options = list(assignment.devices), dict(assignment.options)
        return AssignmentView(spec.id, devices, options, path, changed)


def _entry(spec: ModelSpec) -> dict[str, OptionValue]:
    """What the file has to say of a model that was found, so that it stays the same."""
    entry: dict[str, OptionValue] = {"engine": spec.engine}
    if spec.aliases:
        entry["aliases"] = list(spec.aliases)
    if spec.source is not None:
        entry["source"] = spec.source
    if spec.options:
        entry["options"] = dict(spec.options)
    return entry


def unread(path: Path | None, content: bytes | None) -> Config:
    """The `Read` of a server that was given its configuration by a program."""
    del path, content
    raise InvalidRequest(
        "this server was started without a configuration file",
        hint="start it with `modelyard serve --config FILE`",
    )
