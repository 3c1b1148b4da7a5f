"""What real traffic tells of an engine's health, and what its gauges tell of how full it is.

Laws of this file:
- Health: it costs a comparison for each answer and no request of our own: it stands in the hot
  path.
- An engine whose core has died often still answers its health route; what it answers to real
  requests is 500, again and again. One such answer proves nothing (some engines answer 500 to what
  is the client's mistake), several in a row are worth a look.
- Gauges: only engines that may get another replica are asked, one small request in a while, never
  in the way of a client's. An engine that does not tell is not full.

Gauges by engine: vLLM's `vllm:num_requests_waiting` and `vllm:kv_cache_usage_perc` (a share, 0
to 1; older versions call it `vllm:gpu_cache_usage_perc`); llama.cpp's `llamacpp:requests_deferred`
and in old builds `llamacpp:kv_cache_usage_ratio` (removed by its pull request 13660); those of our
own engine for embeddings, `modelyard_reader_inputs_waiting`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from modelyard.core.specs import Call, Endpoint
from modelyard.runtime.control import ControlFailed, call

log = logging.getLogger("modelyard")

GAUGES = Call("GET", "/metrics", timeout_s=2.0)
_WAITING = frozenset(
    {
        b"vllm:num_requests_waiting",
        b"llamacpp:requests_deferred",
        b"modelyard_reader_inputs_waiting",
    }
)
_SHARES = frozenset(
    {
        b"vllm:kv_cache_usage_perc",
        b"vllm:gpu_cache_usage_perc",
        b"llamacpp:kv_cache_usage_ratio",
    }
)

SUSPECT_AFTER = 3
"""Answers of the kind below in a row, after which an engine is looked at."""

_SICK = frozenset({500, 502, 504})
"""501 is what an engine cannot do, 503 that it is busy or loading: neither says that it is sick."""


class Vitals:
    """Counts answers of one run; `on_sick` is called when there have been too many bad ones."""

    __slots__ = ("_in_a_row", "_on_sick", "well")

    def __init__(self, on_sick: Callable[[], None]) -> None:
        self.well = 0
        """Answers so far that show that the engine works."""
        self._in_a_row = 0
        self._on_sick = on_sick

    def answered(self, status: int) -> None:
        """The engine has begun an answer to a client's request."""
        if status not in _SICK:
            self.well += 1
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row >= SUSPECT_AFTER:
            self._in_a_row = 0
            self._on_sick()


@dataclass(frozen=True, slots=True)
class Gauges:
    """What an engine says of itself."""

    kv_share: float | None
    """Share of its key-value cache in use, 0 to 1; None if it does not tell."""
    waiting: int
    """Requests that it has taken and not begun."""


async def read_gauges(endpoint: Endpoint) -> Gauges | None:
    """Ask an engine how full it is; None if it does not tell now."""
    try:
        text = await call(endpoint, GAUGES)
    except ControlFailed as error:
        log.debug("engine at %s tells no gauges: %s", endpoint, error)
        return None
    return gauges_in(text)


def gauges_in(text: bytes) -> Gauges | None:
    """The gauges in an answer in Prometheus's text format; None if none is known.

    Several ranks of one engine are added up, and the fullest cache counts.
    """
    waiting: list[float] = []
    shares: list[float] = []
    for name, value in _samples(text):
        if name in _WAITING:
            waiting.append(value)
        elif name in _SHARES:
            shares.append(value)
    if not (waiting or shares):
        return None
    return Gauges(max(shares, default=None), int(sum(waiting)))


def _samples(text: bytes) -> Iterator[tuple[bytes, float]]:
    for line in text.splitlines():
        if line.startswith(b"#"):
            continue
        name = line.partition(b"{")[0].split(b" ")[0]
        try:
            value = float(line.rpartition(b" ")[2])
        except ValueError:
            continue  # a line cut off, or with a time stamp of another kind
        if 0.0 <= value < math.inf:
            yield name, value
