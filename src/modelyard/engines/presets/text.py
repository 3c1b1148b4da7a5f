"""Programs that serve chat and completions.

Sources, as of autumn 2026:
- SGLang: docs.sglang.io, server arguments (`--model-path`, `--served-model-name`, `--tp-size`,
  `--mem-fraction-static`, `--context-length`, `--is-embedding`) and rerank models (cross-encoders
  need `--is-embedding --disable-radix-cache --chunked-prefill-size -1` and the attention backend
  triton; Qwen3-Reranker needs none of it, so `options: {is_embedding: false}` leaves them out).
  Sleeping needs `--enable-memory-saver --enable-weights-cpu-backup` (see `engines.sleeping`).
- LMDeploy: `lmdeploy/cli/serve.py` (`api_server MODEL --server-name --server-port --model-name`,
  `--tp`, `--session-len`, `--cache-max-entry-count` of the *free* memory). It knows its model by
  one name, and refuses requests that name another.
- TensorRT-LLM: nvidia.github.io/TensorRT-LLM, trtllm-serve (`MODEL --host --port --tp_size
  --max_seq_len --kv_cache_free_gpu_memory_fraction`; `/health`). Options are spelled with
  underscores.
- llama-server: ggml-org/llama.cpp, tools/server/README (`--alias` takes names separated by commas).
- MLX: ml-explore/mlx-lm, `mlx_lm/server.py`: the request's `model` is a path or a repository, which
  would be loaded; `default_model` stands for the one on the command line.
- Ollama: ollama/ollama, docs: `OLLAMA_HOST` is where it listens, `OLLAMA_KEEP_ALIVE` how long it
  keeps a model (-1: for ever; Modelyard decides), `GET /api/version` answers at once. It knows
  models by names of its own, which the model's `options: {model: ...}` gives.
"""

from __future__ import annotations

from types import MappingProxyType

from modelyard.core.specs import Task
from modelyard.engines.presets.base import Preset, Spelling
from modelyard.engines.quirks import Quirks, rerank_from_list

_ADDRESS = ("--host", "{host}", "--port", "{port}")
_WHERE = frozenset({"host", "port"})

SGLANG = Preset(
    "sglang",
    program=("python", "-m", "sglang.launch_server"),
    arguments=("--model-path", "{model}", "--served-model-name", "{alias}", *_ADDRESS),
    filled=_WHERE | {"model_path", "served_model_name"},
    task_arguments=MappingProxyType(
        {
            Task.EMBEDDING: ("--is-embedding",),
            Task.RERANK: (
                *("--is-embedding", "--disable-radix-cache"),
                *("--chunked-prefill-size", "-1", "--attention-backend", "triton"),
            ),
        }
    ),
    sleep_arguments=("--enable-memory-saver", "--enable-weights-cpu-backup"),
    parallel_option="tp_size",
    quirks=Quirks(answers=MappingProxyType({"/v1/rerank": rerank_from_list})),
    assigns=MappingProxyType(
        {
            "gpu_memory": "mem_fraction_static",
            "max_model_len": "context_length",
            "tensor_parallel": "tp_size",
            "dtype": "dtype",
        }
    ),
)

LMDEPLOY = Preset(
    "lmdeploy",
    program=("lmdeploy", "serve", "api_server"),
    arguments=(
        "{model}",
        *("--server-name", "{host}", "--server-port", "{port}", "--model-name", "{alias}"),
    ),
    filled=frozenset({"server_name", "server_port", "model_name"}),
    parallel_option="tp",
    quirks=Quirks(served_name="{alias}"),
    assigns=MappingProxyType(
        {
            "gpu_memory": "cache_max_entry_count",
            "max_model_len": "session_len",
            "tensor_parallel": "tp",
            "dtype": "dtype",
        }
    ),
)

TENSORRT_LLM = Preset(
    "tensorrt-llm",
    program=("trtllm-serve",),
    arguments=("{model}", *_ADDRESS),
    filled=_WHERE,
    spelling=Spelling.UNDERSCORES,
    parallel_option="tp_size",
    assigns=MappingProxyType(
        {
            "gpu_memory": "kv_cache_free_gpu_memory_fraction",
            "max_model_len": "max_seq_len",
            "tensor_parallel": "tp_size",
        }
    ),
)

LLAMA_SERVER = Preset(
    "llama-server",
    program=("llama-server",),
    arguments=("--model", "{model}", "--alias", "{names}", *_ADDRESS),
    filled=_WHERE | {"alias"},
    task_arguments=MappingProxyType(
        {Task.EMBEDDING: ("--embedding",), Task.RERANK: ("--reranking",)}
    ),
    assigns=MappingProxyType({"max_model_len": "ctx_size"}),
)

MLX = Preset(
    "mlx",
    program=("mlx_lm.server",),
    arguments=("--model", "{model}", *_ADDRESS),
    filled=_WHERE,
    quirks=Quirks(served_name="default_model"),
)

OLLAMA = Preset(
    "ollama",
    program=("ollama", "serve"),
    health_path="/api/version",
    env=MappingProxyType({"OLLAMA_HOST": "{host}:{port}", "OLLAMA_KEEP_ALIVE": "-1"}),
    quirks=Quirks(served_name="{model}"),
)
