"""`ps --memory`: what there is on each device, who claims it, and what they really hold.

Laws of this file:
- What nobody has measured is shown as `-`, never as 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.cli.output import print_json, print_pairs, print_table, say
from modelyard.cli.words import NOTHING, bar, difference, memory

if TYPE_CHECKING:
    from modelyard.core.views import DeviceView, ShareView

COLUMNS = ("  NAME", "STATE", "CLAIM", "REALLY", "DIFFERENCE")


def print_memory(url: str | None, as_json: bool) -> None:
    """Ask the server for its devices and show them."""
    from modelyard.client import Client

    with Client(url) as client:
        devices = client.devices()
    if as_json:
        print_json(devices)
        return
    for number, device in enumerate(devices):
        if number:
            say()
        _print_device(device)


def _print_device(device: DeviceView) -> None:
    say(_title(device))
    print_pairs((f"  {name}", value) for name, value in _pairs(device))
    if device.shares:
        print_table(COLUMNS, [_row(share) for share in device.shares])


def _title(device: DeviceView) -> str:
    """The id that configurations may use, and the name that people know."""
    return device.id if device.name == device.id else f"{device.id}  {device.name}"


def _pairs(device: DeviceView) -> list[tuple[str, str]]:
    claimed, capacity = memory(device.claimed_mib), memory(device.capacity_mib)
    ceiling = device.ceiling_mib
    pairs = [
        ("Total", memory(device.total_mib)),
        (
            "Ceiling",
            f"{memory(ceiling)}, {memory(device.total_mib - ceiling)} are kept from models",
        ),
        ("Strangers", memory(device.strangers_mib)),
        ("Claimed", f"{bar(device.claimed_mib, device.capacity_mib)} {claimed} of {capacity}"),
        ("In use", NOTHING if device.used_mib is None else memory(device.used_mib)),
    ]
    return [*pairs, *(("Note", text) for text in device.notes)]


def _row(share: ShareView) -> tuple[str, ...]:
    used = share.used_mib
    return (
        f"  {share.model}",
        share.state,
        memory(share.claim_mib),
        memory(used),
        NOTHING if used is None else difference(used - share.claim_mib),
    )
