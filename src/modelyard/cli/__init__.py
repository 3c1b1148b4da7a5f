"""The command line: `modelyard COMMAND`.

Laws of this package:
- A command reads its flags, asks the server through `modelyard.client`, and prints; `serve` alone
  builds a server, `demo` starts one as a process of its own.
- What a command needs is imported when it runs, so that `version` and `--help` stay fast.
- Every command has `--json`; then stdout holds one JSON document and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from modelyard.cli import (
    about,
    assign,
    configure,
    connect,
    demo,
    exits,
    import_,
    keys,
    mode,
    models,
    plan,
    pull,
    requests,
    rm,
    run,
    secret,
    serve,
    simulate,
    sleeping,
)
from modelyard.core.errors import ModelyardError

app = typer.Typer(
    name="modelyard",
    help="One OpenAI-compatible endpoint for every model you own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve.serve)
app.command()(demo.demo)
app.command()(run.run)
app.command()(models.ps)
app.command("list")(models.list_models)
app.command()(models.show)
app.command()(models.start)
app.command()(models.stop)
app.command()(models.restart)
app.command()(sleeping.sleep)
app.command()(sleeping.wake)
app.command()(assign.assign)
app.command()(mode.mode)
app.command()(connect.connect)
app.command()(models.logs)
app.command()(plan.plan)
app.command()(simulate.simulate)
app.command("import")(import_.import_config)
app.command()(pull.pull)
app.command()(rm.rm)
app.command()(secret.secret)
app.add_typer(keys.commands)
app.command()(requests.requests)
app.command()(requests.cancel)
app.command()(about.info)
app.add_typer(configure.commands)
app.command()(about.version)


def _print_version(wanted: bool) -> None:
    if wanted:
        about.version()
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """One OpenAI-compatible endpoint for every model you own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app(args=arguments, prog_name="modelyard")
    except SystemExit as end:
        return _code(end)
    except ModelyardError as error:
        return exits.tell(error)
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except Exception as bug:
        return _tell_bug(bug)
    return exits.OK


def _code(end: SystemExit) -> int:
    if end.code is None:
        return exits.OK
    return end.code if isinstance(end.code, int) else exits.FAILED


def _tell_bug(bug: Exception) -> int:
    """An error that nobody expected, with the place in our code that tells most."""
    place = ""
    trace = bug.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if "modelyard" in file.parts:
            place = f" at {file.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    print(f"modelyard: a bug in Modelyard: {bug!r}{place}; please report it", file=sys.stderr)
    return exits.FAILED
