"""The memory limits that control groups put on this process, and what is used of them.

Laws of this file:
- Every group above the process counts, not only its own: each may be the one that runs full.
- A limit that cannot be read is no limit. Page cache that would give way is not use.

Files and formats: the kernel's admin-guide, cgroup-v2 ("memory.max" holds bytes or "max";
"memory.current"; "memory.stat" with "inactive_file", "active_file" and "slab_reclaimable") and
cgroup-v1/memory ("memory.limit_in_bytes", a huge number where there is no limit;
"memory.usage_in_bytes"; "memory.stat" with "total_" before the names for the whole subtree);
/proc/[pid]/cgroup is described in cgroups(7).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final


@dataclass(frozen=True, slots=True)
class _Version:
    limit: str
    used: str
    reclaimable: frozenset[str]


_V1: Final = _Version(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    frozenset({"total_inactive_file", "total_active_file"}),
)
_V2: Final = _Version(
    "memory.max",
    "memory.current",
    frozenset({"inactive_file", "active_file", "slab_reclaimable"}),
)


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """What one control group may hold and holds, in bytes."""

    limit: int
    used: int | None
    """Without page cache that would give way; None where the group does not tell."""


def limits(root: Path, process_groups: Path) -> Iterator[GroupMemory]:
    """Every limit on this process, in no order; none where nothing limits it.

    `root` is where control groups are mounted, `process_groups` the list of the process's groups
    (/proc/self/cgroup).
    """
    for folder, version in _folders(root, process_groups):
        limit = _number(_text(folder / version.limit))
        if limit is not None:
            yield GroupMemory(limit, _used(folder, version))


def _used(folder: Path, version: _Version) -> int | None:
    used = _number(_text(folder / version.used))
    if used is None:
        return None
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in version.reclaimable:
            used -= _number(value) or 0
    return max(0, used)


def _folders(root: Path, process_groups: Path) -> Iterator[tuple[Path, _Version]]:
    for line in _text(process_groups).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            folder, version = root, _V2
        elif "memory" in controllers.split(","):
            folder, version = root / "memory", _V1
        else:
            continue
        # A container may see the group's path as its host names it; then only the folder at
        # the root exists here, and it holds the container's own limit.
        inside = PurePosixPath(group.lstrip("/"))
        if ".." not in inside.parts and inside.parts:
            above = [part for part in inside.parents if part.parts]
            yield from ((folder / part, version) for part in (inside, *above))
        yield folder, version


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        # No control groups of this version here: nothing limits the process this way.
        return ""


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else None
