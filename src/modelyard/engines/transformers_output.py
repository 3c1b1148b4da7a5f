"""What the server of the engine `transformers` prints while it loads, and why it failed.

Laws of this file:
- Lines that begin with `modelyard: ` are our server's (`servers/transformers`), the others those of
  the libraries. Only whole lines in their own form count.
- A failure is called permanent only if the same command must fail again: trying again is cheap,
  giving up on a model that would have worked is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from modelyard.core.specs import HOST_DEVICE, Placement, Progress
from modelyard.engines.base import Failure
from modelyard.engines.lack import Lack, lack_in

_OURS: Final = "modelyard: "
_PHASE: Final = re.compile(r"modelyard: phase: (?P<phase>[a-z ]{1,60})")
_READY: Final = re.compile(r"modelyard: .{1,300} is ready at \S{1,100}|modelyard: ready")
_BAR: Final = re.compile(
    r"(?:Loading weights|Loading checkpoint shards|Fetching \d+ files): +(?P<percent>\d{1,3})%\|.*"
)
_HELD: Final = re.compile(r"modelyard: memory held: (?P<cards>cuda:\d.{0,2000})")
_CARD: Final = re.compile(r"cuda:(?P<index>\d{1,3}) (?P<mib>\d{1,9}) MiB")
_LONGEST: Final = 500
_EXIT_PERMANENT: Final = "exit code 78"

_REASONS: Final[tuple[tuple[re.Pattern[str], str, bool], ...]] = tuple(
    (re.compile(pattern), reason, permanent)
    for pattern, reason, permanent in (
        (r"No module named '?(torch|transformers|sentence_transformers|accelerate|msgspec)\b",
         "it needs `pip install 'modelyard[transformers]'`", True),
        (r"[Tt]orch not compiled with CUDA enabled|CUDA driver version is insufficient.*",
         "this torch cannot use the card; install its build for it, or place the model on the host",
         True),
        (r"model type `?(?P<a>[\w-]+)`? but Transformers does not recognize",
         "this transformers does not know the architecture {a}; a newer one may", True),
        (r"(?:requires you to execute|contains custom code|trust_remote_code=True).*",
         ("the model brings Python code of its own; read it, and set the option "
         "`trust_remote_code: true` if you trust it"), True),
        (r"(?:SafetensorError|Error while deserializing header|incomplete metadata).*",
         "the weights are incomplete or damaged: {line}", True),
        (r"(?:OutOfMemoryError|CUDA out of memory|can't allocate memory|MemoryError).*",
         "out of memory ({line})", False),
        (r"cannot listen on .*[Aa]ddress already in use.*",
         "its port was taken by another program", False),
    )
)  # fmt: skip
_SIGNALS: Final = {
    "SIGKILL": Failure("the system killed it, as it does when memory runs out", lack=Lack.DEVICE),
    "SIGILL": Failure("this build of torch uses instructions the processor lacks", True),
}


def progress(line: str) -> Progress | None:
    """The phase that a line of the log announces, with a percentage where a bar is drawn."""
    text = line[:_LONGEST].strip()
    if (found := _PHASE.fullmatch(text)) is not None:
        return Progress(found["phase"])
    if (found := _BAR.fullmatch(text)) is not None:
        return Progress("loading weights", min(100.0, float(found["percent"])))
    return Progress("ready") if _READY.fullmatch(text) else None


def failure(exit_text: str, last_lines: Sequence[str]) -> Failure:
    """The reason in one line, from the last lines that were printed."""
    said = [line.strip()[:_LONGEST] for line in last_lines if line.strip()]
    for line in reversed(said):
        for pattern, reason, permanent in _REASONS:
            if (found := pattern.search(line)) is not None:
                words = found.groupdict(default="")
                told = reason.format(a=words.get("a", ""), line=line.removeprefix(_OURS))
                return Failure(told, permanent, lack_in(line))
    for signal, explained in _SIGNALS.items():
        if signal in exit_text:
            return explained
    permanent = exit_text == _EXIT_PERMANENT
    last = said[-1] if said else ""
    if last.startswith(_OURS) and not _PHASE.fullmatch(last):
        return Failure(last.removeprefix(_OURS), permanent)
    tail = f": {last}" if last else ", and it printed nothing"
    return Failure(exit_text + tail, permanent)


def memory_report(lines: Sequence[str], placement: Placement) -> Mapping[str, int]:
    """What torch keeps on each card of the placement, by the server's last word about it."""
    gpus = cards(placement)
    for line in reversed(lines):
        if (found := _HELD.fullmatch(line.strip()[:_LONGEST])) is not None:
            held = {int(each["index"]): int(each["mib"]) for each in _CARD.finditer(found["cards"])}
            return {gpu: held[at] for at, gpu in enumerate(gpus) if held.get(at)}
    return {}


def cards(placement: Placement) -> list[str]:
    """The GPUs of a placement, in the order in which the process is made to see them."""
    ordered = (*placement.devices, *placement.claims_mib)
    return [
        device
        for device in dict.fromkeys(ordered)
        if device != HOST_DEVICE and device in placement.claims_mib
    ]
