"""The command `import`: a configuration of another program becomes ours.

Laws of this file:
- The file is written whole or not at all, and no file is replaced unless `--force` says so.
- What was converted is the smaller part of the news: what was not comes first.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelyard.cli.exits import FAILED, BadUsage, tell
from modelyard.cli.options import Json
from modelyard.cli.output import note, print_json, print_table, say
from modelyard.cli.words import counted

if TYPE_CHECKING:
    from modelyard.importers import Finding, Imported, Surroundings

STDOUT = "-"
DEFAULT_OUTPUT = "modelyard.yaml"
PROBE_TIMEOUT_S = 10.0


def import_config(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Configuration, database, script or folder.")
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="OUT", help="File to write; - prints it instead."),
    ] = DEFAULT_OUTPUT,
    kind: Annotated[
        str | None,
        typer.Option("--from", metavar="KIND", help="What FILE is, where it is not recognised."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Convert the configuration of another program, and say what became of every setting."""
    from modelyard.app import engine_problems
    from modelyard.importers import KINDS, import_path

    if kind is not None and kind not in KINDS:
        raise BadUsage(f"--from: there is no kind {kind!r}", hint=f"there are {', '.join(KINDS)}")
    target = None if output == STDOUT else Path(output)
    _refuse_to_overwrite(target, file, force=force)
    imported = import_path(file, _surroundings(), engine_problems, kind)
    if target is not None and (code := _write(target, imported.text, force=force)):
        raise typer.Exit(code)
    if as_json:
        print_json(_as_json(imported, target))
    else:
        _show(imported, target)


def _refuse_to_overwrite(target: Path | None, file: Path, *, force: bool) -> None:
    if target is None:
        return
    if target.exists() and file.exists() and target.samefile(file):
        raise BadUsage(f"{target} is the file to import", hint="name another one with --output")
    if target.exists() and not force:
        hint = "name another file with --output, or replace it with --force"
        raise BadUsage(f"{target} exists already", hint=hint)


def _surroundings() -> Surroundings:
    from modelyard.importers import Surroundings

    found: list[tuple[int, ...]] = []
    # A driver that hangs must not hang the command; the thread ends with the process.
    looking = threading.Thread(target=lambda: found.append(_cards_mib()), daemon=True)
    looking.start()
    looking.join(PROBE_TIMEOUT_S)
    if not found:
        note(f"the GPUs did not tell within {PROBE_TIMEOUT_S:g} s; check `devices` in the result")
    return Surroundings(
        cards_mib=found[0] if found else (),
        windows=sys.platform == "win32",
        env=os.environ,
        home=Path.home(),
    )


def _cards_mib() -> tuple[int, ...]:
    from modelyard.devices import probes
    from modelyard.devices.base import ProbeFailed

    cards: list[int] = []
    for probe in probes():
        try:
            found = [device for device in probe.read() if device.kind != "cpu"]
            cards += [device.total_mib for device in found if not device.failure]
        except ProbeFailed as error:
            note(f"GPUs may be missing: {error}")
    return tuple(cards)


def _write(target: Path, text: str, *, force: bool) -> int:
    """The new file in one step; the exit code if it could not be written."""
    from modelyard.importers.errors import CannotImport

    unfinished = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        unfinished.write_text(text, encoding="utf-8")
        try:
            if not force:
                target.open("x").close()  # fails if somebody made it meanwhile
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        reason = "exists already" if isinstance(error, FileExistsError) else error.strerror
        tell(CannotImport(f"{target}: cannot be written: {reason}"))
        return FAILED
    return 0


def _as_json(imported: Imported, target: Path | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "kind": imported.kind,
        "output": str(target) if target else None,
        "models": list(imported.models),
        "left_out": list(imported.left_out),
        "settings": [
            {
                "setting": finding.setting,
                "fate": finding.fate.name.lower(),
                "to": finding.to or None,
                "text": finding.text or None,
                "model": finding.model or None,
            }
            for finding in imported.findings
        ],
    }
    return document | ({} if target else {"text": imported.text})


def _show(imported: Imported, target: Path | None) -> None:
    from modelyard.importers import Fate

    tell_line = say if target else note  # with `-` stdout is the configuration and nothing else
    if target is None:
        print(imported.text, end="")
    converted = [each for each in imported.findings if each.fate is Fate.CONVERTED]
    others = [each for each in imported.findings if each.fate is not Fate.CONVERTED]
    told = [each for each in converted if each.text]
    if target is not None and (others or told):
        print_table(("SETTING", "WHAT BECAME OF IT", "WHY, AND WHAT TO DO"), _rows(others, told))
        say()
    counts = f"{counted(len(converted), 'setting')} converted, {len(others)} not"
    models = counted(len(imported.models), "model")
    tell_line(f"{imported.title}: {models}, {counts}")
    for name in imported.left_out:
        tell_line(f"left out, see the comments in the file: {name}")
    if target is not None:
        say(f"written: {target}")
        say(f"next: modelyard config check {target}")
        say(f"      modelyard serve --config {target}")


def _rows(others: Sequence[Finding], told: Sequence[Finding]) -> list[tuple[str, str, str]]:
    rows = [(each.setting, each.fate.value, each.text) for each in others]
    return rows + [(each.setting, f"became {each.to}", each.text) for each in told]
