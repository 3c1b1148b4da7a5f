"""What llama.cpp prints while it loads, and why it failed.

Laws of this file:
- The lines are those of llama.cpp at its default verbosity and one above, with or without its
  prefix of time and level (`0.00.003.818 I srv  load_model: `), old wording and new.
- A failure is called permanent only if the same command must fail again: trying again is cheap,
  giving up on a model that would have worked is not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from modelyard.core.specs import Progress
from modelyard.engines.base import Failure
from modelyard.engines.lack import Lack, lack_in

_PHASES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), phase)
    for pattern, phase in (
        (r"fitting params to (device|free)", "fitting to memory"),
        (r"loading model tensors|load_tensors: loading", "loading weights"),
        (r"load_model: loading model|main: loading model|init: loading model", "loading model"),
        (r"loaded meta data with", "reading header"),
        (r"constructing llama_context", "preparing context"),
        (r"KV (self|buffer) size|llama_kv_cache.*: size =", "preparing context"),
        (r"warming up the model", "warming up"),
        (r"loaded multimodal model|clip_model_loader", "loading projector"),
        (r"model loaded|listening on|server is listening", "ready"),
    )
)
_DOTS = re.compile(r"^\.{2,100}$")

_QUOTED = r"['‘\"]?(?P<what>[^'’\"]+)['’\"]?"

_REASONS: tuple[tuple[re.Pattern[str], str, bool], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), reason, permanent)
    for pattern, reason, permanent in (
        (r"unknown model architecture: " + _QUOTED,
         "this llama.cpp does not know the architecture {what}", True),
        (r"failed to open GGUF file " + _QUOTED + r" \((?P<why>.+)\)",
         "cannot open {what}: {why}", True),
        (r"invalid magic characters: .*",
         "the file is not a GGUF file ({line})", True),
        (r"data is not within the file bounds.*|tensor .* not within .*file",
         "the model file is incomplete or damaged ({line})", True),
        (r"(missing tensor|check_tensor_dims|wrong number of tensors|key not found in model).*",
         "the model file does not fit its architecture ({line})", True),
        (r"unsupported (GGUF|file) version.*|this GGUF file is version.*",
         "this llama.cpp does not read this version of GGUF ({line})", True),
        (r"unknown pre-tokenizer type: " + _QUOTED,
         "this llama.cpp does not know the tokenizer {what}", True),
        (r"couldn't bind HTTP server socket.*|address already in use",
         "its port was taken by another program", False),
        ((r"out of memory|insufficient memory|(unable|failed) to allocate|bad_alloc"
          r"|cannot allocate memory|ErrorOutOf(Device|Host)Memory"),
         "out of memory ({line})", False),
        (r"error: (invalid argument: .*|unknown argument: .*|while handling argument .*)",
         "llama-server refuses an option: {what_line}", True),
        (r"K cache type .*|V cache .* requires flash_attn.*|quantized V cache .*",
         "the cache type does not fit the model: {what_line}", True),
        (r"the supplied chat template is not supported.*",
         "the chat template is not supported", True),
        (r"No module named '?xllamacpp'?",
         "xllamacpp is not installed in this Python environment", True),
        (r"error while loading shared libraries: (?P<what>.+)",
         "a library is missing: {what}", True),
        (r"error loading model: (?P<what>.+)", "llama.cpp could not load the model: {what}", False),
    )
)  # fmt: skip

_EXIT_PERMANENT = "exit code 78"
"""What our own server answers when only a person can help; its last line says with what."""
_OURS = "modelyard: "
_SIGNALS = {
    "SIGKILL": Failure("the system killed it, as it does when memory runs out", lack=Lack.DEVICE),
    "SIGILL": Failure("this build of llama.cpp uses instructions the processor lacks", True),
}
_PREFIX = re.compile(r"^[\d.]+ [A-Z] (\w+ +)?|^[a-z_]+: ")


def progress(line: str) -> Progress | None:
    """The phase that a line of the log announces."""
    text = line.strip()
    if _DOTS.match(text):
        return Progress("loading weights", float(min(100, len(text))))
    for pattern, phase in _PHASES:
        if pattern.search(text):
            return Progress(phase)
    return None


def failure(exit_text: str, last_lines: Sequence[str]) -> Failure:
    """The reason in one line: the most telling one, wherever it stands among the last lines."""
    if exit_text == _EXIT_PERMANENT:
        own = [line.removeprefix(_OURS) for line in last_lines if line.startswith(_OURS)]
        return Failure(own[-1] if own else exit_text, permanent=True)
    for pattern, reason, permanent in _REASONS:
        for line in last_lines:
            found = pattern.search(line)
            if found:
                words = {name: text or "" for name, text in found.groupdict().items()}
                told = reason.format(**words, line=_plain(line), what_line=found.group(0).strip())
                return Failure(told, permanent, lack_in(line))
    for signal, explained in _SIGNALS.items():
        if signal in exit_text:
            return explained
    said = [_plain(line) for line in last_lines if line.strip()]
    tail = f": {said[-1]}" if said else ", and it printed nothing"
    return Failure(f"{exit_text}{tail}")


def _plain(line: str) -> str:
    """A line without llama.cpp's time, level and function."""
    return _PREFIX.sub("", _PREFIX.sub("", line.strip())).strip()
