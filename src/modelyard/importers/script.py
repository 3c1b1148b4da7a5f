"""A start script as a command: what the readers of batch files and of shell scripts have in common.

Laws of this file:
- A script is read and never run. Every line of it ends as a part of the command, or as a remark.
- Of several commands the one that starts a server is taken: a known one, else one with a port,
  else the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from modelyard.importers import programs
from modelyard.importers.errors import CannotImport
from modelyard.importers.source import MAX_BYTES, decode

BATCH_SUFFIXES = (".bat", ".cmd")
MAX_LINES = 2000
MAX_COMMAND = 32_768
"""Characters of one expanded command line; Windows takes no more."""


class Remark(NamedTuple):
    """What became of a line that is no part of the command."""

    line: int
    text: str
    lost: bool
    """Whether something is missing in the command because of it."""


@dataclass(slots=True)
class Script:
    """What a script does. `argv` is empty where no command was found."""

    argv: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    conda: str | None = None
    remarks: list[Remark] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    """Where the parts were found: `argv`, `cwd`, `conda`, and `env` by name."""
    candidates: list[tuple[int, list[str]]] = field(default_factory=list, repr=False)

    def skip(self, line: int, text: str) -> None:
        self.remarks.append(Remark(line, text, lost=False))

    def lose(self, line: int, text: str) -> None:
        self.remarks.append(Remark(line, text, lost=True))

    def settle(self) -> Script:
        """Choose among the commands that were found."""
        if not self.candidates:
            return self
        best = max(self.candidates, key=_likeness)
        for line, argv in self.candidates:
            if (line, argv) != best:
                what = programs.bare(argv[0])
                self.lose(line, f"`{what}` runs beside the server; run it yourself, or in a script")
        self.lines["argv"], self.argv = best
        return self

    @property
    def is_complete(self) -> bool:
        """Whether every argument of the command is known."""
        line = self.lines.get("argv")
        return bool(self.argv) and not any(
            remark.lost and remark.line == line for remark in self.remarks
        )


def _likeness(candidate: tuple[int, Sequence[str]]) -> tuple[bool, bool, int]:
    line, argv = candidate
    return programs.known(argv) is not None, programs.port_of(argv) is not None, line


Parse = Callable[[str, str], Script]


def load_script(path: Path) -> Script | None:
    """The script at `path`; None if there is no such file. Raises CannotImport."""
    from modelyard.importers.batch import parse_batch  # these two build on this file
    from modelyard.importers.shell import parse_shell

    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise CannotImport(f"{path}: cannot be read: {error}") from error
    if len(content) > MAX_BYTES:
        raise CannotImport(f"{path}: is larger than {MAX_BYTES // 1024} KiB; no start script is")
    text = decode(content, str(path))
    is_batch = path.suffix.lower() in BATCH_SUFFIXES
    parse: Parse = parse_batch if is_batch else parse_shell
    return parse(text, str(path.absolute().parent))


def find_script(folder: Path, written: str) -> Path:
    """The file that `written` means beside a configuration in `folder`.

    Backslashes separate folders too, and where only the case of a name differs, as it may on
    Windows, the file is found all the same.
    """
    path = folder
    for part in written.replace("\\", "/").split("/"):
        path = path / part if part else path
        if part:
            path = _of_any_case(path)
    return path


def _of_any_case(path: Path) -> Path:
    try:
        if path.exists():
            return path
        siblings = list(path.parent.iterdir())[:10_000] if path.parent.is_dir() else []
    except OSError:  # such as a name that is too long
        return path
    wanted = path.name.casefold()
    return next((found for found in siblings if found.name.casefold() == wanted), path)
