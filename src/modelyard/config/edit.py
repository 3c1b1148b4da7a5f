"""Writes into the configuration file of a person: one key of one model, or one entry of `keys`,
and nothing else.

Laws of this file:
- Only the lines of the key are touched. Comments, order, quotes, anchors and line ends of all other
  lines stay byte for byte: ruamel says where things are, and the text is cut there.
- An edit is checked before it is returned: read again, the file must say what it said, plus the
  change. Where that cannot be had (an entry shared by an alias, say) the edit is refused, with what
  to write by hand.
- A file is replaced as a whole or not at all, and not if somebody else has changed it meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from modelyard.config import tree
from modelyard.config.assignment import Assignment
from modelyard.config.read import read_text
from modelyard.config.tree import Origin, Plain
from modelyard.core.errors import ConfigError
from modelyard.core.specs import OptionValue

KEY = "assigned"
INDENT = 2
_BOM = "\ufeff"
_PLAIN_KEY = re.compile(r"[A-Za-z_][\w.-]*")
_NO_KEY = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def with_assignment(
    content: bytes,
    where: str,
    model: str,
    assignment: Assignment,
    entry: Mapping[str, OptionValue],
) -> bytes:
    """The file `content` with `assignment` in the entry of `model`; an empty one is taken out.

    `entry` is what a new entry holds, for a model that the file does not name yet. `where` names
    the file in errors. Raises ConfigError if the file cannot be read or cannot be edited.
    """
    before = _plain(content, where)
    models = before.get("models") if isinstance(before, dict) else None
    _refuse_others(where, "models", models)
    is_new = not isinstance(models, dict) or model not in models
    if isinstance(models, dict):
        _refuse_others(where, f"models.{model}", models.get(model))
    after = _expected(before, model, assignment, entry)
    if after == before:
        return content
    path: tuple[str, ...] = ("models", model)
    value: dict[str, OptionValue] | None = {**entry, KEY: _written(assignment)}
    if not is_new:
        path = (*path, KEY)
        value = _written(assignment) if assignment else None
    written = _with(content, path, value)
    if _is_said(written, where, after, ("models", model)):
        return written
    by_hand = json.dumps({KEY: _written(assignment)}, ensure_ascii=False)[1:-1]
    do = f"write it by hand: {by_hand}" if assignment else f"take {KEY} out by hand"
    text = f"cannot be edited where it says models.{model} (an alias, or an unusual layout); {do}"
    raise ConfigError(where, [text])


def with_key(
    content: bytes, where: str, name: str, entry: Mapping[str, OptionValue] | None
) -> bytes:
    """The file `content` with this entry of `keys`; None takes it out.

    `where` names the file in errors. Raises ConfigError if the file cannot be read or edited.
    """
    before = _plain(content, where)
    root = before if isinstance(before, dict) else {}
    keys = root.get("keys")
    _refuse_others(where, "keys", keys)
    others = {other: known for other, known in _mapping(keys).items() if other != name}
    if entry is None and name not in _mapping(keys):
        return content
    kept: dict[str, Plain] = others if entry is None else {**others, name: _copied(entry)}
    written = _with(content, ("keys", name), entry)
    if _is_said(written, where, {**root, "keys": kept}, ("keys",)):
        return written
    by_hand = json.dumps({name: entry}, ensure_ascii=False)[1:-1]
    do = f"take {name} out by hand" if entry is None else f"write it by hand: {by_hand}"
    text = f"cannot be edited where it says keys (an alias, or an unusual layout); {do}"
    raise ConfigError(where, [text])


def replace_file(path: Path, content: bytes, expected: bytes | None) -> None:
    """Write the file at once, where a link leads to; `expected` is what it holds, None if nothing.

    Raises ConfigError if it cannot be written, or holds something else than expected.
    """
    target = Path(os.path.realpath(path))
    try:
        if current(target) != expected:
            raise ConfigError(str(path), ["was changed by somebody else meanwhile; try again"])
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o7777 if expected is not None else 0o600
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(mode)
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be written: {error.strerror or error}"]) from error


def current(path: Path) -> bytes | None:
    """What the file holds; None if there is no file. Raises ConfigError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror or error}"]) from error


# ------------------------------------------------------------------------------- what it is to say


def _plain(content: bytes, where: str) -> Plain:
    """What the file says, references and anchors as they are resolved by its reader."""
    root = read_text(content, Origin(Path(where).name, Path()), where)
    return _of_node(root)


