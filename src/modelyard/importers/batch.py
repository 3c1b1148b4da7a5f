"""Windows batch files: what they set, where they go, and the server that they start.

Laws of this file:
- Quoting is that of cmd.exe and of the C runtime: only `"` quotes, `\\"` is a quote, `^` takes the
  meaning from the next character, and a backslash is a backslash.
- `%NAME%` stands for what the script itself has set; a variable of the machine is left as it is
  and remarked.
- Two habits that are no batch but are found in the wild are understood: `\\` at the end of a line,
  and ` # ...` behind a command.

Facts about the language: learn.microsoft.com, "cmd", "call", "start", "set", "pushd".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from modelyard.importers.script import MAX_COMMAND, MAX_LINES, Script

_QUIET = frozenset(
    ["echo", "echo.", "title", "chcp", "pause", "color", "cls", "setlocal", "endlocal", "exit",
     "timeout", "mode", "prompt", "verify", "deactivate", "popd"]
)  # fmt: skip
_CONTROL = frozenset(["if", "for", "goto", "else", "(", ")", "shift", ":"])
_COMMENT = re.compile(r"^\s*@?\s*(?:rem(?:\s|$)|::|#)", re.IGNORECASE)
_TRAILING = re.compile(r"\s#(?:\s|[^\x00-\x7f]).*$")
_SET = re.compile(r'set\s+"?([^=\s"/][^="]*)=([^"]*)"?\s*$', re.IGNORECASE)
_VARIABLE = re.compile(r"%%|%~(?P<part>[a-z]*)0|%(?P<digit>[0-9*])|%(?P<name>[^%\s:]{1,80})%", re.I)
_CMD = re.compile(r"cmd(?:\.exe)?\s+(?:/[a-z:]+\s+)*?/[kc]\s+(?P<inner>.*)$", re.IGNORECASE)
_ACTIVATE = re.compile(r"(?:.*[\\/])?activate(?:\.bat)?$", re.IGNORECASE)
_START_VALUES = frozenset(["/d", "/node", "/affinity"])
MAX_DEPTH = 5


def parse_batch(text: str, folder: str) -> Script:
    """What the batch file in `folder` does."""
    reader = _Reader(folder)
    for number, line in _logical_lines(text):
        if number > MAX_LINES:
            reader.script.lose(number, f"the script has more than {MAX_LINES} lines")
            break
        reader.take(number, line)
    return reader.finish()


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their continuations, and the number of the first."""
    pending, first = "", 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw if _COMMENT.match(raw) else _TRAILING.sub("", raw)
        line = line.rstrip()
        is_argument = line.lstrip().startswith("-")
        if first and not pending.endswith("\0") and not is_argument:
            yield first, pending
            pending, first = "", 0
        if not first:
            first = number
        pending = pending.rstrip("\0") + (" " if pending else "") + line.strip()
        if pending.endswith("^") and not pending.endswith("^^"):
            pending = pending[:-1] + "\0"
        elif pending.endswith(" \\"):
            pending = pending[:-2] + "\0"
        if len(pending) > MAX_COMMAND:
            pending = pending[:MAX_COMMAND]
    if first:
        yield first, pending.rstrip("\0")


