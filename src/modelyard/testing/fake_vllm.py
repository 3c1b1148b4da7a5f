"""A vLLM without a model: `python -m modelyard.testing.fake_vllm serve MODEL --port N ...`.

Laws of this file:
- Only the standard library is imported: tests start hundreds of these.
- What is documented or seen of vLLM 0.32 is done, also where it hurts: the port refuses while
  loading; a request that comes to a sleeping engine waits for its waking; after a level 2 sleep
  answers are garbage until the weights are reloaded; this process killed, its engine process stays.
- Memory is not kept here: `fake_vllm_core` holds it, in a process of its own.

Protocol facts: vLLM 0.32, entrypoints/openai and entrypoints/serve; issues are named where they
are played.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelyard.testing.fake_http import Refused, Request, Wire, send, send_json
from modelyard.testing.fake_vllm_answers import (
    EngineDead,
    Generation,
    Scheduler,
    engine_dead,
    pooled,
)
from modelyard.testing.fake_vllm_options import arguments, given
from modelyard.testing.fake_vllm_words import log, titled

_CORE = "modelyard.testing.fake_vllm_core"
_KILL_AFTER_S = 2.0
_ABORT_S = 1.0
"""How long an aborted request may take to say so to a slow client."""
_LONGEST_LINE = 2**20


def say(line: str, level: str = "INFO") -> None:
    log("APIServer", line, level)


def executable(folder: Path) -> Path:
    """Write a program `vllm` into `folder` that runs this module, for whoever must name a program.

    It works as `vllm serve ...`, `vllm --version` and `vllm serve --help`.
    """
    root = Path(__file__).parents[2]
    path = folder / "vllm"
    command = f'"{sys.executable}" -m modelyard.testing.fake_vllm "$@"'
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" exec {command}\n')
    path.chmod(0o755)
    return path


class Engine:
    """The engine process as seen from here. One operation at a time: the real one is as busy."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self.dead = asyncio.Event()

    async def start(self) -> None:
        ours, its = socket.socketpair()
        command, environment = titled("VLLM::EngineCore", _CORE, sys.executable)
        self._process = await asyncio.create_subprocess_exec(
            *command, executable=sys.executable, env=environment, stdin=its.fileno()
        )
        its.close()
        self._reader, self._writer = await asyncio.open_unix_connection(
            sock=ours, limit=_LONGEST_LINE
        )
        self._writer.write(json.dumps(vars(self._args)).encode() + b"\n")

    async def ask(self, op: str, **rest: object) -> dict[str, Any]:
        """Let it perform `op` to its end, even if the asker goes. Raises EngineDead."""
        asking = asyncio.ensure_future(self._ask({"op": op, **rest}))
        # Looked at here because the asker may be gone by then.
        asking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(asking)

    async def _ask(self, message: Mapping[str, object]) -> dict[str, Any]:
        async with self._turn:
            line = b""
            with contextlib.suppress(ConnectionError):
                self._writer.write(json.dumps(message).encode() + b"\n")
                line = await self._reader.readline()
            if not line:
                self.dead.set()
                raise EngineDead
            reply: dict[str, Any] = json.loads(line)
            return reply

    async def watch(self) -> None:
        """Return when the process is dead."""
        assert self._process is not None, "watched before it was started"
        await self._process.wait()
        self.dead.set()

    async def end(self) -> None:
        """Ask it to end, and kill it if it does not."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(_KILL_AFTER_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


class FakeVllm:
    """The API server: one instance for one process."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.engine = Engine(args)
        self.scheduler = Scheduler()
        self.paused = False
        self.level = 0
        """Of the sleep that frees memory; 0 while awake."""
        self.max_len = 0

    # ------------------------------------------------------------------------------------ lifecycle

    async def run(self) -> int:
        """Serve until SIGTERM or the engine's death; returns the exit status."""
        stopping = asyncio.Event()
        if not self.args.fake_ignore_sigterm:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        # Bound but not listening: connections are refused, and the port is ours (0.32).
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.args.host, self.args.port))
            serving = asyncio.ensure_future(self._serve(listener))
            stop = asyncio.ensure_future(stopping.wait())
            await asyncio.wait((serving, stop), return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            if stopping.is_set():
                await self._drain()
                serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            await self.engine.end()
        if not stopping.is_set():
            return serving.result()
        say("[launcher.py:112] Shutting down FastAPI HTTP server.")
        return 0

    async def _serve(self, listener: socket.socket) -> int:
        say(f"[utils.py:233] non-default args: {given(self.args)}")
        say("[model.py:545] Resolved architecture: FakeForCausalLM")
        await self.engine.start()
        try:
            self.max_len = (await self.engine.ask("load"))["max_len"]
        except EngineDead:
            say("[launch.py:77] RuntimeError: Engine core initialization failed. See root cause"
                " above. Failed core proc(s): {}", "ERROR")  # fmt: skip
            return 1
        say(f"[api_server.py:1241] Supported tasks: ['{self._task()}']")
        say(
            f"[api_server.py:1316] Starting vLLM server on http://{self.args.host}:{self.args.port}"
        )
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Wire(self.answer), sock=listener)
        print(f"INFO:     Started server process [{os.getpid()}]", flush=True)
        print("INFO:     Application startup complete.", flush=True)
        try:
            await self.engine.watch()
            say("[async_llm.py:702] AsyncLLM output_handler failed: EngineDeadError", "ERROR")
            self.scheduler.kill()
            await asyncio.sleep(self.args.fake_death_notice)
            return 1
        finally:
            server.close()

    async def _drain(self) -> None:
        """Let requests finish for `--shutdown-timeout`; what is left is aborted (0: at once)."""
        for patience_s in (self.args.shutdown_timeout, _ABORT_S):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.scheduler.empty.wait()
            self.scheduler.abort()

    def _task(self) -> str:
        pooling = self.args.runner == "pooling" or self.args.convert in ("embed", "classify")
        return "embed" if pooling else "generate"

    # --------------------------------------------------------------------------------------- routes

    async def answer(self, request: Request, wire: Wire, writer: asyncio.StreamWriter) -> None:
        if request.path.startswith("/v1/"):
            self._check_key(request)
        try:
            if not await self._plain(request, writer) and not await self._dev(request, writer):
                await self._infer(request, wire, writer)
        except EngineDead:
            raise engine_dead() from None

    def _check_key(self, request: Request) -> None:
        keys = {f"Bearer {key}" for key in self.args.api_key}
        if keys and request.headers.get("authorization") not in keys:
            raise Refused(401, "Unauthorized")

    async def _plain(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer what every engine tells, asleep or not; false if that is not what was asked."""
        match request.method, request.path:
            case "GET", "/health" | "/ping":
                send(writer, 503 if self.engine.dead.is_set() else 200, "text/plain", b"")
            case "GET", "/version":
                send_json(writer, 200, {"version": self.args.fake_version})
            case "GET", "/load":
                send_json(writer, 200, {"server_load": self.scheduler.active})
            case "GET", "/v1/models":
                send_json(writer, 200, {"object": "list", "data": self._models()})
            case "GET", "/metrics":
                text = self.scheduler.metrics(self.args.names[0], self.level)
                send(writer, 200, "text/plain; version=0.0.4; charset=utf-8", text.encode())
            case _:
                return False
        return True

    def _models(self) -> list[dict[str, Any]]:
        common = {"object": "model", "created": 0, "owned_by": "vllm", "root": self.args.model}
        return [
            {"id": name, **common, "parent": None, "max_model_len": self.max_len}
            for name in self.args.names
        ]

    async def _infer(self, request: Request, wire: Wire, writer: asyncio.StreamWriter) -> None:
        generates = {"/v1/chat/completions": True, "/v1/completions": False}
        pools = ("/v1/embeddings", "/v1/rerank", "/rerank")
        task = self._task()
        routes = tuple(generates) if task == "generate" else pools
        if request.method != "POST" or request.path not in routes:
            raise Refused(404, "Not Found")
        body = request.json()
        name = body.get("model") or self.args.names[0]
        if name not in self.args.names:
            raise Refused(404, f"The model `{name}` does not exist.", "NotFoundError")
        if task == "embed":
            await wire.unless_gone(pooled(self, name, request.path, body, writer))
            return
        generation = Generation(self, name, body, chat=generates[request.path])
        await wire.unless_gone(generation.answer(writer))

    # ------------------------------------------------------------------------------- sleep and wake

    async def _dev(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer the routes of VLLM_SERVER_DEV_MODE=1; false if it is none of them."""
        if not self.args.dev_mode:
            return False
        match request.method, request.path:
            case "POST", "/sleep":
                send_json(writer, 200, await self._sleep(request))
            case "POST", "/wake_up":
                send_json(writer, 200, await self._wake(request.query.get("tags")))
            case "GET", "/is_sleeping":
                send_json(writer, 200, {"is_sleeping": await self._is_sleeping()})
            case "POST", "/collective_rpc":
                send_json(writer, 200, await self._rpc(request.json()))
            case "POST", "/reset_prefix_cache":
                send(writer, 200, "text/plain", b"")
            case _:
                return False
        return True

    async def _sleep(self, request: Request) -> dict[str, Any]:
        level = (request.query.get("level") or ["1"])[0]
        mode = (request.query.get("mode") or ["abort"])[0]
        if level not in ("0", "1", "2") or mode not in ("abort", "wait", "keep"):
            raise Refused(400, f"level={level} mode={mode} is no way to sleep")
        self.scheduler.pause(spare=mode == "wait")
        self.paused = True
        if mode == "abort":
            self.scheduler.abort()
        if mode == "wait":
            await self.scheduler.finish()
        if level != "0":
            _checked(await self.engine.ask("sleep", level=int(level)))
            self.level = self.level or int(level)  # who sleeps already sleeps no deeper
        return {"status": "sleeping", "level": int(level)}

    async def _wake(self, tags: Sequence[str] | None) -> dict[str, Any]:
        memory = [tag for tag in tags or () if tag != "scheduling"]
        if memory or not tags:
            _checked(await self.engine.ask("wake", tags=memory or None))
        if not (await self.engine.ask("state"))["asleep"]:
            # Scheduling goes on only when weights and cache are both there.
            self.paused, self.level = False, 0
            self.scheduler.resume()
        return {"status": "sleeping" if await self._is_sleeping() else "awake"}

    async def _is_sleeping(self) -> bool:
        return self.paused or bool((await self.engine.ask("state"))["asleep"])

    async def _rpc(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if body.get("method") != "reload_weights":
            raise Refused(500, f"the workers have no method {body.get('method')!r}")
        _checked(await self.engine.ask("reload"))
        return {"results": [None] * self.args.tensor_parallel_size}


def _checked(reply: Mapping[str, Any]) -> None:
    if "error" in reply:
        raise Refused(500, str(reply["error"]))


def main(argv: Sequence[str]) -> int:
    args = arguments(argv, os.environ)
    if args.fake_ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        return asyncio.run(FakeVllm(args).run())
    except OSError as error:
        say(f"[launch.py:77] {type(error).__name__}: {error}", "ERROR")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
