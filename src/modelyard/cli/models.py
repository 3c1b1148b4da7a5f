"""Commands about models: ps, list, show, start, stop, restart, logs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from modelyard.cli import virtuals
from modelyard.cli.available import list_available
from modelyard.cli.exits import BadUsage
from modelyard.cli.memory import print_memory
from modelyard.cli.options import Json, Model, NoWait, Timeout, Url
from modelyard.cli.output import note, print_json, print_pairs, print_table, say
from modelyard.cli.queue import print_waiting
from modelyard.cli.words import (
    NOTHING,
    ago,
    clean,
    counted,
    doing,
    listed,
    shares,
    short_path,
    span,
    told_auto,
    told_price,
)

if TYPE_CHECKING:
    from modelyard.core.views import ModelView

MAX_LOG_LINES = 2000
"""Lines that the server keeps of an engine's output."""

PS_COLUMNS = (
    "NAME",
    "STATE",
    "TASK",
    "DEVICES",
    "IN-FLIGHT",
    "QUEUED",
    "IDLE",
    "LAST ACCESS",
)
LIST_COLUMNS = ("NAME", "TASKS", "ENGINE", "NEEDS", "CONTEXT", "STATE", "SOURCE")


def ps(
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also show models that do not run.")
    ] = False,
    by_memory: Annotated[
        bool,
        typer.Option("--memory", help="Show each device, and who claims and holds what of it."),
    ] = False,
    waiting: Annotated[
        bool,
        typer.Option("--waiting", help="Show each request that waits: its place, why, how long."),
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show the models that run, load, sleep, wait or have failed."""
    from modelyard.client import Client

    if by_memory:
        print_memory(url, as_json)
        return
    if waiting:
        print_waiting(url, as_json)
        return
    with Client(url) as client:
        views = [view for view in client.models() if everything or _is_active(view)]
    if as_json:
        print_json(views)
        return
    if not views:
        note("No model is running. A request starts one, and so does `modelyard start MODEL`.")
        return
    now = time.time()
    print_table(PS_COLUMNS, [_ps_row(view, now) for view in views])
    for view in views:
        if view.waiting_for and view.state not in ("starting", "ready", "waking"):
            say(f"{view.id} waits: {view.waiting_for}{_outlook(view)}")
        elif view.reason and view.state in ("backoff", "failed"):
            say(f"{view.id} failed: {view.reason}")


def list_models(
    available: Annotated[
        bool,
        typer.Option(
            "--available", help="Models on the disk that no configuration declares, and downloads."
        ),
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List all models, running or not."""
    from modelyard.client import Client

    if available:
        list_available(url, as_json)
        return
    with Client(url) as client:
        views, virtual = client.models(), client.modes().virtuals
    if as_json:
        print_json(views)
    elif views:
        more = virtuals.rows(views, virtual)
        print_table(LIST_COLUMNS, [*(_list_row(view) for view in views), *more])
        for text in virtuals.notes(virtual):
            note(text)
    else:
        note("There are no models. Put .gguf files into a folder of `modelyard serve --models-dir`")


def show(model: Model, url: Url = None, as_json: Json = False) -> None:
    """Show everything about one model.

    Also why it waits, or why it has failed. Of a virtual model, whom it stands for.
    """
    from modelyard.client import Client
    from modelyard.core.views import VirtualView

    with Client(url) as client:
        view = virtuals.found(client, model)
        if not isinstance(view, VirtualView):
            log_path = view.log_path or client.logs(view.id, 1).path
    if as_json:
        print_json(view)
    elif isinstance(view, VirtualView):
        print_pairs(virtuals.pairs(view))
    else:
        asked_as = [("Variant", f"{model} -> {view.id}")] if model in view.variants else []
        print_pairs([*asked_as, *_pairs(view, log_path, time.time())])


def start(
    model: Model,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Start a model and wait until it is ready."""
    from modelyard.cli.waiting import until_ready
    from modelyard.client import Client

    with Client(url) as client:
        began = time.monotonic()
        before = client.model(model)
        view = client.start(before.id)
        if not no_wait:
            view = until_ready(client, before.id, timeout)
        _report_start(view, time.monotonic() - began, before.state == "ready", as_json)


def restart(
    model: Model,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Replace a model's engine by a fresh one.

    Requests in flight end first. Waits until the fresh one is ready.
    """
    from modelyard.cli.waiting import until_ready
    from modelyard.client import Client

    with Client(url) as client:
        began = time.monotonic()
        view = client.restart(client.model(model).id)
        if not no_wait:
            view = until_ready(client, view.id, timeout)
        _report_start(view, time.monotonic() - began, False, as_json)


def stop(
    model: Model,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Stop a model once its requests are done.

    Waits until it has stopped. Requests that wait for the model are refused.
    """
    from modelyard.cli.waiting import until_stopped
    from modelyard.client import Client

    with Client(url) as client:
        began = time.monotonic()
        before = client.model(model)
        view = client.stop(before.id)
        if not no_wait:
            view = until_stopped(client, view, timeout)
    if as_json:
        print_json(view)
    elif before.state == "stopped":
        say(f"{view.id} was not running")
    elif no_wait:
        say(f"{view.id} is {doing(view)}")
    elif view.state == "stopped":
        say(f"{view.id} stopped in {span(time.monotonic() - began)}")
    else:
        say(f"{view.id} was stopped; a request has started it again, and it is {doing(view)}")


def logs(
    model: Model,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=MAX_LOG_LINES, help="Newest lines to show.")
    ] = 100,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show what a model's engine has printed."""
    from modelyard.client import Client

    if follow and as_json:
        raise BadUsage(
            "--follow has no end, and --json prints one document",
            hint="leave one out; /api/models/MODEL/logs/follow streams JSON",
        )
    with Client(url) as client:
        if follow:
            for line in client.follow_logs(model, lines):
                print(clean(line.text), flush=True)
            return
        log = client.logs(model, lines)
    if as_json:
        print_json(log)
        return
    for line in log.lines:
        say(line.text)
    if log.path is None:
        note(f"{log.model} has not run since the server was started; there is no log yet.")


def _outlook(view: ModelView) -> str:
    """What is next for those who wait, as the end of a sentence."""
    if view.next_step is None or view.expected_s is None:
        return ""
    place = f", place {view.position}" if view.position else ""
    return f". Next: {view.next_step}{place}, in about {span(view.expected_s)}"


def _is_active(view: ModelView) -> bool:
    return view.state != "stopped" or bool(view.queued) or view.waiting_for is not None


def _ps_row(view: ModelView, now: float) -> tuple[str, ...]:
    return (
        view.id,
        doing(view),
        listed(view.tasks),
        shares(view.memory_mib),
        str(view.in_flight),
        str(view.queued),
        span(view.idle_s),
        ago(view.last_used_at, now),
    )


def _list_row(view: ModelView) -> tuple[str, ...]:
    return (
        view.id,
        listed(view.tasks),
        view.engine,
        shares(view.needs_mib),
        str(view.context_length or NOTHING),
        view.state,
        short_path(view.source),
    )


def _pairs(view: ModelView, log_path: str | None, now: float) -> list[tuple[str, str]]:
    """What `show` prints; what there is nothing to say about is left out."""
    pairs: list[tuple[str, object]] = [
        ("Name", view.id),
        ("Aliases", ", ".join(view.aliases)),
        ("Requests get", view.shape and virtuals.changes(view.shape)),
        ("Variants", "\n".join(_variants(view))),
        ("Also asked by", ", ".join(view.virtuals)),
        ("State", doing(view)),
        ("Waits", view.waiting_for and f"{view.waiting_for}{_outlook(view)}"),
        ("Failed", view.reason and f"{view.reason}\n{counted(view.failures, 'failure')} in a row"),
        ("Tasks", listed(view.tasks)),
        ("Engine", view.engine),
        ("Source", short_path(view.source)),
        ("Context", view.context_length and f"{view.context_length} tokens"),
        ("Needs", view.needs_mib and shares(view.needs_mib)),
        ("Auto", view.auto and told_auto(view.auto)),
        ("Profile", view.profile),
        ("Passed over", "\n".join(view.passed_over)),
        ("Memory", view.memory_mib and shares(view.memory_mib)),
        ("Really held", view.used_mib and shares(view.used_mib)),
        ("Can sleep", view.sleep_levels and f"at level {listed(map(str, view.sleep_levels))}"),
        ("Process", view.pid and f"{view.pid}, run {view.run}"),
        ("Requests", f"{view.in_flight} in flight, {view.queued} queued"),
        ("Ready for", view.ready_s is not None and span(view.ready_s)),
        ("Idle for", view.idle_s is not None and span(view.idle_s)),
        ("Last access", ago(view.last_used_at, now)),
        ("Preload", "yes" if view.preload else "no"),
        ("Pinned", "yes" if view.pinned else "no"),
        ("Priority", str(view.priority)),
        ("Price", view.price and told_price(view.price)),
        ("Replicas", ", ".join(f"{each.number} {each.state}" for each in view.replicas)),
        ("Logs", log_path and short_path(log_path)),
    ]
    return [(name, str(value)) for name, value in pairs if value]


def _variants(view: ModelView) -> list[str]:
    return [f"{name}: {virtuals.changes(shape)}" for name, shape in view.variants.items()]


def _report_start(view: ModelView, seconds: float, was_ready: bool, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    if view.state != "ready":
        say(f"{view.id} is {doing(view)}; `modelyard ps` tells how far it is")
    elif was_ready:
        say(f"{view.id} was ready already")
    else:
        say(f"{view.id} is ready in {span(seconds)}")
    if view.log_path:
        say(f"Logs: {short_path(view.log_path)}")
