"""Shell scripts: what they export, where they go, and the server that they start.

Laws of this file:
- Words are split as POSIX says; `$NAME` and `${NAME:-default}` stand for what the script itself
  has set. Nothing is run: `$(dirname "$0")` is known, any other `$( )` is remarked.
- Control flow is not followed. A command found inside it is still a candidate, with a remark.

Facts about the language: POSIX.1-2017, "Shell Command Language".
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from modelyard.importers.script import MAX_COMMAND, MAX_LINES, Script

_QUIET = frozenset(
    ["echo", "printf", "set", "wait", "exit", "trap", "umask", "ulimit", "true", ":"]
)
_CONTROL = frozenset(
    ["if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac",
     "function", "{", "}", "!", "[", "[[", "return", "shift"]
)  # fmt: skip
_WRAPPERS = frozenset(["exec", "nohup", "command", "time"])
_OPERATORS = frozenset([";", "&", "&&", "||", "|", "(", ")", ";;"])
_ASSIGNED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_HERE = re.compile(
    r"\"?\$\(\s*cd\s+[^)]*\$\{?(?:0|BASH_SOURCE)[^)]*\)[^)]*\)\"?|"
    r"\$\(\s*dirname\s+[^)]*\)|`dirname[^`]*`"
)
_REFERENCE = re.compile(
    r"\$\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)(?::?-(?P<default>[^}]*))?\}|"
    r"\$(?P<name>[A-Za-z_][A-Za-z0-9_]*)|\$(?P<special>[@*#?0-9])|"
    r"\$\([^()]{0,200}\)|`[^`]{0,200}`|\$\{[^}\s]{0,80}\}?|\$\(?"
)
_TOKEN = re.compile(r"\\.|'|\"|[$`]", re.DOTALL)
_REDIRECTION = re.compile(
    r"(?P<quoted>'[^']*'?|\"(?:[^\"\\]|\\.)*\"?)|"
    r"(?<!\S)(?:[0-9]|&)?[<>]{1,2}\s*(?:&[0-9-]|\"[^\"]*\"|'[^']*'|[^\s&|;]*)"
)
"""Modelyard keeps what engines print, so files that a script writes it to are dropped."""
_HIDDEN = str.maketrans(
    "$`() ;&|<>", "\ue000\ue001\ue002\ue003\ue004\ue005\ue006\ue007\ue008\ue009"
)
_SHOWN = {new: old for old, new in _HIDDEN.items()}
"""Characters of what is not worked out here, until words have been split. Of private use."""


def parse_shell(text: str, folder: str) -> Script:
    """What the shell script in `folder` does."""
    reader = _Reader(folder)
    for number, line in _logical_lines(text):
        if number > MAX_LINES:
            reader.script.lose(number, f"the script has more than {MAX_LINES} lines")
            break
        reader.take(number, line)
    return reader.finish()


def split_line(text: str) -> list[str]:
    """The words of a command line, line ends inside it included.

    Raises ValueError where a quote does not end.
    """
    return shlex.split(text.replace("\\\n", " "), comments=False, posix=True)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    pending, first = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        first = first or number
        if line.lstrip().startswith("#"):
            if not pending:
                first = 0
            continue
        pending = (pending + line)[:MAX_COMMAND]
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        if pending.strip():
            yield first, pending
        pending, first = "", 0
    if pending.strip():
        yield first, pending


class _Reader:
    def __init__(self, folder: str) -> None:
        self.script = Script()
        self._folder = folder
        self._set: dict[str, str] = {}
        self._exported: dict[str, int] = {}

    def finish(self) -> Script:
        for name, line in self._exported.items():
            if name in self._set:
                self.script.env[name] = self._set[name]
                self.script.lines[f"env {name}"] = line
        return self.script.settle()

    def take(self, line: int, text: str) -> None:
        expanded = _HERE.sub(lambda _: shlex.quote(self._folder), text)
        expanded = self._expand(line, expanded)[:MAX_COMMAND]
        expanded = _REDIRECTION.sub(lambda found: found["quoted"] or " ", expanded)
        try:
            lexer = shlex.shlex(expanded, posix=True, punctuation_chars=";&|()<>")
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError:
            self.script.lose(line, "a quote does not end on this line; write the command out")
            return
        command: list[str] = []
        piped = False
        for word in [*words, ";"]:
            if word not in _OPERATORS and not re.fullmatch(r"[;&|()]+", word):
                command.append(word.translate(_SHOWN))
                continue
            if command and not piped:
                self._one(line, command)
            command, piped = [], word == "|"

    def _one(self, line: int, words: list[str]) -> None:
        while words and words[0] in _WRAPPERS | {"then", "do", "else"}:
            if words[0] not in _WRAPPERS:
                self.script.lose(line, f"`{words[0]}` decides while the script runs")
            words = words[1:]
        if not words:
            return
        first, *rest = words
        assigned = _ASSIGNED.fullmatch(first)
        if first == "export" or assigned:
            self._assign(line, words)
        elif first in ("cd", "pushd"):
            if rest:
                self.script.cwd, self.script.lines["cwd"] = rest[-1], line
        elif first in ("source", "."):
            self._activate(line, rest)
        elif first in ("conda", "mamba", "micromamba") and rest[:1] == ["activate"]:
            self.script.conda = rest[1] if len(rest) > 1 else "base"
            self.script.lines["conda"] = line
        elif first == "eval" or first in _QUIET:
            self.script.skip(line, "for the shell, or for a person who looks at it")
        elif first in _CONTROL:
            text = f"`{first}` decides while the script runs; check the command"
            self.script.lose(line, text)
        else:
            self.script.candidates.append((line, words))

    def _assign(self, line: int, words: list[str]) -> None:
        exports = words[0] == "export"
        rest = words[1:] if exports else words
        for at, word in enumerate(rest):
            found = _ASSIGNED.fullmatch(word)
            if found:
                self._set[found[1]] = found[2]
            elif exports and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", word):
                self._exported[word] = line
                continue
            elif exports:
                continue
            else:  # NAME=value program: the variables are the program's
                for name in (_ASSIGNED.fullmatch(before) for before in rest[:at]):
                    if name:
                        self._exported[name[1]] = line
                self._one(line, rest[at:])
                return
            if exports and found:
                self._exported[found[1]] = line

    def _activate(self, line: int, rest: list[str]) -> None:
        target = rest[0] if rest else ""
        if target.endswith("activate") and len(rest) > 1:
            self.script.conda, self.script.lines["conda"] = rest[1], line
        elif target.endswith("bin/activate"):
            bin_folder = target.removesuffix("/activate")
            text = f"activates a virtual environment; write the program as {bin_folder}/..."
            self.script.lose(line, text)
        elif target.endswith("conda.sh"):
            self.script.skip(line, "conda is found on the PATH")
        else:
            self.script.lose(line, f"reads {target or 'a file'}; what it does is not known here")

    def _expand(self, line: int, text: str) -> str:
        """`text` with its references replaced, except between single quotes."""
        pieces: list[str] = []
        start, quote = 0, ""
        while found := _TOKEN.search(text, start):
            pieces.append(text[start : found.start()])
            token, start = found[0], found.end()
            if token in ("'", '"') and quote in ("", token):
                quote = "" if quote else token
            elif token in ("$", "`") and quote != "'":
                reference = _REFERENCE.match(text, found.start())
                if reference:
                    token, start = self._value(line, reference), reference.end()
            pieces.append(token)
        return "".join([*pieces, text[start:]])

    def _value(self, line: int, found: re.Match[str]) -> str:
        name = found["braced"] or found["name"]
        if name:
            if name in self._set:
                return self._set[name]
            if found["default"] is not None:
                return found["default"].strip("\"'")
            self.script.lose(line, f"${name} is a variable of the machine; write its value")
            return found[0].translate(_HIDDEN)
        if found["special"]:
            if found["special"] in "@*":
                self.script.skip(line, "arguments of the script: there are none here")
            else:
                self.script.lose(line, f"{found[0]} is not known here; write its value")
            return ""
        self.script.lose(line, "a part of this line is worked out while the script runs")
        return found[0].translate(_HIDDEN)
