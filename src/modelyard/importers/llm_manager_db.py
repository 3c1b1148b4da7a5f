"""LLM-Manager v3's database as the tree that its JSON form has, with sums of its usage.

Laws of this file:
- The database is opened read-only, and only tables are read: a view could compute for ever.
- Work and sizes are bounded: instructions of SQLite, rows, bytes of one value.
- Keys and secrets of cloud providers are never read.

Facts: `data/persistence.py` of LLM-Manager v3.1.1; the tables of v2's `webui/monitoring.db` from
a95acf1.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

from modelyard.config.tree import Plain
from modelyard.importers.errors import CannotImport
from modelyard.importers.jsonc import read_json

MAX_ROWS = 5000
MAX_VALUE_BYTES = 1024 * 1024
MAX_STEPS = 20_000
"""Thousands of SQLite's instructions: some seconds of work."""
_JSON_COLUMNS = ("required_devices", "memory_mb", "command")
_HIDDEN = ("id", "model_id", "ord", "updated_at", "created_at")
_COUNTED = ("log_sessions", "log_lines", "cloud_providers", "cloud_models", "cloud_price_tiers",
            "cloud_mappings")  # fmt: skip
_PRICES = ("pricing_type", "hourly_price", "support_cache")
Row: TypeAlias = dict[str, Plain]


def read_database(path: Path) -> dict[str, Plain]:
    """What the database at `path` holds. Raises CannotImport."""
    try:
        with closing(_open(path)) as connection:
            return _Reader(connection, path).read()
    except (sqlite3.Error, OverflowError, ValueError) as error:
        # ValueError: a message of SQLite about garbage may be garbage itself.
        hint = "stop LLM-Manager, and name its data/llm_manager.db"
        raise CannotImport(f"{path}: the database cannot be read: {error}", hint=hint) from error


def _open(path: Path) -> sqlite3.Connection:
    # A database whose last changes are still in its journal must not be taken as immutable.
    journal = path.with_name(f"{path.name}-wal")
    is_live = journal.is_file() and journal.stat().st_size > 0
    mode = "mode=ro" if is_live else "mode=ro&immutable=1"
    uri = f"file:{quote(str(path.absolute()))}?{mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=2.0)
    steps = iter(range(MAX_STEPS))
    connection.set_progress_handler(lambda: next(steps, None) is None, 1000)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA query_only = ON")
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    connection.row_factory = sqlite3.Row
    return connection


class _Reader:
    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        named = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' LIMIT 5000")
        self._tables = {str(name) for (name,) in named}

    def read(self) -> dict[str, Plain]:
        self._refuse_others()
        tree: dict[str, Plain] = {}
        settings = {str(row.get("key")): row.get("value") for row in self._rows("system_settings")}
        if settings:
            tree["system_settings"] = {key: _decoded(value) for key, value in settings.items()}
        tree["models"] = list(self._models())
        deleted = self._usage_of_others()
        if deleted:
            tree["usage_of_deleted_models"] = deleted
        for table in _COUNTED:
            count = self._count(table)
            if count:
                tree[table] = count
        return tree

    def _refuse_others(self) -> None:
        if "model_defs" in self._tables:
            return
        if "model_name_mapping" in self._tables:
            raise CannotImport(
                f"{self._path}: holds usage and prices of LLM-Manager v2 and no models",
                hint="import its config.json; keep this file, Modelyard cannot take usage in yet",
            )
        if {"model_pricing", "model_scripts"} & self._tables:
            raise CannotImport(
                f"{self._path}: is a database from before LLM-Manager v3.1",
                hint="import the config.json or config.yaml of that version",
            )
        listed = ", ".join(sorted(self._tables)[:10]) or "none"
        raise CannotImport(
            f"{self._path}: is a database, and not of LLM-Manager; its tables: {listed}",
            hint="name LLM-Manager's data/llm_manager.db",
        )

    def _models(self) -> Iterator[Plain]:
        aliases = self._by("model_aliases", "model_id")
        schemes = self._by("model_schemes", "model_id")
        tiers = self._by("pricing_tiers", "pricing_id")
        for row in sorted(self._rows("model_defs"), key=_order):
            key = row.get("id")
            model: Row = {name: value for name, value in row.items() if name not in _HIDDEN}
            model["auto_start"] = bool(row.get("auto_start"))
            model["aliases"] = [each.get("alias") for each in aliases.get(key, [])]
            model["schemes"] = [_scheme(each, self._path) for each in schemes.get(key, [])]
            prices: Row = {name: model.pop(name) for name in _PRICES if name in model}
            own = [
                {k: v for k, v in tier.items() if k != "pricing_id"} for tier in tiers.get(key, [])
            ]
            model["pricing"] = {**prices, "tiers": list(own)}
            usage = self._usage(str(row.get("name")))
            if usage:
                model["usage"] = usage
            yield model

    def _usage(self, name: str) -> Row:
        """Sums of what a model has done; empty if nothing is recorded."""
        if not {"models", "model_requests"} <= self._tables:
            return {}
        row = self._connection.execute(
            "SELECT count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), "
            "coalesce(sum(cache_n), 0), min(start_time), max(end_time) FROM model_requests "
            "WHERE model_id IN (SELECT id FROM models WHERE original_name = ?)",
            (name,),
        ).fetchone()
        names = ("requests", "input_tokens", "output_tokens", "cached_tokens", "first", "last")
        return dict(zip(names, row, strict=True)) if row[0] else {}

    def _usage_of_others(self) -> Row:
        if not {"models", "model_requests"} <= self._tables:
            return {}
        found = self._connection.execute(
            "SELECT original_name FROM models WHERE original_name NOT IN "
            "(SELECT name FROM model_defs) LIMIT 1000"
        )
        usage = {str(name): self._usage(str(name)) for (name,) in found.fetchall()}
        return {name: sums for name, sums in usage.items() if sums}

    def _by(self, table: str, key: str) -> dict[Plain, list[Row]]:
        grouped: dict[Plain, list[Row]] = {}
        for row in sorted(self._rows(table), key=_order):
            grouped.setdefault(row.get(key), []).append(row)
        return grouped

    def _rows(self, table: str) -> list[Row]:
        if table not in self._tables:
            return []
        rows = self._connection.execute(f'SELECT * FROM "{table}" LIMIT {MAX_ROWS + 1}').fetchall()
        if len(rows) > MAX_ROWS:
            raise CannotImport(f"{self._path}: the table {table} has more than {MAX_ROWS} rows")
        return [{key: _plain(row[key]) for key in row.keys()} for row in rows]  # noqa: SIM118

    def _count(self, table: str) -> int:
        if table not in self._tables:
            return 0
        return int(self._connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0])


def _plain(value: object) -> Plain:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, int | float | str) else str(value)


def _order(row: Row) -> tuple[float, float]:
    """As LLM-Manager orders them: `ord`, tiers by `tier_index`."""
    keys = [row.get("ord"), row.get("tier_index")]
    numbers = [float(key) if isinstance(key, int | float) else 0.0 for key in keys]
    return numbers[0], numbers[1]


def _scheme(row: Row, path: Path) -> Plain:
    """A scheme with its three JSON columns decoded."""
    scheme: Row = {name: value for name, value in row.items() if name not in _HIDDEN}
    for column in _JSON_COLUMNS:
        if isinstance(scheme.get(column), str):
            scheme[column] = read_json(str(scheme[column]), f"{path}: model_schemes.{column}")
    return scheme


def _decoded(value: Plain) -> Plain:
    """Settings are text; some hold JSON."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            decoded: Plain = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return decoded if isinstance(decoded, dict | list) and len(value) < 4096 else value
    return value
