"""What the processes of a run really take of the host's memory.

Laws of this file:
- On Linux memory is counted by proportional set size (PSS): each resident page, divided by the
  number of processes that map it, plus the same share of what was swapped out. So the processes
  of one run add up: what they share is counted once. The resident set size (RSS), which counts
  shared pages for each of them, stands in where PSS cannot be had.
- Pages of a mapped file count while they are resident. llama.cpp maps its weights: they lie in the
  page cache, and the kernel could drop them, but only for the engine to read them from disk again
  for the next token. A model whose weights are not resident does not run at any useful speed, so
  they are part of what it takes. A file that is read (not mapped) leaves nothing but cache that
  nobody misses, and that does not count.
- Therefore the moment matters. Just after a load with mmap, and when memory is short, less is
  resident than the model needs; and two runs that map the same file are each counted half of it.
- Not counted, because the kernel does not: huge pages of hugetlbfs, memory of devices, and what
  a driver holds for a process without mapping it.
- A process that is gone holds nothing. One that lives and cannot be measured is an error: a sum
  that leaves it out would be taken for the truth.

Formats: the kernel's filesystems/proc.rst ("smaps_rollup", since Linux 4.14; "SwapPss" and the
note on hugetlbfs under "smaps"). Reading it walks the page tables of the process: milliseconds for
a GiB, so call this in a thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path

import psutil

_FIELDS = re.compile(rb"^(Pss|SwapPss):\s+(\d+) kB$", re.MULTILINE)
_KIB_PER_MIB = 1024


def host_mib(targets: Iterable[int], *, proc: Path = Path("/proc")) -> int:
    """What these processes hold together, in MiB, rounded up.

    `targets` are process ids, or process groups as negative numbers: what `guard.members` returns.
    Blocks. Raises OSError if a living process cannot be measured.
    """
    wanted = set(targets)
    pids = {target for target in wanted if target > 0} | _in_groups(wanted)
    return -(-sum(_kib(pid, proc) for pid in pids) // _KIB_PER_MIB)


def _in_groups(targets: AbstractSet[int]) -> set[int]:
    """The living processes of the groups among the targets."""
    groups = {-target for target in targets if target < 0}
    return {pid for pid in psutil.pids() if _group(pid) in groups} if groups else set()


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        # Gone meanwhile, or of another session on a system that hides it: none of ours.
        return 0


def _kib(pid: int, proc: Path) -> int:
    try:
        text = (proc / str(pid) / "smaps_rollup").read_bytes()
    except ProcessLookupError:
        # It has no memory any more: it ended while its file was open, or waits to be collected.
        return 0
    except (FileNotFoundError, PermissionError):
        # Gone, another system, an old kernel, or a process that may not be looked into.
        return _resident_kib(pid)
    found = {name: int(kib) for name, kib in _FIELDS.findall(text)}
    return found[b"Pss"] + found.get(b"SwapPss", 0) if b"Pss" in found else _resident_kib(pid)


def _resident_kib(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss) // 1024
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied as error:
        raise PermissionError(f"the memory of process {pid} may not be read") from error