class _Reader:
    def __init__(self, folder: str) -> None:
        self.script = Script()
        self._folder = folder
        self._set: dict[str, tuple[str, str, int]] = {}
        self._used: set[str] = set()

    def finish(self) -> Script:
        for key, (name, value, line) in self._set.items():
            if key in self._used or key == "path":
                self.script.skip(line, f"{name} is written out where it is used")
            else:
                self.script.env[name] = value
                self.script.lines[f"env {name}"] = line
        return self.script.settle()

    def take(self, line: int, text: str, depth: int = 0) -> None:
        """One line, or one command of it."""
        if _COMMENT.match(text) or not text.strip(" @"):
            return
        command = self._expand(text.strip().lstrip("@").strip(), line)
        inner = _CMD.match(command)
        if inner:
            self._inner(line, inner["inner"], depth)
            return
        for part in _split(command):
            self._one(line, part.strip().lstrip("@").strip(), depth)

    def _inner(self, line: int, inner: str, depth: int) -> None:
        inner = inner.strip()
        if inner.startswith('"'):
            inner = inner[1:].removesuffix('"')
        self.take(line, inner, depth + 1)

    def _one(self, line: int, text: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            self.script.lose(line, "commands in commands in commands; write the last one out")
            return
        word = text.split(None, 1)[0].lower() if text else ""
        rest = text[len(word) :].strip()
        if not word or word in _QUIET or word.startswith((":", "echo")):
            if word:
                self.script.skip(line, "for a person who looks at the window")
        elif word in _CONTROL or word.startswith(("(", "if(", ")")):
            self.script.lose(
                line, f"`{word[:20]}` decides while the script runs; check the command"
            )
        elif word == "set":
            self._assign(line, text)
        elif word in ("cd", "chdir", "pushd"):
            self._enter(line, rest)
        elif word in ("call", "conda", "conda.bat", "activate") or _ACTIVATE.match(word):
            self._call(line, word, text, rest, depth)
        elif word == "start":
            self._start(line, rest, depth)
        elif _CMD.match(text):
            self.take(line, text, depth + 1)
        elif re.fullmatch(r"[a-z]:", word):
            self.script.skip(line, "the drive follows from the folder")
        else:
            self._program(line, text)

    def _assign(self, line: int, text: str) -> None:
        found = _SET.match(text)
        if found is None:
            self.script.lose(line, "this form of `set` is not understood; set the variable in env")
            return
        name, value = found[1].strip(), found[2].rstrip()
        if name.lower() == "path":
            self.script.lose(line, "the PATH is not changed; write the program's whole path")
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            self._set[name.lower()] = (name, value, line)
        else:
            self.script.lose(line, "the name of this variable cannot be used")

    def _enter(self, line: int, rest: str) -> None:
        folder = re.sub(r"^/d\s+", "", rest, flags=re.IGNORECASE).strip().strip('"')
        if folder:
            self.script.cwd, self.script.lines["cwd"] = folder, line

    def _call(self, line: int, word: str, text: str, rest: str, depth: int) -> None:
        words = split_words(text)
        if word == "call":
            if (
                words[1:2]
                and words[1].lower().endswith((".bat", ".cmd"))
                and not _ACTIVATE.match(words[1])
            ):
                self.script.lose(line, f"calls {words[1]}; what it does is not known here")
            else:
                self._one(line, rest, depth + 1)
        elif words[1:2] == ["activate"] or _ACTIVATE.match(words[0]):
            target = words[2:] if words[1:2] == ["activate"] else words[1:]
            self._activate(line, words[0], target)
        else:
            self._program(line, text)

    def _activate(self, line: int, program: str, target: list[str]) -> None:
        if target:
            self.script.conda, self.script.lines["conda"] = target[0], line
        elif "\\" in program or "/" in program:
            text = f"{program} activates a virtual environment; write the path of its program"
            self.script.lose(line, text)
        else:
            self.script.conda, self.script.lines["conda"] = "base", line

    def _start(self, line: int, rest: str, depth: int) -> None:
        words = _split_quoted(rest)
        if words and words[0].startswith('"'):
            words.pop(0)  # the title of the window
        while words and words[0].startswith("/"):
            option = words.pop(0)
            if option.lower() in _START_VALUES and words:
                value = words.pop(0)
                if option.lower() == "/d":
                    self._enter(line, value)
        if words:
            self._one(line, " ".join(words), depth + 1)

    def _program(self, line: int, text: str) -> None:
        words = split_words(_without_redirections(text))
        if words:
            self.script.candidates.append((line, words))

    def _expand(self, text: str, line: int) -> str:
        def replace(found: re.Match[str]) -> str:
            if found["name"]:
                known = self._set.get(found["name"].lower())
                if known is not None:
                    self._used.add(found["name"].lower())
                    return known[1]
                why = f"%{found['name']}% is a variable of the machine; write its value"
                if found["name"].lower() != "path":
                    self.script.lose(line, why)
                return found[0]
            if found["digit"]:
                if found["digit"] != "0":
                    self.script.lose(line, "arguments of the script are not known here")
                return ""
            if found["part"] and set(found["part"].lower()) - {"d", "p"}:
                self.script.lose(line, f"{found[0]} is not understood; write its value")
                return ""
            return "%" if found[0] == "%%" else f"{self._folder}/"

        return _VARIABLE.sub(replace, text)[:MAX_COMMAND]


def _split(text: str) -> Iterator[str]:
    """The commands between `&`, `&&` and `||`; what follows a `|` is dropped."""
    start, at, quoted = 0, 0, False
    while at < len(text):
        character = text[at]
        if character == "^" and not quoted:
            at += 2
            continue
        if character == '"' and text[at - 1 : at] != "\\":
            quoted = not quoted
        is_joint = character in "&|" and not quoted and text[at - 1 : at] != ">"
        if is_joint:
            yield text[start:at]
            if character == "|" and text[at + 1 : at + 2] != "|":
                return
            at += text[at + 1 : at + 2] == character
            start = at + 1
        at += 1
    yield text[start:]


def _without_redirections(text: str) -> str:
    """The command without `> file`, `2>&1`, `< file`: Modelyard keeps what engines print."""
    pieces = re.split(r'("(?:[^"\\]|\\.)*"?)', text)
    for at in range(0, len(pieces), 2):
        pieces[at] = re.sub(r"(?<![\^\w])[0-9]?>{1,2}\s*(?:&[0-9]|[^\s&|]*)", " ", pieces[at])
        pieces[at] = re.sub(r"(?<=\s)<\s*\S*", " ", pieces[at])
    return "".join(pieces)


def _split_quoted(text: str) -> list[str]:
    """Words with their quotes."""
    return re.findall(r'(?:[^\s"]|"[^"]*"?)+', text)


def split_words(text: str) -> list[str]:
    """Arguments as the C runtime of Windows splits them, `^` already without meaning."""
    words: list[str] = []
    word: list[str] | None = None
    quoted = False
    at = 0
    while at < len(text):
        character = text[at]
        if character == "\\" and text[at + 1 : at + 2] == '"':
            word = [*(word or []), '"']
            at += 2
            continue
        if character == '"':
            quoted, word = not quoted, word if word is not None else []
        elif character.isspace() and not quoted:
            if word is not None:
                words.append("".join(word))
            word = None
        else:
            if character == "^" and not quoted and at + 1 < len(text):
                at += 1
                character = text[at]
            word = word if word is not None else []
            word.append(character)
        at += 1
    return words if word is None else [*words, "".join(word)]
