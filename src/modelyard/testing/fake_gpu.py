"""What a driver would tell of the fake GPUs, as a probe like any other.

Laws of this file:
- The books are the machine; a probe only reads them, and what it says is what they say.
- Misfortune is asked for in the books (`fail`, `break_driver`, `hang`, `vanish`) and shows here the
  way a real driver shows it: a failed device, an error, a call that does not return, an absence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelyard.devices.base import ProbeFailed, Reading
from modelyard.testing.fake_books import FOLDER_VARIABLE, Book
from modelyard.testing.fake_page import HOST, Account, DeviceLost, Event, OutOfMemory

__all__ = [
    "FOLDER_VARIABLE",
    "HOST",
    "Account",
    "Book",
    "DeviceLost",
    "Event",
    "FakeGpuProbe",
    "FakeHostProbe",
    "OutOfMemory",
]

_IDLE_C, _BUSY_C = 41.0, 63.0
_IDLE_W, _BUSY_W = 14.0, 96.0


class FakeGpuProbe:
    """Finds the GPUs of the books in `folder`. Raises FileNotFoundError if it holds none."""

    kind = "nvidia"

    def __init__(self, folder: Path | str) -> None:
        self._book = Book(folder)

    def read(self) -> Sequence[Reading]:
        """The devices that are present. Raises ProbeFailed; blocks while the driver hangs."""
        try:
            if reason := self._book.driver_failure():
                raise ProbeFailed(reason)
            return [_reading(account) for account in self._book.accounts()]
        except OSError as error:
            raise ProbeFailed(f"the books of the fake GPUs cannot be read: {error}") from None


class FakeHostProbe:
    """Tells of the host's memory what the books say: what fake engines keep there while asleep."""

    kind = "cpu"

    def __init__(self, folder: Path | str) -> None:
        self._book = Book(folder)

    def read(self) -> Sequence[Reading]:
        """One reading. Raises ProbeFailed if the books cannot be read."""
        try:
            host = self._book.account(HOST)
        except OSError as error:
            raise ProbeFailed(f"the books of the fake host cannot be read: {error}") from None
        return [
            Reading(
                HOST, self.kind, 0, "fake host", host.total_mib, host.used_mib, host.by_process_mib
            )
        ]


def _reading(account: Account) -> Reading:
    pci = f"00000000:{int(account.id[-4:]) + 1:02X}:00.0"
    known = (account.id, FakeGpuProbe.kind, account.index, account.name)
    if account.failure:
        return Reading(*known, 0, pci=pci, failure=account.failure)
    return Reading(
        *known,
        account.total_mib,
        account.used_mib,
        account.by_process_mib,
        utilisation=1.0 if account.busy else 0.0,
        temperature_c=_BUSY_C if account.busy else _IDLE_C,
        power_w=_BUSY_W if account.busy else _IDLE_W,
        pci=pci,
    )
