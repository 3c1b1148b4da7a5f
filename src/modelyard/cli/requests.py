"""Commands about single requests: requests, cancel.

Laws of this file:
- An id is shown in full, so that it can be given to `cancel`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from modelyard.cli.options import Json, Url
from modelyard.cli.output import note, print_json, print_table, say
from modelyard.cli.words import NOTHING, ago, span

if TYPE_CHECKING:
    from modelyard.core.views import RequestView

COLUMNS = ("ID", "KEY", "MODEL", "ROUTE", "STATE", "ARRIVED", "WAITED", "FIRST", "TOTAL", "TOKENS")


def requests(
    last: Annotated[
        int,
        typer.Option(
            "--last", "-n", metavar="NUMBER", min=0, max=10_000, help="Finished requests to show."
        ),
    ] = 10,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show the requests under way, and the newest that are over."""
    from modelyard.client import Client

    with Client(url) as client:
        view = client.requests(last)
    if as_json:
        print_json(view)
        return
    now = time.time()
    rows = [_row(request, now) for request in (*view.running, *view.finished)]
    if rows:
        print_table(COLUMNS, rows)
    else:
        note("There have been no requests.")


def cancel(
    request: Annotated[str, typer.Argument(help="Id of a request under way.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """End a request that is under way; its client is told so."""
    from modelyard.client import Client

    with Client(url) as client:
        ended = client.cancel(request)
    if as_json:
        print_json(ended)
        return
    for view in ended:
        say(f"{view.id}: cancelled after {span(view.total_s)}")


def _row(view: RequestView, now: float) -> tuple[str, ...]:
    state = view.state if view.state != "done" else str(view.status)
    tokens = f"{view.prompt_tokens}+{view.completion_tokens}"
    return (
        view.id,
        view.key or NOTHING,
        view.model or view.named or NOTHING,
        view.route,
        f"{state}: {view.error}" if view.error else state,
        ago(view.arrived_at, now),
        span(view.waited_s),
        span(view.first_s),
        span(view.total_s),
        f"~{tokens}" if view.estimated else tokens,
    )
