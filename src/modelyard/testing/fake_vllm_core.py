"""The fake vLLM's engine process, titled `VLLM::EngineCore`: it holds the memory of the devices.

Started by `fake_vllm`, which sends one JSON object a line over the socket that is this process's
stdin and reads one back for each.

Laws of this file:
- Only the standard library is imported: tests start hundreds of these.
- Memory is moved in the order and by the reckoning of vLLM 0.32 (v1/worker/gpu_worker.py,
  device_allocator/cumem.py), with its words where it speaks of it.
- What a worker measures it tells itself, of its own device: with tensor parallelism there is such a
  line from each of them, as `Worker_TP0`, `Worker_TP1`; else the engine is its own worker.
- The end of the socket ends nothing: without its API server this process stays and keeps what it
  holds, as the real one does (vLLM #55510). SIGTERM ends it at once. Workers, which exist with
  tensor parallelism only, end with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from json import dumps, loads
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from modelyard.testing.fake_books import Book
from modelyard.testing.fake_page import HOST, DeviceLost, OutOfMemory
from modelyard.testing.fake_vllm_words import gib, log, titled

SHARDS = 4
_TAGS = ("weights", "kv_cache")
_MIB = 2**20
_MODULE = "modelyard.testing.fake_vllm_core"


def say(line: str, level: str = "INFO") -> None:
    log("EngineCore", line, level)


class EngineCore:
    """The memory of one engine, on all its devices."""

    def __init__(self, args: SimpleNamespace, book: Book, python: str) -> None:
        self.args = args
        self.book = book
        self.sleeping: set[str] = set()
        """The names of what is not resident."""
        self.level = 0
        self.garbage = False
        """Whether the weights' memory holds anything but weights."""
        self.devices = book.visible(os.environ.get("CUDA_VISIBLE_DEVICES"))
        count = args.tensor_parallel_size
        if len(self.devices) < count:
            raise RuntimeError(
                f"No CUDA GPUs are available: {count} needed, {len(self.devices)} visible"
            )
        del self.devices[count:]
        self.weights = -(-args.fake_weights // count)
        self.kv: dict[str, int] = {}
        self.consumed: dict[str, int] = {}
        self.max_len = 0
        self._workers = [_worker(rank, python) for rank in range(count)] if count > 1 else []

    @property
    def places(self) -> list[tuple[str, int]]:
        """Each device, and the process that holds memory there."""
        pids = [worker.pid for worker in self._workers] or [os.getpid()]
        return list(zip(self.devices, pids, strict=True))

    def _tell(self, rank: int, line: str) -> None:
        if self._workers:
            log(f"Worker_TP{rank}", line, pid=self._workers[rank].pid)
        else:
            say(line)

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Perform one operation. Raises what a real one would die of: DeviceLost, at load anything.

        A failure that a real one survives is told as `error`.
        """
        match message["op"]:
            case "load":
                with self.book.operation(self.devices, "load"):
                    self._load()
                return {"max_len": self.max_len}
            case "step":
                self._touch()
                return {"garbage": self.garbage}
            case "state":
                return {"asleep": bool(self.sleeping)}
            case "reload":
                return self._reload()
            case "sleep":
                return self._guarded(lambda: self._sleep(message["level"]))
            case "wake":
                return self._guarded(lambda: self._wake(message["tags"]))
        raise ValueError(f"no operation {message['op']}")

    def _guarded(self, work: Callable[[], None]) -> dict[str, Any]:
        try:
            work()
        except OutOfMemory as error:
            say(f"[core.py:1002] Invocation of method failed: {error}", "ERROR")
            return {"error": str(error)}
        return {}

    def _touch(self) -> None:
        """Use the devices. Raises DeviceLost if one is gone, or came back empty."""
        for device, pid in self.places:
            account = self.book.account(device)
            if account.failure or not self.book.held(device, pid=pid):
                raise DeviceLost(account.failure or f"CUDA error: the device {device} is lost")

    # -------------------------------------------------------------------------------------- loading

    def _load(self) -> None:
        args = self.args
        say(f"[core.py:112] Initializing a V1 LLM engine (v{args.fake_version}) with config:"
            f" model='{args.model}', max_seq_len={args.max_model_len}")  # fmt: skip
        for device, pid in self.places:
            self.book.hold(device, {"context": args.fake_residue - args.fake_graphs}, pid=pid)
        at_start = {device: self._free(device) for device in self.devices}
        for index, device in enumerate(self.devices):
            self._check_room(index, device)
        self._tell(0, f"[gpu_model_runner.py:4891] Starting to load model {args.model}...")
        self._load_weights()
        for device, pid in self.places:
            self.book.hold(device, {"activation": args.fake_activation}, pid=pid)
        say("[backends.py:1069] Dynamo bytecode transform time: 0.01 s")
        say("[backends.py:390] Compiling a graph for compile range (1, 2048) takes 0.01 s")
        graphs = gib(args.fake_graphs)
        self._tell(0, f"[gpu_model_runner.py:6046] Estimated CUDA graph memory: {graphs} total")
        for rank, device in enumerate(self.devices):
            self.kv[device] = self._kv_of(rank, device, at_start[device])
        self._check_kv()
        for device, pid in self.places:
            self.book.hold(device, {"kv_cache": self.kv[device]}, pid=pid)
        self._capture_graphs()
        for rank, device in enumerate(self.devices):
            self._report(rank, device, at_start[device])
        say("[core.py:310] init engine (profile, create kv cache, warmup model) took"
            f" {args.fake_load / 2:.2f} seconds")  # fmt: skip

    def _load_weights(self) -> None:
        half = self.args.fake_load / 2
        for shard in range(SHARDS + 1):
            if shard:
                time.sleep(half / SHARDS)
            self._take("weights", self.weights * shard // SHARDS)
            done = f"{shard * 100 // SHARDS:3d}% Completed | {shard}/{SHARDS}"
            bar = f"Loading safetensors checkpoint shards: {done} [00:00<00:00,  9.99it/s]"
            print(f"(EngineCore pid={os.getpid()}) {bar}", file=sys.stderr, flush=True)
            if self.args.fake_crash_while_loading and shard == SHARDS // 2:
                raise RuntimeError("the load was to fail halfway, as asked")
        self._tell(0, f"[default_loader.py:484] Loading weights took {half:.2f} seconds")
        took = f"{gib(self.weights)} memory and {half:.6f} seconds"
        for rank in range(len(self.devices)):
            self._tell(rank, f"[model_runner.py:407] Model loading took {took}")

    def _check_room(self, index: int, device: str) -> None:
        account = self.book.account(device)
        share = self.args.gpu_memory_utilization
        wanted = account.total_mib * share
        if account.free_mib < wanted:
            raise ValueError(
                f"Free memory on device cuda:{index} ({account.free_mib / 1024:.2f}/"
                f"{gib(account.total_mib)}) on startup is less than desired GPU memory utilization"
                f" ({share}, {gib(wanted)}). Decrease GPU memory utilization or reduce GPU memory"
                " used by other processes."
            )

    def _kv_of(self, rank: int, device: str, free_at_start: int) -> int:
        """What is left for the cache. Whatever others took meanwhile is billed to this engine."""
        account = self.book.account(device)
        if account.free_mib > free_at_start:
            raise AssertionError(
                f"Error in memory profiling. Initial free memory {gib(free_at_start)}, current free"
                f" memory {gib(account.free_mib)}. This happens when other processes sharing the"
                " same container release GPU memory while vLLM is profiling during initialization."
            )
        consumed = free_at_start - account.free_mib
        self.consumed[device] = consumed - self.args.fake_activation
        budget = int(account.total_mib * self.args.gpu_memory_utilization)
        kv: int = budget - consumed - self.args.fake_graphs
        if (fixed := self.args.kv_cache_memory_bytes) is not None:
            kv = fixed // _MIB
        self._tell(rank, f"[gpu_worker.py:692] Available KV cache memory: {gib(kv)}")
        return kv

    def _check_kv(self) -> None:
        args, least = self.args, min(self.kv.values())
        if least <= 0:
            raise ValueError(
                "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`"
                " when initializing the engine."
            )
        tokens = least * _MIB // args.fake_kv_bytes
        derived = args.fake_derived_len
        asked = derived if args.max_model_len is None else args.max_model_len
        wanted = min(derived, tokens) if asked < 0 else asked
        if wanted > tokens:
            raise ValueError(
                f"To serve at least one request with the model's max seq len ({wanted}),"
                f" ({gib(wanted * args.fake_kv_bytes / _MIB)} KV cache is needed, which is larger"
                f" than the available KV cache memory ({gib(least)}). Based on the available"
                f" memory, the estimated maximum model length is {tokens}. Try increasing"
                " `gpu_memory_utilization` or decreasing `max_model_len` when initializing the"
                " engine."
            )
        self.max_len = wanted
        say(f"[kv_cache_utils.py:2464] GPU KV cache size: {tokens:,} tokens, Maximum concurrency"
            f" for {wanted:,} tokens per request: {tokens / wanted:.2f}x")  # fmt: skip

    def _capture_graphs(self) -> None:
        for step in range(3):
            bar = f"{step * 50:3d}%|{'█' * step * 5:<10}| {step}/2"
            # One line that is written over itself: tqdm moves back and does not end it.
            print(
                f"\rCapturing CUDA graphs (decode, FULL): {bar}",
                end="",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(self.args.fake_load / 6)
        print(file=sys.stderr, flush=True)
        self._take("graphs", self.args.fake_graphs)
        took = gib(self.args.fake_graphs)
        self._tell(0, f"[model_runner.py:791] Graph capturing finished in 1 secs, took {took}")

    def _report(self, rank: int, device: str, free_at_start: int) -> None:
        args, total = self.args, self.book.account(device).total_mib
        share = args.gpu_memory_utilization
        consumed = self.consumed[device]
        apart = consumed + args.fake_activation + args.fake_graphs
        fit, full = int(total * share) - apart, free_at_start - apart
        self._tell(
            rank,
            f"[gpu_worker.py:955] Free memory on device ({free_at_start / 1024:.2f}/{gib(total)})"
            f" on startup. Desired GPU memory utilization is ({share}, {gib(total * share)})."
            f" Actual usage is {gib(consumed)} for consumed memory (weights + non-torch),"
            f" {gib(args.fake_activation)} for peak activation, and {gib(args.fake_graphs)} for"
            " CUDAGraph memory. Replace gpu_memory_utilization config with"
            f" `--kv-cache-memory={fit * _MIB}` ({gib(fit)}) to fit into requested memory, or"
            f" `--kv-cache-memory={full * _MIB}` ({gib(full)}) to fully utilize gpu memory."
            f" Current kv cache memory in use is {gib(self.kv[device])}.",
        )

    def _free(self, device: str) -> int:
        return self.book.account(device).free_mib

    def _take(self, tag: str, mib: int) -> None:
        for device, pid in self.places:
            self.book.hold(device, {tag: mib}, pid=pid)

    # ------------------------------------------------------------------------------- sleep and wake

    def _sleep(self, level: int) -> None:
        if self.sleeping:
            say("[abstract.py:309] Executor is already sleeping.", "WARNING")
            return
        with self.book.operation(self.devices, "sleep"):
            self._touch()
            before = {device: self._used(device) for device in self.devices}
            time.sleep(self.args.fake_sleep_time)
            if self.args.enable_sleep_mode and not self.args.fake_lie_about_sleep:
                self._give_up(level)
            for rank, device in enumerate(self.devices):
                freed = before[device] - self._used(device)
                if self.args.fake_lie_about_sleep:
                    freed = self.kv[device] + self.weights
                left = f"{gib(before[device] - freed)} memory is still in use."
                self._tell(
                    rank, f"[gpu_worker.py:217] Sleep mode freed {gib(freed)} memory, {left}"
                )
        say(f"[abstract.py:315] It took {self.args.fake_sleep_time:.6f} seconds to fall asleep.")
        self.sleeping, self.level = set(_TAGS), level

    def _give_up(self, level: int) -> None:
        if level == 1:
            for _, pid in self.places:
                self.book.hold(HOST, {"pinned weights": self.weights}, pid=pid)
        else:
            self.garbage = True
        nothing = dict.fromkeys((*_TAGS, "activation"), 0)
        for device, pid in self.places:
            self.book.hold(device, {**nothing, "leak": self.args.fake_leak}, pid=pid)

    def _wake(self, tags: list[str] | None) -> None:
        if not self.sleeping:
            say("[abstract.py:320] Executor is not sleeping.", "WARNING")
            return
        if strange := [tag for tag in tags or () if tag not in self.sleeping]:
            say(f"[abstract.py:326] Tag {strange[0]} is not in sleeping tags {self.sleeping}",
                "WARNING")  # fmt: skip
            return
        wanted = [tag for tag in _TAGS if tag in (tags or self.sleeping)]
        with self.book.operation(self.devices, "wake"):
            self._touch()
            for tag in wanted:
                time.sleep(self.args.fake_wake_time / len(_TAGS))
                self._restore(tag)
        # Only now: a wake that failed halfway leaves its mappings and may be tried again (#34600).
        self.sleeping -= set(wanted)
        say(f"[abstract.py:333] It took {self.args.fake_wake_time:.6f} seconds to wake up tags"
            f" {wanted}.")  # fmt: skip

    def _restore(self, tag: str) -> None:
        if not self.args.enable_sleep_mode:
            return
        for part in range(1, SHARDS + 1):
            for device, pid in self.places:
                size = self.weights if tag == "weights" else self.kv[device]
                self.book.hold(device, {tag: size * part // SHARDS}, pid=pid)
            if part == SHARDS // 2 and self.args.fake_crash_on_wake:
                raise DeviceLost("CUDA error: an illegal memory access was encountered, as asked")
            if part == SHARDS // 2 and self.args.fake_wake_fails:
                raise OutOfMemory("CUDA Error: out of memory at /csrc/cumem_allocator.cpp:62")
        if tag == "kv_cache":
            self._take("activation", self.args.fake_activation)
        elif self.level == 1:
            for _, pid in self.places:
                self.book.hold(HOST, {"pinned weights": 0}, pid=pid)

    def _reload(self) -> dict[str, Any]:
        if "weights" in self.sleeping:
            return {"error": "CUDA error: an illegal memory access: the weights are not resident"}
        self._touch()
        self.garbage = False
        say("[gpu_worker.py:300] Reloading weights inplace...")
        return {}

    def _used(self, device: str) -> int:
        return self.book.account(device).used_mib


def _worker(rank: int, python: str) -> subprocess.Popen[bytes]:
    """A process that holds the memory of one device and ends with this one."""
    command, environment = titled(f"VLLM::Worker_TP{rank}", _MODULE)
    pipe = subprocess.PIPE
    worker = subprocess.Popen(command, executable=python, env=environment, stdin=pipe, stdout=pipe)
    assert worker.stdout is not None, "it was asked for"
    worker.stdout.readline()  # until it is up
    return worker


def _take_title() -> None:
    """Let the system call this process by the title that it was started with."""
    with contextlib.suppress(OSError):  # proc(5) only, and not in every sandbox
        Path("/proc/self/comm").write_text(sys.orig_argv[0])


def _messages(wire: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(ConnectionError):
        yield from wire.makefile("rb")


def _end_with_a_worker(*_: object) -> None:
    """End if a worker has; one that was stopped for a while sends the same signal."""
    try:
        ended = os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:  # somebody else collected it
        ended = 1
    if ended:
        os._exit(1)


def _serve(wire: socket.socket, python: str) -> None:
    lines = _messages(wire)
    args = SimpleNamespace(**loads(next(lines)))
    book = Book.of_environment()
    if book is None:
        raise RuntimeError("No CUDA GPUs are available: MODELYARD_FAKE_GPUS names no books")
    # A worker that dies takes the engine along, and be it while it starts.
    signal.signal(signal.SIGCHLD, _end_with_a_worker)
    core = EngineCore(args, book, python)
    for line in lines:
        reply = dumps(core.answer(loads(line))).encode() + b"\n"
        with contextlib.suppress(ConnectionError):
            wire.sendall(reply)
    while True:
        signal.pause()


def main(python: str) -> int:
    """Serve as the engine; `python` is the interpreter, which a titled process cannot find."""
    try:
        _serve(socket.socket(fileno=0), python)
    except StopIteration:
        return 0  # the API server died before it said anything
    except (ValueError, RuntimeError, AssertionError) as error:
        say("[core.py:1349] EngineCore hit a fatal error.", "ERROR")
        say("[core.py:1349] Traceback (most recent call last):", "ERROR")
        say(f"[core.py:1349] {type(error).__name__}: {error}", "ERROR")
    return 1


if __name__ == "__main__":
    _take_title()
    if len(sys.argv) > 1:
        sys.exit(main(sys.argv[1]))
    print("up", flush=True)  # a worker; it ends with the pipe
    sys.stdin.read()
