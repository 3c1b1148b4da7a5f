"""Options and arguments that many commands share."""

from __future__ import annotations

from typing import Annotated

import typer

COMPLETION_TIMEOUT_S = 1.0


def complete_model(ctx: typer.Context, incomplete: str) -> list[str]:
    """The models of the running server, for the shell; none if there is no server."""
    from modelyard.client import Client
    from modelyard.core.errors import ModelyardError

    try:
        with Client(ctx.params.get("url"), timeout_s=COMPLETION_TIMEOUT_S) as client:
            return [view.id for view in client.models() if view.id.startswith(incomplete)]
    except ModelyardError:
        return []  # a shell's prompt is no place for errors


Model = Annotated[
    str, typer.Argument(help="Id or alias of a model.", autocompletion=complete_model)
]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="Address of the server. Default: MODELYARD_URL, else the server of this user.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Return at once instead of waiting until it is done.")
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        min=0,
        help="Longest wait. Default: as long as the server allows. The server goes on after it.",
    ),
]
