"""Traces: who asks for what, when. Formats are told apart by their headers.

Laws of this file:
- A file is hostile: lines, rows and problems are counted, and what is unpacked is read line by
  line. Every problem names its line.
- A trace without models gets them by Zipf's law, a trace of rates gets its arrivals by drawing;
  both follow from the seed alone.

Formats: our own (`t_s,model,input_tokens,output_tokens`); Azure's LLM inference traces of 2023 and
2024 (`TIMESTAMP,ContextTokens,GeneratedTokens`); BurstGPT (`Timestamp,Model,Request tokens,Response
tokens`, seconds); Mooncake's, as CSV or JSON lines (`timestamp,input_length,output_length`,
milliseconds); rates by client and window, as derived from ServeGen.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, TypeVar

from modelyard.config.wording import shorten
from modelyard.core.errors import ConfigError
from modelyard.simulation.arrivals import RateWindow, arrivals, by_zipf
from modelyard.simulation.values import Cut, Job, service_s

MAX_JOBS = 1_000_000
MAX_LINES = 20_000_000
MAX_LINE = 64 * 1024
MAX_PROBLEMS = 20
MAX_TOKENS = 100_000_000
LONGEST_S = 10 * 366 * 86400.0
GZIP = b"\x1f\x8b"

Row = Mapping[str, str]
_T = TypeVar("_T")


class _Wrong(ValueError):
    """A row that cannot be read."""


@dataclass(slots=True)
class _Reader:
    """The lines of a file, and what is wrong with them."""

    path: Path
    line: int = 0
    problems: list[str] = field(default_factory=list)

    def lines(self, file: BinaryIO) -> Iterator[str]:
        while raw := file.readline(MAX_LINE + 1):
            self.line += 1
            if self.line > MAX_LINES:
                raise self.failed(f"the file has more than {MAX_LINES} lines")
            if len(raw) > MAX_LINE:
                raise self.failed(f"the line is longer than {MAX_LINE} bytes")
            try:
                text = raw.decode("utf-8-sig" if self.line == 1 else "utf-8")
            except UnicodeDecodeError:
                raise self.failed("not UTF-8 text") from None
            if text.strip():
                yield text

    def wrong(self, text: str) -> None:
        """One problem more; raises when there are too many to go on."""
        self.problems.append(f"line {self.line}: {text}")
        if len(self.problems) >= MAX_PROBLEMS:
            self.problems.append("and perhaps more: reading ended here")
            raise ConfigError(str(self.path), self.problems)

    def failed(self, text: str) -> ConfigError:
        return ConfigError(str(self.path), [*self.problems, f"line {self.line}: {text}"])


def read_trace(
    path: Path, models: Sequence[str], *, seed: int = 0, cut: Cut | None = None
) -> list[Job]:
    """The requests of a trace, in the order of their arrival.

    `models` are given to requests where the trace names none. Raises ConfigError with every problem
    (up to 20): the file cannot be read, its header is of no known format, rows are wrong.
    """
    cut = cut or Cut()
    reader = _Reader(path)
    try:
        with _opened(path) as file:
            jobs = _read(reader, file, models, seed, cut)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(str(path), [f"cannot be read: {reason}"]) from error
    except csv.Error as error:
        raise reader.failed(f"not CSV: {error}") from error
    if reader.problems:
        raise ConfigError(str(path), reader.problems)
    if not jobs:
        raise ConfigError(str(path), ["holds no request in the part that was asked for"])
    return sorted(jobs, key=lambda job: job.arrived_s)


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    return gzip.open(path) if packed else path.open("rb")  # type: ignore[return-value]  # GzipFile


def _read(reader: _Reader, file: BinaryIO, models: Sequence[str], seed: int, cut: Cut) -> list[Job]:
    lines = reader.lines(file)
    header = next(lines, None)
    if header is None:
        raise ConfigError(str(reader.path), ["is empty"])
    if header.lstrip().startswith("{"):
        rows = _json_rows(reader, header, lines)
        columns = _columns(reader, ("timestamp", "input_length", "output_length"))
    else:
        names = [name.strip() for name in next(csv.reader([header], strict=True))]
        rows = _csv_rows(reader, names, lines)
        if {"rate_rps", "pattern", "shape"} <= set(names):
            return _from_rates(reader, rows, models, seed, cut)
        columns = _columns(reader, names)
    return _from_requests(reader, rows, columns, models, seed, cut)


def _csv_rows(reader: _Reader, names: Sequence[str], lines: Iterator[str]) -> Iterator[Row]:
    for values in csv.reader(lines, strict=True):
        if len(values) != len(names):
            reader.wrong(f"has {len(values)} values, the header names {len(names)}")
            continue
        yield dict(zip(names, values, strict=True))


def _json_rows(reader: _Reader, first: str, lines: Iterator[str]) -> Iterator[Row]:
    text: str | None = first
    while text is not None:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            reader.wrong("not JSON")
        else:
            if isinstance(row, dict):
                yield {str(key): str(value) for key, value in row.items()}
            else:
                reader.wrong("not a JSON object")
        text = next(lines, None)


# ------------------------------------------------------------------------------------------ columns


def _seconds(text: str) -> float:
    return _number(text)


def _milliseconds(text: str) -> float:
    return _number(text) / 1000


def _moment(text: str) -> float:
    """Azure writes `2023-11-16 18:15:46.6805900`, UTC."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise _Wrong(f"{shorten(text)} is not a moment like 2023-11-16 18:15:46.68") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


