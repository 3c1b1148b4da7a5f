"""An inference server without a model: real HTTP, real time, every way of going wrong on demand.

Laws of this file:
- Only the standard library is imported: tests start hundreds of these.
- Answers are made from the model's name and the prompt alone, so a test can tell which engine
  answered what. Faults happen only where a flag asks for them.
- The port is bound before the load begins and answers `/health` with 503 until it ends, as
  llama-server does; `--refuse-while-loading` binds it afterwards, as vLLM does.
- For comparisons with simulated engines the costs can be exact: `--load-since-birth` counts the
  start of Python as a part of the load, `--unload` is the time from SIGTERM to the end, and a whole
  answer takes one nap of its length over `--tps`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from modelyard.testing.fake_answers import Completion, embeddings, ranking
from modelyard.testing.fake_http import (
    Fault,
    Refused,
    Request,
    Wire,
    begin_events,
    end_events,
    send_event,
    send_json,
)
from modelyard.testing.fake_skills import Skilled

TASKS = ("chat", "embedding", "rerank")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0}


def duration(text: str) -> float:
    """Seconds of `2s`, `100ms`, `1.5m` or a bare number of seconds."""
    for unit, seconds in _UNITS.items():
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit():
            return float(number) * seconds
    return float(text)


@dataclass
class Stats:
    """What `GET /stats` tells. `aborted` counts answers whose client went away."""

    requests: int = 0
    aborted: int = 0
    active: int = 0
    peak: int = 0


@dataclass
class FakeEngine:
    """The server: one instance for one process."""

    args: argparse.Namespace
    ready: bool = False
    stats: Stats = field(default_factory=Stats)

    async def run(self) -> None:
        args = self.args
        if args.refuse_while_loading:
            await self.load()
        loop = asyncio.get_running_loop()
        if args.unload:
            end = partial(loop.call_later, args.unload, os._exit, 0)
            loop.add_signal_handler(signal.SIGTERM, end)
        if args.uds:
            server = await loop.create_unix_server(lambda: Wire(self.answer), args.uds)
        else:
            server = await loop.create_server(lambda: Wire(self.answer), args.host, args.port)
        if not args.refuse_while_loading:
            await self.load()
        self.ready = True
        say(f"{args.model}: listening on {args.uds or f'http://{args.host}:{args.port}'}")
        async with server:
            if args.log_flood:
                await flood()
            await server.serve_forever()

    async def load(self) -> None:
        say(f"{self.args.model}: loading model")
        steps = 10 if self.args.load else 0
        spent = age_s() if self.args.load_since_birth else 0.0
        for step in range(1, steps + 1):
            await asyncio.sleep((self.args.load - spent) / steps)
            say(f"Loading weights: {step * 100 // steps}%")
            if self.args.crash_while_loading and step * 2 >= steps:
                crash(self.args, "out of memory while loading (as asked)")
        if self.args.crash_while_loading:
            crash(self.args, "out of memory while loading (as asked)")
        if self.args.hang:
            say("this load never ends (as asked)")
            await asyncio.Event().wait()

    # ------------------------------------------------------------------------------------ requests

    async def answer(self, request: Request, wire: Wire, writer: asyncio.StreamWriter) -> None:
        match request.method, request.path:
            case "GET", "/health":
                status = self.args.health_status if self.ready else 503
                send_json(writer, status, {"status": "ok" if status == 200 else "loading model"})
            case "GET", "/stats":
                send_json(writer, 200, vars(self.stats))
            case "GET", "/v1/models":
                names = [self.args.model, *self.args.alias]
                data = [{"id": name, "object": "model", "owned_by": "fake"} for name in names]
                send_json(writer, 200, {"object": "list", "data": data})
            case "POST", path if path.startswith("/v1/"):
                await self.infer(path, request, wire, writer)
            case method, path:
                raise Refused(404, f"no route {method} {path}")

    async def infer(
        self, path: str, asked: Request, wire: Wire, writer: asyncio.StreamWriter
    ) -> None:
        if not self.ready:
            raise Refused(503, "loading model")
        request = asked.json()
        stats = self.stats
        stats.requests += 1
        if self.args.crash_after and stats.requests > self.args.crash_after:
            crash(self.args, f"crashed after {self.args.crash_after} requests (as asked)")
        stats.active += 1
        stats.peak = max(stats.peak, stats.active)
        try:
            await wire.unless_gone(self.work(path, request, writer))
        except ConnectionError:
            stats.aborted += 1
            raise
        finally:
            stats.active -= 1

    # ------------------------------------------------------------------------------------ answering

    async def work(self, path: str, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if self.args.garbage:
            writer.write(b"\x00\xffthis is not HTTP\r\n\r\n")
            raise Fault("garbage was asked for")
        await asyncio.sleep(self.args.prefill)
        match path:
            case "/v1/chat/completions" | "/v1/completions":
                self.require("chat")
                chat = path == "/v1/chat/completions"
                await complete(self.args, request, writer, chat=chat)
            case "/v1/embeddings":
                self.require("embedding")
                dimension = self.args.embedding_dim
                send_json(writer, 200, embeddings(self.args.model, dimension, request))
            case "/v1/rerank":
                self.require("rerank")
                send_json(writer, 200, ranking(self.args.model, request))
            case _:
                raise Refused(404, f"no route POST {path}")

    def require(self, task: str) -> None:
        if task not in self.args.tasks:
            raise Refused(400, f"{self.args.model} does not serve {task}")


async def paced(tokens: Sequence[str], tps: float) -> AsyncIterator[str]:
    start = time.monotonic()
    for index, token in enumerate(tokens):
        if tps:
            # Counted from the start, not from the last token: naps are never exact.
            await asyncio.sleep(start + (index + 1) / tps - time.monotonic())
        yield token


async def complete(
    args: argparse.Namespace, request: dict[str, Any], writer: asyncio.StreamWriter, *, chat: bool
) -> None:
    if chat and not isinstance(request.get("messages"), list):
        raise Refused(400, "messages must be a list")
    able = Skilled if args.skilled and chat else Completion
    completion = able(args.model, request, args.tokens, chat=chat)
    if request.get("stream"):
        await stream(args, completion, writer)
        return
    tokens = completion.tokens()
    if args.tps:
        await asyncio.sleep(len(tokens) / args.tps)
    text = "".join(tokens)
    send_json(writer, 200, completion.whole(text), surplus=100 if args.wrong_length else 0)
    if args.wrong_length:
        raise Fault("a wrong length was asked for")


async def stream(
    args: argparse.Namespace, completion: Completion, writer: asyncio.StreamWriter
) -> None:
    begin_events(writer)
    sent = 0
    async for token in paced(completion.tokens(), args.tps):
        if sent == args.cut_after:
            raise Fault("a cut was asked for")
        send_event(writer, json.dumps(completion.part(token)))
        await writer.drain()
        sent += 1
    for part in completion.ending():
        send_event(writer, json.dumps(part))
    end_events(writer)


# ---------------------------------------------------------------------------------------- process


async def flood() -> None:
    """Print as fast as it goes; whoever does not read must not be able to stop us."""
    line = "flood " * 20
    while True:
        for _ in range(200):
            say(line)
        await asyncio.sleep(0)


def say(line: str) -> None:
    print(line, flush=True)


def age_s() -> float:
    """How long ago this process began. Linux only: proc(5), field 22 of stat, in clock ticks."""
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123  # pathlib is not imported for this
        fields = file.read().rpartition(b")")[2].split()
    born_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - born_s


def crash(args: argparse.Namespace, reason: str) -> NoReturn:
    print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(args.exit_code)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--host", default="127.0.0.1")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--port", type=int)
    place.add_argument("--uds", default="", metavar="PATH", help="a Unix socket in place of a port")
    parser.add_argument("--model", required=True, metavar="NAME")
    parser.add_argument("--alias", action="append", default=[], metavar="NAME")
    parser.add_argument("--tasks", default=",".join(TASKS), help="of chat,embedding,rerank")
    parser.add_argument("--load", type=duration, default=0.0, help="time of loading: 2s, 100ms")
    parser.add_argument("--load-since-birth", action="store_true", help="count Python's start in")
    parser.add_argument("--unload", type=duration, default=0.0, help="time from SIGTERM to the end")
    parser.add_argument("--prefill", type=duration, default=0.0, help="time before the first token")
    parser.add_argument("--tps", type=float, default=0.0, help="tokens a second, 0 is no limit")
    parser.add_argument("--tokens", type=int, default=16, help="length where max_tokens is unset")
    parser.add_argument("--skilled", action="store_true", help="call tools, think, keep to schemas")
    parser.add_argument("--embedding-dim", type=int, default=8)
    parser.add_argument("--health-status", type=int, default=200, help="of /health once loaded")
    parser.add_argument("--refuse-while-loading", action="store_true")
    parser.add_argument("--hang", action="store_true", help="never end loading")
    parser.add_argument("--crash-while-loading", action="store_true")
    parser.add_argument("--crash-after", type=int, default=0, metavar="N", help="requests served")
    parser.add_argument("--exit-code", type=int, default=1, help="of a crash")
    parser.add_argument("--cut-after", type=int, default=-1, metavar="N", help="chunks of a stream")
    parser.add_argument("--wrong-length", action="store_true", help="announce more than is sent")
    parser.add_argument("--garbage", action="store_true", help="answer with what is not HTTP")
    parser.add_argument("--log-flood", action="store_true", help="print without end")
    parser.add_argument("--ignore-sigterm", action="store_true")
    args = parser.parse_args(argv)
    args.tasks = tuple(args.tasks.split(","))
    if unknown := set(args.tasks) - set(TASKS):
        parser.error(f"--tasks: {', '.join(sorted(unknown))} is none of {', '.join(TASKS)}")
    return args


def main(argv: Sequence[str]) -> None:
    args = arguments(argv)
    ending = signal.SIG_IGN if args.ignore_sigterm else signal.SIG_DFL
    signal.signal(signal.SIGTERM, ending)
    asyncio.run(FakeEngine(args).run())


if __name__ == "__main__":
    main(sys.argv[1:])
