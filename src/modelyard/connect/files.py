"""Clients' files, changed so that it can be undone.

Laws of this file:
- What was there before is written down (`Journal`) before anything is changed; undoing puts it back
  and leaves alone what somebody has changed since.
- A file that cannot be read, or whose comments would be lost, is not touched.
- Files are replaced as a whole, with the permissions that they had; new ones are for their owner
  alone, since they may hold a key.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from modelyard.config.edit import current, replace_file
from modelyard.connect.recipes import Merge, Whole
from modelyard.core.errors import InvalidRequest

ABSENT: Final = {"modelyard": "absent"}
"""Stands in the journal for a value that was not there."""
MAX_FILE: Final = 8 * 1024 * 1024

KeyPath = tuple[str, ...]


class CannotEdit(InvalidRequest):
    """A client's file is not touched."""

    code = "cannot_edit"


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one file."""

    path: Path
    action: str
    """`written`, `changed`, `unchanged`, `removed`, `restored`, or `left` as others changed it."""
    keys: tuple[str, ...] = ()
    """The keys concerned, dotted; none for a whole file."""


class Journal:
    """What clients' files held before, in one file for each client."""

    def __init__(self, folder: Path, client: str) -> None:
        self._path = folder / "connect" / f"{client}.json"

    def entries(self) -> list[dict[str, Any]]:
        """What was noted, oldest first. Raises CannotEdit if it cannot be read."""
        try:
            noted = json.loads(self._path.read_text())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise CannotEdit(f"{self._path} cannot be read: {error}") from None
        if not isinstance(noted, list):
            raise CannotEdit(f"{self._path} holds no journal")
        return noted

    def write(self, entries: list[dict[str, Any]]) -> None:
        if entries:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _replace(self._path, json.dumps(entries, indent=1))
        else:
            self._path.unlink(missing_ok=True)


def connect(edits: Sequence[Whole | Merge], journal: Journal) -> list[Done]:
    """Make the edits. Raises CannotEdit before anything is changed, or for a disk that fails."""
    texts = [_text(edit) for edit in edits]  # what cannot be edited is found out here
    noted = journal.entries()
    known = {(entry["path"], tuple(entry["key"])) for entry in noted}
    for edit in edits:
        for entry in _before(edit):
            if (entry["path"], tuple(entry["key"])) not in known:
                noted.append(entry)
    journal.write(_with_ours(noted, edits))
    done = []
    for edit, (before, after) in zip(edits, texts, strict=True):
        if before != after:
            _replace(edit.path, after)
        action = "unchanged" if before == after else "written" if before is None else "changed"
        keys = () if isinstance(edit, Whole) else tuple(".".join(p) for p, _ in leaves(edit.values))
        done.append(Done(edit.path, action, keys))
    return done


def disconnect(journal: Journal) -> list[Done]:
    """Put back what was there before. Raises CannotEdit."""
    done: dict[Path, Done] = {}
    for entry in reversed(journal.entries()):
        path, key = Path(entry["path"]), tuple(entry["key"])
        action = _undo_whole(path, entry) if not key else _undo_key(path, key, entry)
        before = done.get(path)
        keys = (*(before.keys if before else ()), *([".".join(key)] if key else []))
        if before is not None and before.action == "left":
            action = "left"
        done[path] = Done(path, action, keys)
    journal.write([])
    return list(done.values())


def _text(edit: Whole | Merge) -> tuple[str | None, str]:
    """The file's text now, None if there is no file, and as it is to be."""
    before = _read(edit.path)
    if isinstance(edit, Whole):
        return before, edit.text
    tree = _parse(edit.path, before)
    merged = json.loads(json.dumps(tree)) if edit.path.suffix == ".json" else tree
    for path, value in leaves(edit.values):
        if _differs_only_in_head(edit.path, path, tree):
            continue
        _put(merged, path, value, edit.path)
    return before, _dump(edit.path, merged)


def _differs_only_in_head(path: Path, key: KeyPath, tree: Any) -> bool:
    """Whether a key names the file itself (Continue's `name`, `version`, `schema`) and is there."""
    head = path.suffix in (".yaml", ".yml") and key in (("name",), ("version",), ("schema",))
    return head and key[0] in tree