_TIMES: dict[str, Callable[[str], float]] = {
    "t_s": _seconds,
    "t_ms": _milliseconds,
    "TIMESTAMP": _moment,
    "Timestamp": _seconds,
    "timestamp": _milliseconds,
}
_INPUTS = ("input_tokens", "prompt_tokens", "ContextTokens", "Request tokens", "input_length")
_OUTPUTS = ("output_tokens", "GeneratedTokens", "Response tokens", "output_length")
_MODELS = ("model", "Model")
_ADVICE = "our own begins with t_s,model,input_tokens,output_tokens; see docs/simulate.md"


@dataclass(frozen=True, slots=True)
class _Columns:
    time: str
    inputs: str
    outputs: str
    model: str | None
    priority: str | None
    key: str | None


def _columns(reader: _Reader, names: Sequence[str]) -> _Columns:
    time = next((name for name in _TIMES if name in names), None)
    inputs = next((name for name in _INPUTS if name in names), None)
    outputs = next((name for name in _OUTPUTS if name in names), None)
    if time is None or inputs is None or outputs is None:
        shown = shorten(",".join(names))
        raise reader.failed(f"the header {shown} is of no known format; {_ADVICE}")
    return _Columns(
        time,
        inputs,
        outputs,
        next((name for name in _MODELS if name in names), None),
        "priority" if "priority" in names else None,
        "key" if "key" in names else None,
    )


def _number(text: str, least: float = 0.0, most: float = LONGEST_S) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _Wrong(f"{shorten(text)} is not a number") from None
    if not least <= value <= most:  # false for nan, too
        raise _Wrong(f"{shorten(text)} is not between {least:g} and {most:g}")
    return value


def _whole(text: str, least: int = 0, most: int = MAX_TOKENS) -> int:
    value = _number(text, least, most)
    if not value.is_integer():
        raise _Wrong(f"{shorten(text)} is not a whole number")
    return int(value)


def _of(row: Row, name: str, read: Callable[[str], _T]) -> _T:
    try:
        return read(row[name])
    except KeyError:
        raise _Wrong(f"{name} is missing") from None
    except _Wrong as wrong:
        raise _Wrong(f"{name}: {wrong}") from None


# ----------------------------------------------------------------------------------------- requests


def _from_requests(
    reader: _Reader,
    rows: Iterator[Row],
    columns: _Columns,
    models: Sequence[str],
    seed: int,
    cut: Cut,
) -> list[Job]:
    draw = by_zipf(models, seed)
    jobs: list[Job] = []
    zero_s: float | None = None
    for row in rows:
        try:
            at_s = _of(row, columns.time, _TIMES[columns.time])
            job = _job(row, columns)
        except _Wrong as wrong:
            reader.wrong(str(wrong))
            continue
        if zero_s is None:
            zero_s = at_s if columns.time == "TIMESTAMP" else 0.0
        if not columns.model:
            job.model = draw()  # also of what is cut off, so that a cut changes no model
        at_s -= zero_s + cut.start_s
        if not 0 <= at_s < cut.length_s:
            continue
        job.arrived_s = at_s * cut.stretch
        if len(jobs) == MAX_JOBS:
            raise reader.failed(f"more than {MAX_JOBS} requests; play a part with --length")
        jobs.append(job)
    return jobs


def _job(row: Row, columns: _Columns) -> Job:
    inputs = _of(row, columns.inputs, _whole)
    outputs = _of(row, columns.outputs, _whole)
    job = Job("", 0.0, service_s(inputs, outputs))
    if columns.model:
        job.model = row[columns.model].strip()
        if not job.model:
            raise _Wrong(f"{columns.model} is empty")
    if columns.priority and row[columns.priority].strip():
        job.priority = _of(row, columns.priority, lambda text: _whole(text, -1000, 1000))
    if columns.key:
        job.key = row[columns.key].strip()
    return job


def _from_rates(
    reader: _Reader, rows: Iterator[Row], models: Sequence[str], seed: int, cut: Cut
) -> list[Job]:
    windows: dict[str, list[RateWindow]] = {}
    end_s, count = cut.start_s + cut.length_s, 0
    for row in rows:
        try:
            window = _window(row)
            client = f"{row.get('pool', '')}/{row.get('client', '')}"
        except _Wrong as wrong:
            reader.wrong(str(wrong))
            continue
        if cut.start_s - window.length_s < window.start_s < end_s and window.rate_rps:
            count += 1
            if count > MAX_JOBS:
                raise reader.failed(f"more than {MAX_JOBS} windows; play a part with --length")
            windows.setdefault(client, []).append(window)
    if reader.problems:
        return []
    try:
        return arrivals(windows, models, seed, cut, MAX_JOBS)
    except ValueError as error:
        raise ConfigError(str(reader.path), [str(error)]) from error


def _window(row: Row) -> RateWindow:
    pattern = row["pattern"].strip().lower()
    if pattern not in ("gamma", "weibull"):
        raise _Wrong(f"pattern: {shorten(row['pattern'])} is neither Gamma nor Weibull")
    return RateWindow(
        _of(row, "t_s", _seconds),
        _of(row, "rate_rps", lambda text: _number(text, 0.0, 1e6)),
        pattern,
        _of(row, "shape", lambda text: _number(text, 1e-3, 1e6)),
    )
