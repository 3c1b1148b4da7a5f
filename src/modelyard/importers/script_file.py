"""A start script by itself: one model, as its command has it.

Laws of this file:
- Every line of the script is in the report: a part of the command, or what it was instead.
- Which cards it takes is concluded from CUDA_VISIBLE_DEVICES, else from the command.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from modelyard.config.tree import Plain
from modelyard.importers import programs
from modelyard.importers.batch import parse_batch
from modelyard.importers.card_memory import claims
from modelyard.importers.draft import ModelDraft, argument
from modelyard.importers.launch import (
    VISIBLE,
    Launch,
    Way,
    foreign_paths,
    prepare,
    put_ways,
    usable_folder,
    uses_port,
)
from modelyard.importers.script import BATCH_SUFFIXES, Script
from modelyard.importers.shell import parse_shell
from modelyard.importers.source import Source
from modelyard.importers.surroundings import Work
from modelyard.importers.values import as_mapping

_BATCH = re.compile(r"\s*(?:@echo\s+off|@?rem\s|::|@?chcp\s|@?setlocal\b)", re.IGNORECASE)
_SHELL = re.compile(r"\s*#!\s*\S*(?:/|\s)(?:ba|z|da|k)?sh\b")
_NAMES = ("-a", "--alias", "--served-model-name", "--model-name")


def looks_like(source: Source) -> bool:
    suffix = source.path.suffix.lower()
    is_named = suffix in (*BATCH_SUFFIXES, ".sh", ".bash")
    return is_named or bool(_BATCH.match(source.text) or _SHELL.match(source.text))


def line_key(number: int) -> str:
    """How a line is called in the report."""
    return f"line-{number}"


def read_script(source: Source) -> dict[str, Plain]:
    """The lines of a script, for the report; empty lines are none."""
    lines = enumerate(source.text.split("\n"), 1)
    return {line_key(number): line.strip() for number, line in lines if line.strip()}


def convert(work: Work) -> None:
    source = work.source
    is_batch = source.path.suffix.lower() in BATCH_SUFFIXES or bool(_BATCH.match(source.text))
    script = (parse_batch if is_batch else parse_shell)(source.text, str(source.folder))
    model = work.draft.model(_name(script, source.path), f"{source.name}")
    work.book.model = model.id
    _report(script, work)
    if not script.argv:
        model.put("engine", "command")
        model.aside = "the script starts no program that was understood"
        work.book.model = ""
        return
    port = programs.port_of(script.argv)
    if not is_batch and not script.is_complete:
        _start_itself(model, port, work)
        return
    argv = prepare(script.argv, port=port, names=[model.id], here=work.here, conda=script.conda)
    tasks, because = programs.tasks_of(script.argv, model.id)
    model.put("tasks", list(tasks), f"concluded from {because}")
    env = {name: value for name, value in script.env.items() if name not in VISIBLE}
    folder = usable_folder(script.cwd, source.folder, work.here)
    if script.cwd and folder is None:
        why = f"the folder {script.cwd} cannot be used on this system; set `cwd`"
        work.book.no_equal((line_key(script.lines["cwd"]),), why)
    if foreign_paths(argv, work.here):
        text = "names files of a Windows drive; correct the paths"
        model.notes.append(text)
        work.book.converted((line_key(script.lines["argv"]),), "command", text)
    launch = Launch(argv, uses_port(argv), env, folder or str(source.folder))
    devices = _devices(script, argv, work)
    way = Way("default", devices, claims(devices, argv, work.here), launch)
    model.notes += put_ways(model, [way], port)
    work.book.model = ""


def _start_itself(model: ModelDraft, port: int | None, work: Work) -> None:
    """A shell script that works values out is started as it is; it then chooses its port."""
    tasks, because = programs.tasks_of((), model.id)
    model.put("tasks", list(tasks), f"concluded from {because}")
    launch = Launch((argument(str(work.source.path.absolute())),), has_port=False)
    devices = ["gpu"] * min(work.here.gpus, 16) or ["cpu"]
    memory = claims(devices, (), work.here)
    model.notes += put_ways(model, [Way("default", devices, memory, launch)], port)
    model.notes.append("the script itself is started, because it works values out")
    work.book.model = ""


def _devices(script: Script, argv: Sequence[str], work: Work) -> list[str]:
    told = script.env.get("CUDA_VISIBLE_DEVICES", "")
    numbers = told.replace(" ", "").split(",")
    if all(re.fullmatch(r"[0-9]{1,2}", number) for number in numbers):
        return [f"nvidia:{number}" for number in dict.fromkeys(numbers)]
    count = programs.gpus_of(argv, work.here.gpus) if work.here.gpus else 0
    return ["gpu"] * min(count, 16) or ["cpu"]


def _name(script: Script, path: Path) -> str:
    found = programs.find_option(script.argv, _NAMES)
    return found[1].partition(",")[0] if found else path.stem


def _report(script: Script, work: Work) -> None:
    """Every line has an end: it is part of the command, or a remark says what it was."""
    for remark in script.remarks:
        path = (line_key(remark.line),)
        if remark.lost:
            work.book.no_equal(path, remark.text)
        else:
            work.book.not_needed(path, remark.text)
    for part, number in script.lines.items():
        word, _, name = part.partition(" ")
        to = {"argv": "command", "conda": "command"}.get(word, word)
        if name in VISIBLE:
            to = "profiles[].devices"
        work.book.converted((line_key(number),), to)
    began, spoken = "", work.book.spoken()
    for line, text in as_mapping(work.tree).items():
        if re.match(r"@?(rem\s|::|#)", str(text), re.IGNORECASE):
            work.book.not_needed((line,), "a comment")
        elif (line,) in spoken:
            began = line
        elif began:
            work.book.converted((line,), "command", f"goes on from {began}")