def _of_node(node: tree.Node) -> Plain:
    if isinstance(node.value, dict):
        return {key: _of_node(below) for key, below in node.value.items()}
    if isinstance(node.value, tuple):
        return [_of_node(below) for below in node.value]
    return node.value


def _expected(
    before: Plain, model: str, assignment: Assignment, entry: Mapping[str, OptionValue]
) -> Plain:
    """What the file is to say after the edit."""
    root = before if isinstance(before, dict) else {}
    models = root.get("models")
    declared = models if isinstance(models, dict) else {}
    known = declared.get(model, _copied(entry))
    kept = dict(known) if isinstance(known, dict) else {}
    kept.pop(KEY, None)
    if assignment:
        kept[KEY] = _copied(_written(assignment))
    elif model not in declared or kept == known:
        return before
    return {**root, "models": {**declared, model: kept}}


def _copied(value: Mapping[str, OptionValue]) -> Plain:
    """The same, as a file would give it back."""
    copied: Plain = json.loads(json.dumps(value))
    return copied


def _refuse_others(where: str, path: str, value: Plain) -> None:
    """Raise ConfigError for what is neither a mapping nor empty: it would be lost."""
    if value is not None and not isinstance(value, dict):
        raise ConfigError(where, [f"{path}: must hold keys and values (key: value)"])


def _with(content: bytes, path: tuple[str, ...], value: Mapping[str, OptionValue] | None) -> bytes:
    """The file's text with the key at `path` set, or taken out."""
    text = content.decode("utf-8-sig")
    line_end = "\r\n" if "\r\n" in text else "\n"
    edit = _Edit(text.replace("\r\n", "\n"))
    edit.set(path, value)
    edited = edit.text.replace("\n", line_end)
    return ((_BOM if content.startswith(_BOM.encode()) else "") + edited).encode()


def _is_said(written: bytes, where: str, after: Plain, path: tuple[str, ...]) -> bool:
    """Whether the file says `after`; what is empty at `path` may be left out or be null."""
    try:
        says = _plain(written, where)
    except ConfigError:
        return False
    return _without_empty(says, path) == _without_empty(after, path)


def _without_empty(says: Plain, path: tuple[str, ...]) -> Plain:
    """The same with an empty mapping at `path` as nothing at all: that is how it is written."""
    if not path:
        return None if says == {} else says
    if isinstance(says, dict) and path[0] in says:
        return {**says, path[0]: _without_empty(says[path[0]], path[1:])}
    return says


def _mapping(value: Plain) -> dict[str, Plain]:
    return value if isinstance(value, dict) else {}


def _written(assignment: Assignment) -> dict[str, OptionValue]:
    """The assignment in the words of the file."""
    written: dict[str, OptionValue] = {}
    if assignment.devices:
        written["devices"] = list(assignment.devices)
    if assignment.options:
        written["options"] = dict(assignment.options)
    return written


# -------------------------------------------------------------------------------------- the cutting


