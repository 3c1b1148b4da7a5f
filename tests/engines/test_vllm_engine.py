"""The vLLM adapter: its command line, what it is told to take, and what its log says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from modelyard.core.defaults import VLLM_CONTEXT_MIB as CONTEXT_MIB
from modelyard.core.defaults import VLLM_NCCL_MIB as NCCL_MIB
from modelyard.core.errors import LaunchError
from modelyard.core.specs import (
    Device,
    Endpoint,
    ModelSpec,
    Placement,
    Profile,
    Progress,
    Task,
)
from modelyard.engines.base import Failure
from modelyard.engines.lack import Lack
from modelyard.engines.sleeping import PRESETS, vllm_levels
from modelyard.engines.visibility import visible_devices
from modelyard.engines.vllm import Vllm
from modelyard.engines.vllm_builds import MODULE, Build
from modelyard.engines.vllm_complete import KV_SPACE, THREADS, Machine, completed

HERE = Endpoint("127.0.0.1", 4711)
CARD, OTHER = "GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-000000000000"
TOTAL = 24000
CUDA = Build(("/v/bin/vllm", "serve"), "0.32.0", "cuda")
CPU = Build(("/v/bin/python", "-m", MODULE), "0.32.0", "cpu")
WRITES = frozenset({Task.CHAT, Task.COMPLETION})
ON_CARD = (Profile("card", ("rtx 4090",), {"rtx 4090": 12512}),)
ON_TWO = (Profile("two", ("gpu", "rtx 4090"), {"gpu": 12000, "rtx 4090": 10000}),)
PLACED = Placement("card", {CARD: 12512}, (CARD,))
PLACED_ON_TWO = Placement("two", {CARD: 12000, OTHER: 10000}, (CARD, OTHER))
DEVICES = (
    Device(CARD, "NVIDIA GeForce RTX 4090", TOTAL, 23000, "nvidia", 0, 0, 23000),
    Device("cpu", "host", 64000, 60000),
)


def engine(build: Build = CUDA, total: int | None = TOTAL) -> Vllm:
    return Vllm(lambda _: build, lambda _: total)


def model(**fields: Any) -> ModelSpec:
    known: dict[str, Any] = {"tasks": WRITES, "source": "/models/qwen", "profiles": ON_CARD}
    return ModelSpec("qwen", "vllm", **(known | fields))


def argv(spec: ModelSpec, placement: Placement = PLACED, build: Build = CUDA) -> list[str]:
    return list(engine(build).command(spec, placement, HERE).argv)


def env(spec: ModelSpec, placement: Placement = PLACED, build: Build = CUDA) -> dict[str, str]:
    return dict(engine(build).command(spec, placement, HERE).env)


def machine(weights_mib: int = 3000, cores: int = 8) -> Machine:
    return Machine(DEVICES, range(cores), lambda _: weights_mib)


def complete(*specs: ModelSpec, build: Build = CUDA, cores: int = 8) -> list[ModelSpec]:
    return completed(specs, lambda *_: build, machine(cores=cores))


# ---------------------------------------------------------------------------------- command line


def test_a_script_is_given_the_model_first_and_all_its_names() -> None:
    words = argv(model(aliases=("gpt-4o", "small"), options={"max_model_len": 4096}))

    assert words[:5] == [
        "/v/bin/vllm", "serve", "/models/qwen", "--host=127.0.0.1", "--port=4711",
    ]  # fmt: skip
    at = words.index("--served-model-name")
    assert words[at + 1 : at + 4] == ["qwen", "gpt-4o", "small"]
    assert words[at + 4].startswith("--")
    assert words[-1] == "--max-model-len=4096"


def test_a_module_is_given_the_model_as_an_option() -> None:
    on_host = model(profiles=(Profile("default"),))
    words = argv(on_host, Placement("default", {"cpu": 8000}), CPU)

    assert words[:4] == ["/v/bin/python", "-m", MODULE, "--model=/models/qwen"]


def test_what_the_user_says_wins_over_what_modelyard_would_say() -> None:
    spec = model(options={"gpu-memory-utilization": 0.3, "allowed_origins": ["https://a"]})

    words = argv(spec)

    assert "--gpu-memory-utilization=0.3" in words
    assert '--allowed-origins=["https://a"]' in words
    assert not [word for word in words if word.startswith("--gpu-memory-utilization=0.5")]


def test_a_build_is_told_nothing_that_it_does_not_know() -> None:
    words = argv(model(), build=replace(CUDA, version="0.6.6"))

    assert not [word for word in words if word.startswith("--disable-access-log-for")]


def test_a_profile_that_names_another_vllm_is_started_with_it() -> None:
    builds = {(): CUDA, ("/old",): replace(CUDA, launch=("/old", "serve"), version="0.9.2")}
    adapter = Vllm(lambda words: builds[words], lambda _: TOTAL)
    spec = model(profiles=(replace(ON_CARD[0], command=("/old",), options={"task": "generate"}),))

    words = adapter.command(spec, PLACED, HERE).argv

    assert words[0] == "/old"
    assert "--task=generate" in words


def test_without_a_vllm_the_start_fails_and_tells_where_it_was_looked_for() -> None:
    with pytest.raises(LaunchError, match="no vLLM was found"):
        argv(model(), build=Build(trouble="no vLLM was found: no `vllm` on the PATH"))


def test_a_model_that_reads_is_run_as_one() -> None:
    reads = model(tasks=frozenset({Task.EMBEDDING}))

    assert "--runner=pooling" in argv(reads)
    assert "--task=embed" in argv(reads, build=replace(CUDA, version="0.9.2"))
    labels = model(tasks=frozenset({Task.CLASSIFICATION}))
    assert "--runner=pooling" in argv(labels)
    assert "--task=classify" in argv(labels, build=replace(CUDA, version="0.9.2"))
    assert not [w for w in argv(replace(reads, options={"runner": "generate"})) if "pooling" in w]


# ------------------------------------------------------------------------------------------ devices


def test_the_share_of_a_card_is_the_profiles_memory_less_the_drivers_context() -> None:
    share = math.floor((12512 - CONTEXT_MIB) / TOTAL * 10000) / 10000
    assert f"--gpu-memory-utilization={share}" in argv(model())


def test_a_measured_claim_does_not_change_the_share() -> None:
    """Else a vLLM that took less would be told less, and take less again."""
    learned = replace(PLACED, claims_mib={CARD: 9000})

    assert argv(model(), learned) == argv(model())


def test_of_several_cards_the_tightest_decides() -> None:
    share = (10000 - CONTEXT_MIB - NCCL_MIB) / TOTAL
    words = argv(model(profiles=ON_TWO), PLACED_ON_TWO)

    assert f"--gpu-memory-utilization={int(share * 10000) / 10000}" in words
    assert "--tensor-parallel-size=2" in words


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["--tensor-parallel-size=2"]),
        ({"pipeline_parallel_size": 2}, ["--pipeline-parallel-size=2"]),
        ({"tensor_parallel_size": 1}, ["--pipeline-parallel-size=2", "--tensor-parallel-size=1"]),
        ({"data_parallel_size": 2}, ["--data-parallel-size=2"]),
    ],
)
def test_the_profiles_cards_are_all_used(options: dict[str, Any], expected: list[str]) -> None:
    words = argv(model(profiles=ON_TWO, options=options), PLACED_ON_TWO)

    said = [word for word in words if "parallel-size" in word]
    # The sizes that were filled in come first, and a size of 1 says nothing new.
    assert sorted(said) == sorted(expected)


def test_an_engine_sees_its_own_cards_in_the_order_of_the_profile() -> None:
    turned = Placement("two", {CARD: 1, OTHER: 1}, (OTHER, CARD))
    amd = Placement("one", {"GPU-0123456789abcdef": 1}, ("GPU-0123456789abcdef",))

    assert env(model(profiles=ON_TWO), turned)["CUDA_VISIBLE_DEVICES"] == f"{OTHER},{CARD}"
    assert visible_devices(amd) == {"ROCR_VISIBLE_DEVICES": "GPU-0123456789abcdef"}


def test_it_speaks_over_loopback_and_reports_to_nobody() -> None:
    told = env(model())

    assert told["VLLM_HOST_IP"] == "127.0.0.1"
    assert told["VLLM_NO_USAGE_STATS"] == "1"
    assert "VLLM_HOST_IP" not in env(model(options={"distributed_executor_backend": "ray"}))
    assert env(model(env={"VLLM_HOST_IP": "10.0.0.1"}))["VLLM_HOST_IP"] == "10.0.0.1"


# ------------------------------------------------------------------------------------- what is open


def test_a_card_of_which_nobody_said_how_much_is_taken_as_far_as_models_may() -> None:
    bare = model(profiles=(Profile("card", ("gpu",)),))
    half = replace(bare, options={"gpu_memory_utilization": 0.5})
    estimated = replace(bare, estimate_mib=9000)

    taken = [spec.profiles[0].memory_mib for spec in complete(bare, half, estimated)]

    assert taken == [{"gpu": 23000}, {"gpu": 12000 + CONTEXT_MIB}, {"gpu": 9000}]


def test_on_the_host_the_kv_cache_is_what_the_weights_leave_of_the_memory() -> None:
    declared = model(profiles=(Profile("host", memory_mib={"cpu": 16000}),))
    undeclared = model(profiles=(Profile("host"),))

    first, second = complete(declared, undeclared, build=CPU)

    assert first.env[KV_SPACE] == "10"
    assert second.env[KV_SPACE] == "4"
    assert second.profiles[0].memory_mib["cpu"] > 3000 + 4 * 1024
    assert "VLLM_CPU_KVCACHE_SPACE" not in complete(model())[0].env


def test_models_on_the_host_get_cores_of_their_own() -> None:
    on_host = model(profiles=(Profile("host"),))
    several = [replace(on_host, id=name) for name in "abc"]
    own = replace(on_host, id="d", env={THREADS: "0-1"})

    bound = [spec.env.get(THREADS) for spec in complete(*several, own, build=CPU)]
    alone = complete(on_host, build=CPU)[0]

    assert bound == ["0,4", "1,5", "2,6", "0-1"]
    assert THREADS not in alone.env


def test_models_of_other_engines_are_left_alone() -> None:
    other = ModelSpec("x", "command", WRITES, command=("serve",))

    assert complete(other) == [other]


# -------------------------------------------------------------------------------------------- sleep


def test_where_sleep_is_supported_it_is_switched_on_with_its_routes() -> None:
    (sleeper,) = complete(model())

    assert sleeper.sleep == PRESETS["vllm"]
    assert "--enable-sleep-mode" in argv(sleeper)
    assert env(sleeper)["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.parametrize(
    "spec",
    [
        model(options={"enable_sleep_mode": False}),
        model(profiles=(Profile("host"),)),
    ],
    ids=["not wanted", "on the host"],
)
def test_where_it_is_not_there_is_no_development_route(spec: ModelSpec) -> None:
    build = CPU if spec.profiles[0].name == "host" else CUDA
    placement = Placement("host", {"cpu": 9000}) if build is CPU else PLACED
    (awake,) = complete(spec, build=build)

    assert awake.sleep == {}
    assert "--enable-sleep-mode" not in argv(awake, placement, build)
    assert "VLLM_SERVER_DEV_MODE" not in env(awake, placement, build)


@pytest.mark.parametrize(
    ("version", "platform", "levels"),
    [
        ((0, 6, 6), "cuda", []),
        ((0, 7, 3), "cuda", [1]),
        ((0, 9, 2), "cuda", [1]),
        ((0, 10, 2), "cuda", [1, 2]),
        ((0, 10, 2), "rocm", []),
        ((0, 11, 2), "rocm", [1, 2]),
        ((0, 21, 0), "xpu", []),
        ((0, 24, 0), "xpu", [1, 2]),
        ((0, 32, 0), "cpu", []),
        ((0, 32, 0), "tpu", []),
        ((), "", [1, 2]),
    ],
)
def test_sleep_is_offered_by_version_and_platform(
    version: tuple[int, ...], platform: str, levels: list[int]
) -> None:
    assert list(vllm_levels(version, platform)) == levels


# ----------------------------------------------------------------------------------------- problems


@pytest.mark.parametrize(
    ("spec", "build", "problem"),
    [
        (model(source=None), CUDA, "source: vLLM needs the folder of a checkpoint"),
        (
            model(tasks=WRITES | {Task.EMBEDDING}), CUDA,
            "tasks: one vLLM process cannot serve chat, completion, embedding; declare two models",
        ),
        (
            model(tasks=frozenset({Task.SPEECH, Task.IMAGE})), CUDA,
            "tasks: vLLM has no routes for image, speech",
        ),
        (
            model(aliases=("--x",)), CUDA,
            "aliases[0]: vLLM would take '--x' for an option; choose another name",
        ),
        (
            model(), CPU,
            ("profiles[0].devices: vLLM 0.32.0 is built for the host; give the profile another "
            "`command`"),
        ),
        (
            model(profiles=(Profile("host"),)), CUDA,
            ("profiles[0].devices: vLLM 0.32.0 is built for cuda and cannot run on the host; "
            "name a card, or install vLLM's build for CPUs and name it in `command`"),
        ),
        (
            model(profiles=(Profile("mixed", ("gpu", "cpu"), {"gpu": 9000}),)), CUDA,
            "profiles[0].devices: vLLM runs on cards or on the host; name one kind of them",
        ),
        (
            model(profiles=ON_TWO, options={"tensor_parallel_size": 3}), CUDA,
            "profiles[0].devices: 2 cards cannot be shared out over tensor_parallel_size 3",
        ),
        (
            model(options={"tensor_parallel_size": 2}), CUDA,
            "profiles[0].devices: 1 cards cannot be shared out over tensor_parallel_size 2",
        ),
        (
            model(profiles=(Profile("card", ("gpu",), {"gpu": 400}),)), CUDA,
            "profiles[0].memory.gpu: 400 MiB is no more than a process on a card takes",
        ),
        (
            model(profiles=(Profile("host"),), options={"enable_sleep_mode": True}), CPU,
            ("options.enable_sleep_mode: a vLLM built for cpu cannot sleep: it has nothing on a "
            "GPU to give back"),
        ),
        (
            model(profiles=(replace(ON_CARD[0], options={"sed": 1}),)), CUDA,
            "profiles[0].options.sed: vLLM 0.32.0 has no such option; did you mean seed?",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_before_anything_starts(
    spec: ModelSpec, build: Build, problem: str
) -> None:
    assert list(engine(build).problems(spec)) == [problem]


def test_where_no_vllm_is_installed_options_are_checked_against_the_newest_recorded() -> None:
    absent = Build(trouble="no vLLM was found")

    assert engine(absent).problems(model(options={"max_model_len": 1})) == ()
    assert engine(absent).problems(model(options={"max_modl_len": 1})) == (
        (
            "options.max_modl_len: vLLM as of 0.32.0 has no such option; did you mean "
            "max_model_len or max_log_len?"
        ),
    )


# ------------------------------------------------------------------------------------------- probes


def test_the_warm_up_writes_some_tokens_and_only_of_models_that_write() -> None:
    base, chat = engine().warm_up(model()), engine().warm_up(model(tasks=frozenset({Task.CHAT})))

    assert base is not None
    assert chat is not None
    assert (base.path, chat.path) == ("/v1/completions", "/v1/chat/completions")
    assert (
        json.loads(chat.body or "")["max_tokens"] == json.loads(base.body or "")["max_tokens"] > 1
    )
    assert engine().warm_up(model(tasks=frozenset({Task.EMBEDDING}))) is None


def test_health_is_asked_at_vllms_own_route() -> None:
    assert engine().health_path(model()) == "/health"
    assert engine().fixed_port(model()) is None


# ------------------------------------------------------------------------------------------ the log

INFO = "(EngineCore pid=12) INFO 11-21 02:00:00 [core.py:1] "
OLD = "INFO 05-08 12:45:51 [core.py:159] "


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        (f"{INFO}non-default args: {{'port': 1}}", Progress("reading the model")),
        (f"{OLD}Initializing a V1 LLM engine (v0.8.5) with", Progress("starting the engine")),
        (f"{INFO}Starting to load model /m...", Progress("loading weights")),
        (
            "\rLoading safetensors checkpoint shards:  33% Completed | 1/3 [00:00<?, ?it/s]",
            Progress("loading weights", 33.0),
        ),
        ("(Worker_TP0 pid=9) Loading pt checkpoint shards:   5% Completed | 1/20",
         Progress("loading weights", 5.0)),
        (f"{OLD}Loading model weights took 2.32 GB", Progress("profiling memory")),
        (f"{INFO}Dynamo bytecode transform time: 4.5 s", Progress("compiling")),
        (f"{INFO}torch.compile took 20.10 s in total", Progress("compiling")),
        (f"{INFO}Available KV cache memory: 12.1 GiB", Progress("profiling memory")),
        (
            "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  50%|#####     | 30/60",
            Progress("capturing graphs", 50.0),
        ),
        ("Capturing CUDA graph shapes:  10%|#", Progress("capturing graphs", 10.0)),
        (f"{INFO}Graph capturing finished in 3 secs, took 0.5 GiB", Progress("warming up")),
        ("(APIServer pid=1) INFO 11-21 02:00:00 [entry.py:140] Starting vLLM server on http://x",
         Progress("listening")),
        ("Processed prompts: 100% done", None),
        ("user said: Loading safetensors checkpoint shards:  33% ", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_line_of_the_log_moves_the_progress(line: str, progress: Progress | None) -> None:
    assert engine().progress(line) == progress


AFTER = ["RuntimeError: Engine core initialization failed. See root cause above. Failed core proc"]


@pytest.mark.parametrize(
    ("line", "failure"),
    [
        (
            ("ValueError: To serve at least one request with the model's max seq len (32768), (4.5 "
            "GiB KV cache is needed, which is larger than the available KV cache memory (1.25 "
            "GiB). Based on the available memory, the estimated maximum model length is 9104. Try"),
            Failure(
                "one request of 32768 tokens (max_model_len) needs 4.5 GiB of KV cache and 1.25 "
                "GiB are left for it; give the profile more `memory`, or lower `max_model_len` to "
                "9104", True, Lack.BUDGET, 9104,
            ),
        ),
        (
            ("ValueError: The model's max seq len (8192) is larger than the maximum number of "
            "tokens that can be stored in KV cache (2000). Try increasing"),
            Failure(
                "max_model_len 8192 is more than its KV cache holds (2000 tokens); give the "
                "profile more `memory`, or lower `max_model_len`", True, Lack.BUDGET, 2000,
            ),
        ),
        (
            ("ValueError: Free memory on device cuda:0 (3.2/23.6 GiB) on startup is less than "
            "desired GPU memory utilization (0.5, 11.8 GiB). Decrease GPU memory utilization"),
            Failure(
                "it was to take 11.8 GiB of a card with 3.2 of 23.6 GiB free; somebody else uses "
                "the card, or the profile's `memory` is too large for it",
                lack=Lack.DEVICE,
            ),
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has",
            Failure(
                "the card ran out of memory when it wanted 1.50 GiB more; give the profile more "
                "`memory`, or lower `max_num_seqs` and `max_num_batched_tokens`",
                lack=Lack.DEVICE,
            ),
        ),
        (
            ("pydantic_core.ValidationError: Model architectures ['FooForCausalLM'] are not "
            "supported for now. Supported architectures: dict_keys(['A'])"),
            Failure("this vLLM does not know the architecture 'FooForCausalLM'", True),
        ),
        (
            "api_server.py: error: argument --dtype: invalid choice: 'x' (choose from 'auto')",
            Failure(
                "vLLM refuses an option: argument --dtype: invalid choice: 'x' (choose from "
                "'auto')", True,
            ),
        ),
        (
            "OSError: [Errno 98] Address already in use",
            Failure("its port was taken by another program"),
        ),
        (
            "RuntimeError: No {blank} in sight",
            Failure("exit code 1: RuntimeError: No {blank} in sight"),
        ),
    ],
)  # fmt: skip
def test_the_root_cause_is_told_in_one_sentence(line: str, failure: Failure) -> None:
    core = f"(EngineCore pid=12) ERROR 11-21 02:00:00 [core.py:700] {line}"
    raised = ["Traceback (most recent call last):", '  File "x.py", line 1, in y', *AFTER]

    assert engine().failure("exit code 1", [line, *raised]) == failure
    assert engine().failure("exit code 1", [core, *raised]) == failure


def test_where_the_cause_is_no_longer_there_the_log_is_pointed_to() -> None:
    last = [*AFTER, "resource_tracker.py:254: UserWarning: leaked", "  warnings.warn('x')"]

    told = engine().failure("exit code 1", last).reason

    assert told == "its engine process did not start; `modelyard logs` tells why"


def test_a_killed_or_silent_engine_is_explained_too() -> None:
    assert "memory runs out" in engine().failure("killed by SIGKILL", []).reason
    assert engine().failure("exit code 3", []).reason == "exit code 3, and it printed nothing"


def test_sleep_is_for_the_profiles_on_cards() -> None:
    profiles = (Profile("card", ("gpu",), {"gpu": 9000}), Profile("host", ("cpu",)))
    (spec,) = complete(model(profiles=profiles))

    assert list(spec.sleep) == [1, 2]
    assert [profile.can_sleep for profile in spec.profiles] == [True, False]