def leaves(values: Mapping[str, Any], above: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    """Every value below mappings, with its path; lists are values."""
    found: list[tuple[KeyPath, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found += leaves(value, (*above, name))
        else:
            found.append(((*above, name), value))
    return found


def _before(edit: Whole | Merge) -> list[dict[str, Any]]:
    """Journal entries for what an edit changes."""
    path = str(edit.path)
    text = _read(edit.path)
    if isinstance(edit, Whole):
        return [{"path": path, "key": [], "before": ABSENT if text is None else text}]
    tree = _parse(edit.path, text)
    entries = []
    for key, value in leaves(edit.values):
        if _differs_only_in_head(edit.path, key, tree):
            continue
        had = _get(tree, key)
        if isinstance(value, list):
            had = _named(had if isinstance(had, list) else [], value)
        entries.append({"path": path, "key": list(key), "before": _plain(had)})
    return entries


def _with_ours(
    entries: list[dict[str, Any]], edits: Sequence[Whole | Merge]
) -> list[dict[str, Any]]:
    """The entries with what is written now, by which others' changes are told later."""
    ours: dict[tuple[str, KeyPath], Any] = {}
    for edit in edits:
        if isinstance(edit, Whole):
            ours[str(edit.path), ()] = edit.text
        else:
            ours |= {(str(edit.path), key): value for key, value in leaves(edit.values)}
    return [
        {**entry, "ours": ours.get((entry["path"], tuple(entry["key"])), entry.get("ours"))}
        for entry in entries
    ]


def _undo_whole(path: Path, entry: dict[str, Any]) -> str:
    text = _read(path)
    if text is None:
        return "removed"
    if text != entry["ours"]:
        return "left"
    if entry["before"] == ABSENT:
        path.unlink()
        return "removed"
    _replace(path, entry["before"])
    return "restored"


def _undo_key(path: Path, key: KeyPath, entry: dict[str, Any]) -> str:
    text = _read(path)
    if text is None:
        return "removed"
    tree = _parse(path, text)
    now, ours, before = _get(tree, key), entry["ours"], entry["before"]
    if isinstance(ours, list):
        kept = [each for each in now if isinstance(now, list) and not _same_name(each, ours)]
        kept += before if isinstance(before, list) else []
        if kept:
            _put_plain(tree, key, kept)
        else:
            _remove(tree, key)
    elif _plain(now) != ours:
        return "left"
    elif before == ABSENT:
        _remove(tree, key)
    else:
        _put_plain(tree, key, before)
    if not tree:
        path.unlink()
        return "removed"
    _replace(path, _dump(path, tree))
    return "restored"


def _get(tree: Any, key: KeyPath) -> Any:
    for step in key:
        if not isinstance(tree, Mapping) or step not in tree:
            return ABSENT
        tree = tree[step]
    return tree


def _put(tree: Any, key: KeyPath, value: Any, path: Path) -> None:
    for at, step in enumerate(key[:-1]):
        below = tree.setdefault(step, {})
        if not isinstance(below, dict):
            raise CannotEdit(f"{path}: {'.'.join(key[: at + 1])} holds no keys; change it by hand")
        tree = below
    had = tree.get(key[-1])
    if isinstance(value, list) and isinstance(had, list):
        had[:] = [each for each in had if not _same_name(each, value)]
        had.extend(value)
    else:
        tree[key[-1]] = value


def _put_plain(tree: Any, key: KeyPath, value: Any) -> None:
    for step in key[:-1]:
        tree = tree[step]
    tree[key[-1]] = value


def _remove(tree: Any, key: KeyPath) -> None:
    """Take a key out, and the mappings above it that are empty then."""
    trail = [tree]
    for step in key[:-1]:
        trail.append(trail[-1][step])
    del trail[-1][key[-1]]
    for at in range(len(key) - 2, -1, -1):
        if trail[at + 1]:
            return
        del trail[at][key[at]]


def _named(had: list[Any], ours: list[Any]) -> Any:
    """Those entries of a list that ours replace; ABSENT for none."""
    return [each for each in had if _same_name(each, ours)] or ABSENT


def _same_name(entry: Any, ours: list[Any]) -> bool:
    if not isinstance(entry, Mapping):
        return entry in ours
    names = [each.get("name") for each in ours if isinstance(each, Mapping)]
    return entry.get("name") in names


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _read(path: Path) -> str | None:
    try:
        if path.stat().st_size > MAX_FILE:
            raise CannotEdit(f"{path} is larger than {MAX_FILE} bytes")
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CannotEdit(f"{path} cannot be read: {error}") from None


def _parse(path: Path, text: str | None) -> Any:
    if text is None or not text.strip():
        return {}
    try:
        tree = json.loads(text) if path.suffix == ".json" else _yaml().load(text)
    except (ValueError, RecursionError) as error:
        hint = "write it by hand, as shown without --write: comments would be lost"
        raise CannotEdit(f"{path} is not plain JSON: {error}", hint=hint) from None
    except YAMLError as error:
        raise CannotEdit(f"{path} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise CannotEdit(f"{path} holds no keys")
    return tree


def _dump(path: Path, tree: Any) -> str:
    if path.suffix == ".json":
        return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
    out = io.StringIO()
    _yaml().dump(tree, out)
    return out.getvalue()


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    return yaml


def _replace(path: Path, text: str) -> None:
    """Replace a file as a whole. Raises CannotEdit."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode(), current(path))
    except OSError as error:
        raise CannotEdit(f"{path} cannot be written: {error.strerror or error}") from None