class _Edit:
    """A text of YAML in which one key is set, replaced or taken out."""

    def __init__(self, text: str) -> None:
        self.text = text

    def set(self, path: tuple[str, ...], value: Mapping[str, OptionValue] | None) -> None:
        """Set the key at `path`; None takes it out. Missing mappings on the way are made."""
        root = YAML(typ="rt", pure=True).compose(self.text)
        if not isinstance(root, MappingNode):
            if value is not None:
                self._append(len(self.text), _block(path, value, 0))
            return
        mapping = root
        for depth, key in enumerate(path):
            found = _pair(mapping, key)
            if found is None:
                if value is not None:
                    self._add(mapping, path[depth:], value)
                return
            if depth == len(path) - 1:
                self._replace(mapping, found, value)
                return
            below = found[1]
            if not isinstance(below, MappingNode) or not below.value:
                if value is not None:
                    self._replace(mapping, found, _nested(path[depth + 1 :], value))
                return
            mapping = below

    def _add(
        self, mapping: MappingNode, path: tuple[str, ...], value: Mapping[str, OptionValue]
    ) -> None:
        if mapping.flow_style:
            at = mapping.end_mark.index - 1  # the closing brace
            before = self.text[:at].rstrip()
            comma = "" if before.endswith(("{", ",")) else ", "
            pair = f"{json.dumps(path[0])}: {_flow(_nested(path[1:], value))}"
            self.text = f"{before}{comma}{pair}{self.text[len(before) : at]}{self.text[at:]}"
            return
        indent = mapping.value[0][0].start_mark.column
        self._append(_end(mapping), _block(path, value, indent))

    def _replace(
        self,
        mapping: MappingNode,
        pair: tuple[Node, Node],
        value: Mapping[str, OptionValue] | None,
    ) -> None:
        key, old = pair
        start, end = key.start_mark.index, key.end_mark.index
        if not _is_empty(old):
            end = max(end, _end(old))
        if mapping.flow_style:
            self._replace_in_flow(start, end, key, value)
            return
        line_start = self.text.rfind("\n", 0, start) + 1
        line_end = self.text.find("\n", end)
        line_end = len(self.text) if line_end < 0 else line_end + 1
        new = ""
        if value is not None:
            comment = self.text[end:line_end].lstrip(" :").rstrip()
            note = f"  {comment}" if comment.startswith("#") else ""
            new = _block((str(key.value),), value, key.start_mark.column)
            new = new.replace(":\n", f":{note}\n", 1)
        self.text = self.text[:line_start] + new + self.text[line_end:]

    def _replace_in_flow(
        self, start: int, end: int, key: Node, value: Mapping[str, OptionValue] | None
    ) -> None:
        if value is not None:
            pair = f"{json.dumps(str(key.value))}: {_flow(value)}"
            self.text = self.text[:start] + pair + self.text[end:]
            return
        before, after = self.text[:start].rstrip(), self.text[end:]
        if before.endswith(","):
            self.text = before[:-1] + after
        else:
            self.text = before + after.lstrip().removeprefix(",").lstrip()

    def _append(self, at: int, block: str) -> None:
        """Put `block` on the lines after the one that holds position `at`."""
        line_end = self.text.find("\n", at)
        if line_end < 0:
            head = self.text if not self.text or self.text.endswith("\n") else f"{self.text}\n"
            self.text = head + block
        else:
            self.text = self.text[: line_end + 1] + block + self.text[line_end + 1 :]


def _pair(mapping: MappingNode, key: str) -> tuple[Node, Node] | None:
    """The key and the value of a mapping's own key, merged ones not counted."""
    for name, value in mapping.value:
        if isinstance(name, ScalarNode) and name.value == key:
            return name, value
    return None


def _end(node: Node) -> int:
    """Where a node's own text ends: a block's mark lies behind the comments that follow it."""
    if isinstance(node, MappingNode) and not node.flow_style and node.value:
        key, value = node.value[-1]
        return max(_end(key), 0 if _is_empty(value) else _end(value))
    if isinstance(node, SequenceNode) and not node.flow_style and node.value:
        return _end(node.value[-1])
    end: int = node.end_mark.index
    if isinstance(node, ScalarNode) and node.style in ("|", ">"):
        end -= 1  # its mark stands on the line after its text
    start: int = node.start_mark.index
    return max(end, start)


def _is_empty(node: Node) -> bool:
    """Whether nothing is written; the marks of such a node stand where the next one begins."""
    return isinstance(node, ScalarNode) and node.start_mark.index == node.end_mark.index


def _nested(path: tuple[str, ...], value: Mapping[str, OptionValue]) -> Mapping[str, OptionValue]:
    for key in reversed(path):
        value = {key: dict(value)}
    return value


def _block(path: tuple[str, ...], value: Mapping[str, OptionValue], indent: int) -> str:
    """`path` and below it `value`, as lines indented by `indent` columns."""
    lines = [f"{' ' * (indent + INDENT * depth)}{_key(key)}:\n" for depth, key in enumerate(path)]
    lines.append(_lines(value, indent + INDENT * len(path)))
    return "".join(lines)


def _lines(value: Mapping[str, OptionValue], indent: int) -> str:
    lines = []
    for key, below in value.items():
        if isinstance(below, dict) and below:
            lines.append(f"{' ' * indent}{_key(key)}:\n{_lines(below, indent + INDENT)}")
        else:
            lines.append(f"{' ' * indent}{_key(key)}: {_flow(below)}\n")
    return "".join(lines)


def _key(key: str) -> str:
    is_plain = _PLAIN_KEY.fullmatch(key) and key.lower() not in _NO_KEY
    return key if is_plain else json.dumps(key, ensure_ascii=False)


def _flow(value: object) -> str:
    """A value on one line; JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)
