"""How a scheme of LLM-Manager starts its model: a script, or a structured command (v3).

Laws of this file:
- A script that is there becomes its command. One that is not there, or that cannot be understood,
  is named as the program with the model's port, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelyard.config.tree import Plain
from modelyard.config.values import KeyPath
from modelyard.importers.draft import ModelDraft, argument
from modelyard.importers.errors import CannotImport
from modelyard.importers.launch import (
    VISIBLE,
    Launch,
    foreign_paths,
    prepare,
    usable_folder,
    uses_port,
)
from modelyard.importers.script import BATCH_SUFFIXES, Script, find_script, load_script
from modelyard.importers.surroundings import Work
from modelyard.importers.values import as_mapping, as_text, is_variable

_FOREIGN = "names files of a Windows drive; correct the paths"


@dataclass(frozen=True, slots=True)
class Start:
    """A scheme that is to become a launch. `names` are the model's id and aliases."""

    path: KeyPath
    scheme: Mapping[str, Plain]
    port: int | None
    names: Sequence[str]
    model: str


def scheme_launch(start: Start, work: Work, model: ModelDraft) -> Launch | None:
    """The launch of a scheme; None if it says nothing about one."""
    if "command" in start.scheme:
        return _structured(start, work, model)
    for key in ("script_path", "bat_path"):
        if key in start.scheme:
            return _scripted(start, (*start.path, key), start.scheme[key], work, model)
    return None


def _structured(start: Start, work: Work, model: ModelDraft) -> Launch | None:
    path = (*start.path, "command")
    command = as_mapping(start.scheme["command"])
    program = as_text(command.get("exe"))
    if program is None:
        work.book.no_equal(path, "names no program; write `command`")
        return None
    listed = command.get("args")
    words = [as_text(word) or "" for word in listed] if isinstance(listed, list) else []
    mark = {"{{port}}": str(start.port or 0), "{{alias}}": start.model}
    argv = []
    for word in (program, *words):
        for blank, value in mark.items():
            word = word.replace(blank, value)
        argv.append(word)
    env = {
        name: as_text(value) or ""
        for name, value in as_mapping(command.get("env")).items()
        if is_variable(name)
    }
    _report_structured(path, command, env, work)
    ready = prepare(
        argv,
        port=start.port,
        names=start.names,
        here=work.here,
        conda=as_text(command.get("conda_env")),
    )
    _warn_of_paths(ready, (*path, "args"), work, model)
    folder = _folder(as_text(command.get("cwd")), (*path, "cwd"), work)
    return Launch(ready, uses_port(ready), env, folder)


def _report_structured(
    path: KeyPath, command: Mapping[str, Plain], env: Mapping[str, str], work: Work
) -> None:
    for key in ("exe", "args", "conda_env"):
        if key in command:
            work.book.converted((*path, key), "command")
    if command.get("cwd"):
        work.book.converted((*path, "cwd"), "cwd")
    elif "cwd" in command:
        work.book.not_needed((*path, "cwd"), "is empty")
    if "env" in command:
        variables = as_mapping(command["env"])
        for name in variables:
            if name in env:
                work.book.converted((*path, "env", name), "env")
            else:
                work.book.no_equal((*path, "env", name), "is no name of a variable")
        if not variables:
            work.book.not_needed((*path, "env"), "is empty")


def _scripted(
    start: Start, path: KeyPath, written: Plain, work: Work, model: ModelDraft
) -> Launch | None:
    name = as_text(written)
    if name is None:
        work.book.no_equal(path, "names no script; write `command`")
        return None
    place = find_script(work.source.folder, name)
    try:
        script = load_script(place)
    except CannotImport as error:
        work.book.no_equal(path, str(error))
        script = None
    else:
        if script is None:
            why = f"the script {name} is not beside the configuration, so its command is not known"
            work.book.no_equal(path, f"{why}; write `command`")
        elif not script.argv:
            work.book.no_equal(path, f"the script {name} starts no program that was understood")
    if script is None or not script.argv:
        model.notes.append(f"its script was not understood: {name}")
        return Launch((argument(str(place)),), has_port=False)
    return _from_script(start, path, place, script, work, model)


def _from_script(
    start: Start, path: KeyPath, place: Path, script: Script, work: Work, model: ModelDraft
) -> Launch:
    name = place.name
    lost = [f"line {remark.line}: {remark.text}" for remark in script.remarks if remark.lost]
    env = {key: value for key, value in script.env.items() if key not in VISIBLE}
    if not script.is_complete and place.suffix.lower() not in BATCH_SUFFIXES:
        work.book.converted(path, "command", f"{name} itself is started: it works values out")
        return Launch((argument(str(place)),), has_port=False)
    ready = prepare(
        script.argv, port=start.port, names=start.names, here=work.here, conda=script.conda
    )
    said = f"{name} became a command"
    if len(env) < len(script.env):
        said += "; which cards are visible follows from the devices"
    work.book.converted(path, "command", "; ".join([said, *lost]))
    for text in lost:
        model.notes.append(f"{name}, {text}")
    _warn_of_paths(ready, path, work, model)
    return Launch(ready, uses_port(ready), env, _folder(script.cwd, path, work))


def _folder(written: str | None, path: KeyPath, work: Work) -> str | None:
    folder = usable_folder(written, work.source.folder, work.here)
    if written and folder is None:
        work.book.no_equal(path, f"the folder {written} cannot be used on this system; set `cwd`")
    return folder


def _warn_of_paths(argv: Sequence[str], path: KeyPath, work: Work, model: ModelDraft) -> None:
    if foreign_paths(argv, work.here) and _FOREIGN not in model.notes:
        model.notes.append(_FOREIGN)
        work.book.converted(path, "command", _FOREIGN)
