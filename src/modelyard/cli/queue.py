"""`ps --waiting`: who waits, why, what happens next, and when.

Laws of this file:
- What is an estimate is marked as one (`~`), and how good the last ones were is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelyard.cli.output import note, print_json, print_table, say
from modelyard.cli.words import span

if TYPE_CHECKING:
    from modelyard.core.views import WaitingView

COLUMNS = ("MODEL", "PLACE", "PRIORITY", "WAITED", "EXPECTED")
SHOWN = 20
"""Rows for one model; the rest is counted."""


def print_waiting(url: str | None, as_json: bool) -> None:
    """Ask the server who waits and show it."""
    from modelyard.client import Client

    with Client(url) as client:
        views, off_s = client.waiting(), client.info().estimates_off_s
    if as_json:
        print_json(views)
        return
    if not views:
        note("Nobody waits.")
        return
    print_table(COLUMNS, [_row(view) for view in views if view.position <= SHOWN])
    if left := sum(view.position > SHOWN for view in views):
        say(f"and {left} more")
    for view in views:
        if view.position == 1:
            say(f"{view.model} waits: {view.why}. Next: {view.next_step}.")
    if off_s is not None:
        say(f"Half of the last estimates were off by at most {span(off_s)}.")


def _row(view: WaitingView) -> tuple[str, ...]:
    is_known = not view.named or view.named == view.model
    return (
        view.model if is_known else f"{view.named} -> {view.model}",
        str(view.position),
        str(view.priority),
        span(view.waited_s),
        f"~{span(view.expected_s)}",
    )
