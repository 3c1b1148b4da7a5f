"""Stands in for the program of any preset: checks its command line, then speaks as documented.

    python preset_stand_in.py PRESET ARGUMENTS...

An argument that the program does not have, or one that is missing, ends it with exit code 2, as
argparse and its likes do. `GET /seen` tells what it was started with and asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from modelyard.testing.fake_http import Refused, Request, Wire, send, send_json

VARIABLES = ("CUDA_VISIBLE_DEVICES", "OLLAMA_HOST", "OLLAMA_KEEP_ALIVE", "USE_GPU", "MODEL_DIR")
WAV = b"RIFF....WAVE"
SCORES = {"red": 0.2, "blue": 0.9}


@dataclass(frozen=True)
class Program:
    """What a program's documentation says of it."""

    port: str
    """The option that takes the port; empty where a variable does."""
    routes: Mapping[str, Callable[[Any], Any]]
    """POST routes, each from a body to an answer."""
    words: tuple[str, ...] = ()
    """What stands before the options: sub-commands and the model."""
    valued: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    health: str = "/health"
    knows: tuple[str, ...] = ()
    """The only names that requests may give the model, or the option that says it; any if empty."""


def chat(request: Any) -> Any:
    if not isinstance(request["messages"], list):
        raise Refused(400, "messages must be a list")
    message = {"role": "assistant", "content": f"as {request.get('model')}"}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    return {"object": "chat.completion", "model": request["model"], "choices": [choice]}


def completion(request: Any) -> Any:
    choice = {"index": 0, "text": f"{request['prompt']}!", "finish_reason": "length"}
    return {"object": "text_completion", "model": request["model"], "choices": [choice]}


def embedding(request: Any) -> Any:
    given = request["input"] if isinstance(request["input"], list) else [request["input"]]
    data = [{"index": at, "embedding": [0.6, 0.8]} for at in range(len(given))]
    return {"object": "list", "model": request.get("model"), "data": data}


def sglang_rerank(request: Any) -> Any:
    return [
        {"score": SCORES.get(text, 0.5), "document": text, "index": at}
        for at, text in enumerate(request["documents"])
    ]


def tei_rerank(request: Any) -> Any:
    if unknown := set(request) - {"query", "texts", "truncate", "raw_scores", "return_text"}:
        raise Refused(422, f"unknown field {sorted(unknown)}")
    answers = [
        {"index": at, "score": SCORES.get(text, 0.5)}
        | ({"text": text} if request.get("return_text") else {})
        for at, text in enumerate(request["texts"])
    ]
    return sorted(answers, key=lambda answer: -answer["score"])


def infinity_rerank(request: Any) -> Any:
    results = [
        {"index": at, "relevance_score": SCORES.get(text, 0.5), "document": None}
        for at, text in enumerate(request["documents"])
    ]
    return {"object": "rerank", "model": request["model"], "results": results}


def image(request: Any) -> Any:
    return {"created": "2026-01-02T03:04:05", "data": [{"b64_json": "AA=="}], "prompt": request}


