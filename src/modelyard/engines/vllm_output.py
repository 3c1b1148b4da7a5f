"""What vLLM's log says: how far a start has come, and why it failed.

Laws of this file:
- Only what vLLM itself logs, or tqdm draws, moves the progress: a prompt that is logged cannot,
  because a server that takes prompts has long been ready.
- A reason is one sentence for the person who wrote the configuration: what happened, with the
  numbers, and which setting of Modelyard or of vLLM would help.
- The root cause is printed first, by the process that had it; the processes above it only repeat
  that something failed. So the patterns are tried in the order of how much they tell.

Sources: the texts of vLLM 0.8.5 to 0.32 (v1/core/kv_cache_utils.py, v1/worker/utils.py and
gpu_worker.py, v1/engine/utils.py, model_executor/models/registry.py, config/model.py,
compilation/backends.py, model_executor/model_loader/weight_utils.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from modelyard.core.specs import Progress
from modelyard.engines.base import Failure
from modelyard.engines.lack import Lack, lack_in, longest_in

_LONGEST: Final = 2000
_COLOUR: Final = re.compile(r"\x1b\[[\d;]{0,12}m")
_HEAD: Final = re.compile(
    r"(?:\([^()]{1,80}\) ?){0,3}(?:INFO|DEBUG|WARNING|ERROR|CRITICAL) [\d-]{5,10} [\d:.]{8,15} "
    r"\[?[\w./-]{1,100}\.py:\d+\] ?"
)
_PROCESS: Final = re.compile(r"(?:\([^()]{1,80}\) ?){1,3}")
_ERROR: Final = re.compile(r"(?:[a-z_]+\.)*[A-Z]\w*(?:Error|Exception|Warning)?: (?=\S)")

_PERCENT: Final = r"(?P<percent>\d{1,3})%[ |]"
_BARS: Final = tuple(
    (re.compile(pattern), phase)
    for pattern, phase in (
        (rf"(?:Loading \S+ checkpoint shards|Multi-thread loading[\w ]*): +{_PERCENT}",
         "loading weights"),
        (rf"Capturing (?:CUDA|ACL|XPU) graph.{{0,80}}?: +{_PERCENT}", "capturing graphs"),
    )
)  # fmt: skip
_PHASES: Final = tuple(
    (re.compile(pattern), Progress(phase))
    for pattern, phase in (
        (r"non-default args|vLLM API server version|Resolved architecture", "reading the model"),
        (r"Initializing (?:a|an) (?:V\d )?LLM engine", "starting the engine"),
        (r"Starting to load model|Loading model weights\.\.\.", "loading weights"),
        (r"(?:Model loading|Loading model weights) took", "profiling memory"),
        ((r"Using cache directory: .* for vLLM's torch.compile|Dynamo bytecode transform"
         r"|Compiling a graph|(?:\S+ )?Directly load the compiled graph"
         r"|Start compiling|torch\.compile (?:took|takes)"), "compiling"),
        ((r"Available KV cache memory|(?:\w+ )?KV cache size:|Estimated CUDA graph memory"
         r"|Memory profiling|Explicitly set .* for KV cache|Auto set .* for KV cache"),
         "profiling memory"),
        (r"Capturing (?:the model|cudagraphs) for", "capturing graphs"),
        (r"Graph capturing finished|Warming up model|init engine \(", "warming up"),
        (r"Starting vLLM (?:API )?server|Supported[_ ]tasks", "listening"),
    )
)  # fmt: skip

_NUMBER: Final = r"[\d.,]{1,16}"
_REASONS: Final = tuple(
    (re.compile(pattern), reason, permanent)
    for pattern, reason, permanent in (
        ((r"To serve at least one request with the models?'s max seq len "
         rf"\((?P<a>\d+)\).{{0,40}}?(?P<b>{_NUMBER}) GiB KV cache is needed.{{0,80}}?"
         rf"\((?P<c>{_NUMBER}) GiB\)(?:.*?estimated maximum model length is (?P<d>\d+))?"),
         ("one request of {a} tokens (max_model_len) needs {b} GiB of KV cache and {c} GiB are "
          "left for it; give the profile more `memory`, or lower `max_model_len`{d}"), True),
        ((r"The model's max seq len \((?P<a>\d+)\) is larger than the maximum number of tokens "
          r"that can be stored in KV cache \((?P<b>\d+)\)"),
         ("max_model_len {a} is more than its KV cache holds ({b} tokens); give the profile more "
         "`memory`, or lower `max_model_len`"), True),
        (r"No available memory for the cache blocks",
         ("its memory is used up by weights and activations, nothing is left for the KV cache; "
          "give the profile more `memory`, or lower `max_num_batched_tokens`"), True),
        ((rf"Free memory on device \S{{1,20}} \((?P<a>{_NUMBER})/(?P<b>{_NUMBER}) GiB\) on startup "
          rf"is less than desired GPU memory utilization \({_NUMBER}, (?P<c>{_NUMBER}) GiB\)"),
         ("it was to take {c} GiB of a card with {a} of {b} GiB free; somebody else uses the card, "
          "or the profile's `memory` is too large for it"), False),
        ((rf"Available memory on node \d+ \((?P<a>{_NUMBER})/{_NUMBER} GiB\).*?requested "
         rf"memory.*?\((?P<b>{_NUMBER})"),
         ("it was to take {b} GiB on the host and {a} GiB are free; lower VLLM_CPU_KVCACHE_SPACE "
          "in `env`, or the profile's `memory`"), False),
        (r"Error in memory profiling",
         "memory on its card was freed by somebody else while it measured; it is tried again",
         False),
        ((r"(?:CUDA|HIP|XPU)(?: [Ee]rror:)? out of memory"
         r"(?:\. Tried to allocate (?P<a>[\d.]+ [KMG]iB))?"),
         ("the card ran out of memory{a}; give the profile more `memory`, or lower "
         "`max_num_seqs` and `max_num_batched_tokens`"), False),
        (r"NCCL error|ncclUnhandled|ncclSystemError",
         "its cards could not talk to each other (NCCL): {line}", False),
        ((r"Model architectures \[(?P<a>[^\]]{1,200})\] are not supported"
          r"|Model architecture (?P<b>\S+) is not supported"),
         "this vLLM does not know the architecture {a}{b}", True),
        (r"Model architectures \[(?P<a>[^\]]{1,200})\] failed to be inspected",
         "this vLLM could not load its code for the architecture {a}", True),
        (r"The checkpoint you are trying to load has model type `(?P<a>[^`]{1,80})`",
         "the transformers library of this vLLM does not know the model type {a}", True),
        ((r"(?:contains custom code|requires you to execute the configuration file).*"
         r"|.*set the option `trust_remote_code=True`.*"),
         "the checkpoint brings code of its own; `trust_remote_code: true` lets it run", True),
        (r"Cannot find any model weights with `?(?P<a>[^`']{1,300})",
         "there are no weights in {a}", True),
        ((r"HFValidationError|Repo id must|is not a local folder and is not a valid model "
          r"identifier|Invalid repository ID or local directory specified"),
         "its `source` is no folder with a checkpoint", True),
        (r"SafetensorError|Error while deserializing header|InvalidHeaderDeserialization",
         "a file of weights is damaged or cut off: {line}", True),
        ((r"User-specified max_model_len \((?P<a>\d+)\) is greater than the derived max_model_len "
         r"\((?:max_position_embeddings|\w+)=(?P<b>[\d.]+)"),
         "max_model_len {a} is more than the {b} tokens the model was made for", True),
        ((r"(?:\S+\.py|vllm serve|vllm)?:? ?error: (?P<a>(?:argument|unrecognized|ambiguous|the "
         r"following).*)"), "vLLM refuses an option: {a}", True),
        (r"address already in use|Errno 98\b", "its port was taken by another program", False),
        (r"Bfloat16 is only supported on GPUs with compute capability.*",
         "its card does not know bfloat16; write `dtype: half`", True),
        ((r"(?:The number of required GPUs exceeds|World size \(\d+\) is larger than the number of "
         r"available GPUs).*"), "it sees fewer cards than it was to use: {line}", True),
        (r"Total number of attention heads \(\d+\) must be divisible by tensor parallel size.*",
         "{line}; use another number of devices", True),
        (r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver.*",
         "this vLLM finds no card it could run on; on the host, use a build for CPUs", True),
        (r"No package metadata was found for vllm",
         ("the `vllm` script of this environment cannot tell its version; name the environment's "
         "Python instead, and it is started as a module"), True),
        (r"ModuleNotFoundError: No module named '(?P<a>[^']{1,80})'",
         "its environment lacks the Python module {a}", True),
        (r"undefined symbol: \S+|error while loading shared libraries: .*",
         "its environment is broken: {line}", True),
        (r"MemoryError|Cannot allocate memory|bad_alloc", "the host ran out of memory", False),
        (r"EngineDeadError|EngineCore encountered (?:an issue|a fatal error)",
         "its engine process died", False),
    )
)  # fmt: skip
_AROUND: Final = re.compile(
    r"Engine core initialization failed|See root cause above|Traceback \(most recent"
    r"|RuntimeError: WorkerProc initialization failed|resource_tracker"
)
_SIGNALS: Final = {
    "SIGKILL": Failure("the system killed it, as it does when memory runs out", lack=Lack.DEVICE),
    "SIGILL": Failure("this build of vLLM uses instructions the processor lacks", True),
}


def progress(line: str) -> Progress | None:
    """The phase that a line of the log announces, with a percentage where a bar is drawn."""
    text = _plain(line)
    for pattern, phase in _BARS:
        if (found := pattern.match(text)) is not None:
            return Progress(phase, min(100.0, float(found["percent"])))
    return next((reached for pattern, reached in _PHASES if pattern.match(text)), None)


def failure(exit_text: str, last_lines: Sequence[str]) -> Failure:
    """The reason in one line: the most telling one, wherever it stands among the last lines."""
    said = [text for line in last_lines if (text := _plain(line).strip())]
    for pattern, reason, permanent in _REASONS:
        for line in said:
            if (found := pattern.search(line)) is not None:
                told = _told(reason, found, line)
                return Failure(told, permanent, lack_in(line), longest_in(line))
    for signal, explained in _SIGNALS.items():
        if signal in exit_text:
            return explained
    causes = [line for line in said if _ERROR.match(line) and not _AROUND.search(line)]
    if not causes and any(_AROUND.search(line) for line in said):
        return Failure("its engine process did not start; `modelyard logs` tells why")
    tail = f": {(causes or said)[-1]}" if said else ", and it printed nothing"
    return Failure(f"{exit_text}{tail}"[:_LONGEST])


def _told(reason: str, found: re.Match[str], line: str) -> str:
    words = dict.fromkeys("abcd", "") | {name: x or "" for name, x in found.groupdict().items()}
    if words["d"]:
        words["d"] = f" to {words['d']}"
    if "ran out of memory{a}" in reason and words["a"]:
        words["a"] = f" when it wanted {words['a']} more"
    # The words are the engine's: what looks like a blank in them is left alone.
    return reason.format(**words, line=_ERROR.sub("", line[:300]))


def _plain(line: str) -> str:
    """A line without colours, process, time and place."""
    text = _COLOUR.sub("", line[:_LONGEST]).strip()
    text = text[found.end() :] if (found := _HEAD.match(text)) else text
    return text[found.end() :].strip() if (found := _PROCESS.match(text)) else text
