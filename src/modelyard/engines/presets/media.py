"""Programs that serve speech and images.

Sources, as of autumn 2026:
- whisper.cpp: ggml-org/whisper.cpp, examples/server (`--inference-path` moves `/inference` to
  OpenAI's route; `/health`; files that are not WAV need `--convert` and ffmpeg).
- Kokoro: remsky/Kokoro-FastAPI, start-cpu.sh and start-gpu.sh (run in its checkout with uvicorn,
  told by variables where models and voices lie, relative to `api`), `api/src/main.py` (`/health`),
  `api/src/routers/openai_compatible.py` (`/v1/audio/speech`; names of models that it has no mapping
  for are refused, `tts-1` is one that it has).
- stable-diffusion.cpp: leejet/stable-diffusion.cpp, examples/server (`--listen-ip`,
  `--listen-port`, options with dashes and with underscores; `/v1/images/generations`, with
  `created` in words in some builds; no health route, and `/v1/models` answers once it is loaded).
"""

from __future__ import annotations

from types import MappingProxyType

from modelyard.engines.presets.base import Preset, Spelling
from modelyard.engines.quirks import Quirks, created_in_seconds

WHISPER = Preset(
    "whisper.cpp",
    program=("whisper-server",),
    arguments=(
        *("--model", "{model}", "--host", "{host}", "--port", "{port}"),
        *("--inference-path", "/v1/audio/transcriptions"),
    ),
    filled=frozenset({"host", "port", "inference_path", "request_path"}),
)

KOKORO = Preset(
    "kokoro",
    program=("uvicorn", "api.src.main:app"),
    arguments=("--host", "{host}", "--port", "{port}"),
    filled=frozenset({"host", "port"}),
    env=MappingProxyType(
        {
            "PYTHONPATH": "{model}:{model}/api",
            "MODEL_DIR": "src/models",
            "VOICES_DIR": "src/voices/v1_0",
            "USE_ONNX": "false",
        }
    ),
    env_on_host=MappingProxyType({"USE_GPU": "false"}),
    env_on_gpu=MappingProxyType({"USE_GPU": "true"}),
    runs_in_model=True,
    quirks=Quirks(served_name="tts-1"),
)

STABLE_DIFFUSION = Preset(
    "stable-diffusion.cpp",
    program=("sd-server",),
    arguments=("--model", "{model}", "--listen-ip", "{host}", "--listen-port", "{port}"),
    filled=frozenset({"listen_ip", "listen_port"}),
    spelling=Spelling.AS_WRITTEN,
    health_path="/v1/models",
    model_option="diffusion-model",
    quirks=Quirks(answers=MappingProxyType({"/v1/images/generations": created_in_seconds})),
)