TEXT = {"/v1/chat/completions": chat, "/v1/completions": completion}
ADDRESS = ("--host", "--port")
PROGRAMS = {
    "sglang": Program(
        "--port",
        {**TEXT, "/v1/embeddings": embedding, "/v1/rerank": sglang_rerank},
        valued=(
            *ADDRESS,
            *("--model-path", "--served-model-name", "--tp-size", "--mem-fraction-static"),
            *("--chunked-prefill-size", "--attention-backend", "--context-length"),
        ),
        flags=(
            *("--is-embedding", "--disable-radix-cache"),
            *("--enable-memory-saver", "--enable-weights-cpu-backup"),
        ),
        required=("--model-path",),
    ),
    "lmdeploy": Program(
        "--server-port",
        TEXT,
        words=("MODEL",),
        valued=("--server-name", "--server-port", "--model-name", "--session-len", "--tp"),
        knows=("--model-name",),
    ),
    "tensorrt-llm": Program(
        "--port",
        TEXT,
        words=("MODEL",),
        valued=(*ADDRESS, "--max_seq_len", "--tp_size", "--kv_cache_free_gpu_memory_fraction"),
    ),
    "llama-server": Program(
        "--port",
        {**TEXT, "/v1/embeddings": embedding, "/v1/rerank": infinity_rerank},
        valued=(*ADDRESS, "--model", "--alias", "--ctx-size", "-c"),
        flags=("--embedding", "--reranking"),
        required=("--model",),
    ),
    "mlx": Program(
        "--port",
        TEXT,
        valued=(*ADDRESS, "--model", "--max-tokens"),
        required=("--model",),
        knows=("default_model",),
    ),
    "ollama": Program(
        "",
        {**TEXT, "/v1/embeddings": embedding},
        health="/api/version",
        knows=("llama3.2",),
    ),
    "tei": Program(
        "--port",
        {"/v1/embeddings": embedding, "/rerank": tei_rerank},
        valued=("--model-id", "--hostname", "--port", "--dtype", "--pooling"),
        required=("--model-id",),
    ),
    "infinity": Program(
        "--port",
        {"/v1/embeddings": embedding, "/v1/rerank": infinity_rerank},
        valued=(*ADDRESS, "--model-id", "--served-model-name", "--url-prefix", "--dtype"),
        required=("--url-prefix",),
        knows=("--served-model-name",),
    ),
    "whisper.cpp": Program(
        "--port",
        {"/v1/audio/transcriptions": lambda _: {"text": "hello"}},
        valued=(*ADDRESS, "--model", "--inference-path", "--threads"),
        flags=("--convert",),
        required=("--model", "--inference-path"),
    ),
    "kokoro": Program(
        "--port",
        {"/v1/audio/speech": lambda _: WAV},
        valued=ADDRESS,
        knows=("tts-1", "kokoro"),
    ),
    "stable-diffusion.cpp": Program(
        "--listen-port",
        {"/v1/images/generations": image},
        valued=("--listen-ip", "--listen-port", "--model", "--diffusion-model", "--clip_l"),
        flags=("--offload-to-cpu",),
        health="/v1/models",
    ),
}


def refuse(problem: str) -> NoReturn:
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


def parsed(program: Program, argv: Sequence[str]) -> dict[str, str]:
    """The options on a command line, as the program would take them."""
    words: list[str] = []
    options: dict[str, str] = {}
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument in program.flags:
            options[argument] = ""
        elif argument in program.valued:
            if not rest:
                refuse(f"{argument} needs a value")
            options[argument] = rest.pop(0)
        elif argument.startswith("-"):
            refuse(f"unrecognized argument {argument}")
        else:
            words.append(argument)
    if len(words) != len(program.words):
        refuse(f"expected {program.words}, got {words}")
    for option in (*program.required, *([program.port] if program.port else [])):
        if option not in options:
            refuse(f"{option} is required")
    return options


class StandIn:
    """One program, running."""

    def __init__(self, name: str, argv: Sequence[str]) -> None:
        self.argv = list(argv)
        self.program = PROGRAMS[name]
        self.options = parsed(self.program, argv)
        self.names = [self.options.get(name, name) for name in self.program.knows]
        self.asked: list[Any] = []

    async def answer(self, request: Request, _: Wire, writer: asyncio.StreamWriter) -> None:
        match request.method, request.path:
            case "GET", path if path == self.program.health:
                send_json(writer, 200, {})
            case "GET", "/seen":
                variables = {name: os.environ.get(name) for name in VARIABLES}
                seen = {"argv": self.argv, "env": variables, "asked": self.asked}
                send_json(writer, 200, {**seen, "cwd": os.getcwd()})  # noqa: PTH109
            case "POST", path if path in self.program.routes:
                self.infer(path, request, writer)
            case method, path:
                raise Refused(404, f"no route {method} {path}")

    def infer(self, path: str, request: Request, writer: asyncio.StreamWriter) -> None:
        is_json = request.headers.get("content-type", "") == "application/json"
        asked = request.json() if is_json else {}
        self.asked.append([path, asked])
        if is_json and self.names and asked.get("model") not in self.names:
            raise Refused(404, f"model {asked.get('model')!r} not found")
        answer = self.program.routes[path](asked)
        if isinstance(answer, bytes):
            send(writer, 200, "audio/wav", answer)
        else:
            send(writer, 200, "application/json", json.dumps(answer).encode())

    async def run(self) -> None:
        port = self.options.get(self.program.port) or os.environ["OLLAMA_HOST"].rpartition(":")[2]
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Wire(self.answer), "127.0.0.1", int(port))
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(StandIn(sys.argv[1], sys.argv[2:]).run())
