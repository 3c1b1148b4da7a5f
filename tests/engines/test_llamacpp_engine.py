from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import xllamacpp  # noqa: TID253 - its library holds llama-server's own list of flags

from modelyard.core.specs import (
    Endpoint,
    ModelSpec,
    OptionValue,
    Placement,
    Profile,
    Progress,
    Task,
)
from modelyard.engines.llamacpp import LlamaCpp
from modelyard.engines.llamacpp_table import OPTIONS, Form

BUILT_IN = LlamaCpp("python3")
LLAMA_SERVER = LlamaCpp("python3", "/opt/llama-server")
HERE = Endpoint("127.0.0.1", 4711)
ON_HOST = Placement("default", {"cpu": 100})
ON_GPU = Placement("default", {"GPU-1f2e": 8000, "cpu": 500})


def model(options: Mapping[str, OptionValue] | None = None, task: Task = Task.CHAT) -> ModelSpec:
    return ModelSpec("yard", "llamacpp", frozenset({task}), source="/m.gguf", options=options or {})


def settings(spec: ModelSpec, placement: Placement = ON_HOST) -> dict[str, OptionValue]:
    """What the built-in server is told to set."""
    argv = BUILT_IN.command(spec, placement, HERE).argv
    pairs = (a.removeprefix("--set=").partition("=") for a in argv if a.startswith("--set="))
    return {name: json.loads(value) for name, _, value in pairs}


def flags(spec: ModelSpec, placement: Placement = ON_HOST) -> list[str]:
    """llama-server's command line after what every model has."""
    argv = LLAMA_SERVER.command(spec, placement, HERE).argv
    return list(argv[argv.index("4711") + 1 :])


# --------------------------------------------------------------------------------------- commands


def test_the_built_in_server_is_told_where_what_and_by_which_names() -> None:
    spec = ModelSpec("yard", "llamacpp", frozenset({Task.CHAT}), ("a", "b"), "/m.gguf")
    argv = BUILT_IN.command(spec, ON_HOST, HERE).argv

    assert argv[:10] == (
        "python3", "-P", "-m", "modelyard.servers.llamacpp", "--model=/m.gguf",
        "--alias=yard", "--alias=a", "--alias=b", "--host=127.0.0.1", "--port=4711",
    )  # fmt: skip


def test_a_llama_server_is_told_where_what_and_by_which_names() -> None:
    spec = ModelSpec("yard", "llamacpp", frozenset({Task.CHAT}), ("a", "b"), "/m.gguf")
    argv = LLAMA_SERVER.command(spec, ON_HOST, HERE).argv

    assert argv[:9] == (
        "/opt/llama-server", "--model", "/m.gguf", "--alias", "yard,a,b",
        "--host", "127.0.0.1", "--port", "4711",
    )  # fmt: skip


def test_nothing_grows_behind_the_schedulers_back_on_the_host() -> None:
    assert settings(model()) == {
        "cache_ram_mib": 0,
        "cors_origins": "",
        "endpoint_metrics": True,
        "fit_params": False,
        "n_ctx_checkpoints": 4,
        "n_gpu_layers": 0,
        "n_parallel": -1,
        "ui": False,
    }
    assert flags(model()) == [
        "--cache-ram", "0", "--metrics", "--fit", "off", "--ctx-checkpoints", "4",
        "--gpu-layers", "0", "--no-webui",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (ON_HOST, {"CUDA_VISIBLE_DEVICES": ""}),
        (ON_GPU, {"CUDA_VISIBLE_DEVICES": "GPU-1f2e"}),
        (Placement("default", {"metal": 9000}), {}),
    ],
)
def test_a_replica_sees_only_the_gpus_it_was_placed_on(
    placement: Placement, expected: Mapping[str, str]
) -> None:
    assert dict(BUILT_IN.command(model(), placement, HERE).env) == expected


def test_a_replica_on_a_gpu_leaves_the_layers_to_llama_cpp() -> None:
    assert settings(model(), ON_GPU).keys().isdisjoint({"n_gpu_layers", "fit_params"})


def test_with_unified_memory_the_host_is_the_gpu() -> None:
    engine = LlamaCpp("python3", unified_memory=True)
    command = engine.command(model(), ON_HOST, HERE)

    assert not any("n_gpu_layers" in argument for argument in command.argv)
    assert dict(command.env) == {}


@pytest.mark.parametrize(
    ("task", "mode", "flag"),
    [
        (Task.CHAT, "--mode=chat", None),
        (Task.COMPLETION, "--mode=chat", None),
        (Task.EMBEDDING, "--mode=embedding", "--embedding"),
        (Task.RERANK, "--mode=rerank", "--reranking"),
    ],
)
def test_the_task_chooses_the_mode(task: Task, mode: str, flag: str | None) -> None:
    given = [f for f in flags(model(task=task)) if f in ("--embedding", "--reranking")]

    assert mode in BUILT_IN.command(model(task=task), ON_HOST, HERE).argv
    assert given == ([flag] if flag else [])


@pytest.mark.parametrize(
    ("context", "options", "expected"),
    [
        (512, {}, {"n_ctx": 512, "n_batch": 512, "n_ubatch": 512}),
        (32768, {}, {"n_ctx": 2048, "n_batch": 2048, "n_ubatch": 2048}),
        (32768, {"ctx_size": 16384}, {"n_ctx": 16384, "n_batch": 16384, "n_ubatch": 16384}),
        (None, {}, {"n_batch": 2048, "n_ubatch": 2048}),
        (512, {"ctx_size": 0}, {"n_ctx": 0, "n_batch": 512, "n_ubatch": 512}),
        (512, {"ubatch_size": 64}, {"n_ctx": 512, "n_batch": 512, "n_ubatch": 64}),
    ],
)
def test_an_embedding_models_batch_holds_its_longest_input(
    context: int | None, options: dict[str, OptionValue], expected: dict[str, int]
) -> None:
    spec = ModelSpec(
        "yard", "llamacpp", frozenset({Task.EMBEDDING}), source="/m.gguf",
        options=options, context_length=context,
    )  # fmt: skip
    chosen = settings(spec)

    assert {name: chosen[name] for name in chosen if name in ("n_ctx", "n_batch", "n_ubatch")} == (
        expected
    )


def test_on_a_gpu_llama_cpp_is_asked_to_tell_what_its_buffers_take() -> None:
    assert flags(model(), ON_GPU)[-2:] == ["--verbosity", "4"]
    assert "--verbosity" not in flags(model(), ON_HOST)


@pytest.mark.parametrize(
    ("trained", "options", "expected"),
    [(512, {}, 512), (131072, {}, 16384), (131072, {"ctx_size": 0}, 0), (None, {}, None)],
)
def test_a_chat_model_gets_the_context_that_memory_is_claimed_for(
    trained: int | None, options: dict[str, OptionValue], expected: int | None
) -> None:
    spec = dataclasses.replace(model(options), context_length=trained)

    assert settings(spec).get("n_ctx") == expected


def test_a_profiles_options_override_the_models_under_whatever_name() -> None:
    spec = ModelSpec(
        "yard", "llamacpp", frozenset({Task.CHAT}), source="/m.gguf",
        options={"ctx_size": 1024, "threads": 2},
        profiles=(Profile("small", options={"n_ctx": 256}),),
    )  # fmt: skip
    chosen = settings(spec, Placement("small", {"cpu": 1}))

    assert (chosen["n_ctx"], chosen["cpuparams.n_threads"]) == (256, 2)


def test_the_models_own_environment_and_folder_are_kept() -> None:
    spec = ModelSpec(
        "yard", "llamacpp", frozenset(), source="/m.gguf",
        env={"CUDA_VISIBLE_DEVICES": "1", "A": "b"}, cwd="/srv",
    )  # fmt: skip
    command = BUILT_IN.command(spec, ON_HOST, HERE)

    assert (dict(command.env), command.cwd) == ({"CUDA_VISIBLE_DEVICES": "1", "A": "b"}, "/srv")


# ---------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "value", "setting", "flag"),
    [
        ("ctx_size", 4096, {"n_ctx": 4096}, "--ctx-size 4096"),
        ("ctx-size", 4096, {"n_ctx": 4096}, "--ctx-size 4096"),
        ("--ctx-size", 4096, {"n_ctx": 4096}, "--ctx-size 4096"),
        ("n_ctx", 4096, {"n_ctx": 4096}, "--ctx-size 4096"),
        ("threads", 3, {"cpuparams.n_threads": 3}, "--threads 3"),
        ("gpu_layers", 20, {"n_gpu_layers": 20}, "--gpu-layers 20"),
        ("n_gpu_layers", "all", {"n_gpu_layers": -2}, "--gpu-layers all"),
        ("gpu_layers", "auto", {"n_gpu_layers": -1}, "--gpu-layers auto"),
        ("flash_attn", "on", {"flash_attn_type": "enabled"}, "--flash-attn on"),
        ("flash_attn", False, {"flash_attn_type": "disabled"}, "--flash-attn off"),
        ("flash_attn_type", "auto", {"flash_attn_type": "auto"}, "--flash-attn auto"),
        ("cache_type_k", "Q8_0", {"cache_type_k": "q8_0"}, "--cache-type-k q8_0"),
        ("pooling", "mean", {"pooling_type": "mean"}, "--pooling mean"),
        ("load_mode", "dio", {"load_mode": "direct_io"}, "--load-mode dio"),
        ("reasoning_format", "deepseek-legacy", {"reasoning_format": "deepseek_legacy"},
         "--reasoning-format deepseek-legacy"),
        ("mmproj", "/p.gguf", {"mmproj.path": "/p.gguf"}, "--mmproj /p.gguf"),
        ("jinja", False, {"use_jinja": False}, "--no-jinja"),
        ("no_warmup", True, {"warmup": False}, "--no-warmup"),
        ("kv_offload", False, {"no_kv_offload": True}, "--no-kv-offload"),
        ("no_kv_offload", False, {"no_kv_offload": False}, "--kv-offload"),
        ("fit", "on", {"fit_params": True}, "--fit on"),
        ("metrics", False, {"endpoint_metrics": False}, ""),
        ("rope_scale", 4, {"rope_freq_scale": 0.25}, "--rope-freq-scale 0.25"),
        ("rope_freq_scale", 0.5, {"rope_freq_scale": 0.5}, "--rope-freq-scale 0.5"),
        ("spec_type", "ngram-simple", {"speculative.types": ["ngram_simple"]},
         "--spec-type ngram-simple"),
        ("spec_draft_model", "/d.gguf", {"speculative.draft.mparams.path": "/d.gguf"},
         "--spec-draft-model /d.gguf"),
        ("temperature", 1, {"sampling.temp": 1.0}, "--temp 1"),
        ("tensor_split", "3, 1", {"tensor_split": [3.0, 1.0]}, "--tensor-split 3,1"),
        ("tensor_split", [3, 1], {"tensor_split": [3.0, 1.0]}, "--tensor-split 3,1"),
        ("samplers", ["top_k", "min_p"], {"sampling.samplers": "top_k;min_p"},
         "--samplers top_k;min_p"),
        ("lora", "/l.gguf", {"lora_adapters": [{"path": "/l.gguf", "scale": 1.0}]},
         "--lora /l.gguf"),
        ("lora", [{"path": "/l.gguf", "scale": 0.5}],
         {"lora_adapters": [{"path": "/l.gguf", "scale": 0.5}]}, "--lora-scaled /l.gguf:0.5"),
        ("chat_template_kwargs", {"think": False}, {"default_template_kwargs": {"think": "false"}},
         '--chat-template-kwargs {"think": false}'),
    ],
)  # fmt: skip
def test_one_option_means_the_same_to_both_servers(
    name: str, value: OptionValue, setting: dict[str, OptionValue], flag: str
) -> None:
    spec = model({name: value})
    bare = model()
    attribute = next(iter(setting))
    added = " ".join(f for f in flags(spec, ON_GPU) if f not in flags(bare, ON_GPU))

    assert not BUILT_IN.problems(spec)
    assert not LLAMA_SERVER.problems(spec)
    assert {attribute: settings(spec)[attribute]} == setting
    assert added == flag


def test_a_chat_template_file_is_read_by_the_server() -> None:
    spec = model({"chat_template_file": "/t.jinja"})

    assert "--chat-template-file=/t.jinja" in BUILT_IN.command(spec, ON_HOST, HERE).argv
    assert "--chat-template-file /t.jinja" in " ".join(flags(spec))


def test_a_parameter_that_only_xllamacpp_has_is_passed_by_its_own_name() -> None:
    spec = model({"speculative.ngram_mod.n_max": 32})

    assert settings(spec)["speculative.ngram_mod.n_max"] == 32
    assert LLAMA_SERVER.problems(spec)[0].endswith(
        "n_max: llama-server has no such option, only the built-in server has"
    )


def test_an_option_that_only_some_llama_server_has_is_passed_by_its_own_name() -> None:
    spec = model({"spec-magic": 3, "fast_lane": True, "slow_lane": False, "list": ["a", 1]})

    assert not LLAMA_SERVER.problems(spec)
    assert " ".join(flags(spec, ON_HOST)).endswith(
        "--fast-lane --fit off --list a,1 --ctx-checkpoints 4 --gpu-layers 0 "
        "--no-slow-lane --spec-magic 3 --no-webui"
    )


def test_an_option_without_a_value_is_left_out() -> None:
    assert "n_ctx" not in settings(model({"ctx_size": None}))


def test_every_flag_of_the_table_is_known_to_llama_cpps_parser() -> None:
    library = next(Path(xllamacpp.__path__[0]).glob("*.so")).read_bytes()
    written = {f"--{option.flag}" for option in OPTIONS}
    written |= {f"--no-{option.flag}" for option in OPTIONS if option.form is Form.SWITCH}
    unknown = {flag for flag in written if f"{flag}\0".encode() not in library}

    assert unknown == set()


# --------------------------------------------------------------------------------------- problems


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ctx_sizes", 1, "the built-in server has no such option; did you mean ctx_size or"),
        ("zzzzz", 1, "the built-in server has no such option; only a llama-server may have it"),
        ("mlock", True, "the built-in server has no such option; write `load_mode: mlock`"),
        ("ctx_size", "4096", 'it must be a whole number, not "4096"'),
        ("ctx_size", True, "it must be a whole number, not true"),
        ("ctx_size", 1.5, "it must be a whole number, not 1.5"),
        ("gpu_layers", "some", 'it must be a whole number, auto or all, not "some"'),
        ("temp", "hot", 'it must be a number, not "hot"'),
        ("rope_scale", 0, "it cannot be 0"),
        ("warmup", 1, "it must be true or false, not 1"),
        ("chat_template", 5, "it must be a text, not 5"),
        ("pooling", "median", "it must be unspecified, none, mean, cls, last or rank, not"),
        ("tensor_split", "a,b", 'it must list numbers, as in [3, 1], not "a"'),
        ("tensor_split", 3, "it must be a list, not 3"),
        ("lora", [{"scale": 1}], "it must list files, or mappings of path and scale"),
        ("chat_template_kwargs", "{", "it must be a mapping, or one written as JSON"),
        ("chat_template_kwargs", [1], "it must be a mapping, not [1]"),
        ("port", 8080, "it is not an option here: where the engine listens is chosen by"),
        ("model", "/x", "it is not an option here: write `source` beside the options"),
        ("alias", "x", "it is not an option here: the model's id and `aliases` are its names"),
        ("embedding", True, "it is not an option here: write `tasks` beside the options"),
        ("api_key", "x", "it is not an option here: Modelyard alone talks to the engine"),
    ],
)  # fmt: skip
def test_an_unusable_option_is_named_with_the_way_out(
    name: str, value: OptionValue, told: str
) -> None:
    found = BUILT_IN.problems(model({name: value}))

    assert len(found) == 1
    assert found[0].startswith(f"options.{name}: {told}")


def test_one_option_under_two_names_is_a_problem() -> None:
    assert list(BUILT_IN.problems(model({"ctx_size": 1, "n_ctx": 2}))) == [
        "options.n_ctx: it is the same option as ctx_size; keep one of them"
    ]


def test_all_problems_are_told_at_once_with_their_paths() -> None:
    spec = ModelSpec(
        "yard", "llamacpp", frozenset({Task.CHAT, Task.RERANK}), command=("x",),
        profiles=(Profile("a", options={"port": 1}, command=("x",)),),
    )  # fmt: skip
    paths = [problem.partition(":")[0] for problem in BUILT_IN.problems(spec)]

    assert paths == [
        "source",
        "tasks",
        "command",
        "profiles[0].command",
        "profiles[0].options.port",
    ]


# ------------------------------------------------------------------------------- what it prints


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0.00.003.818 I srv          init: loading model", Progress("loading model")),
        ("0.00.003.861 I srv    load_model: loading model '/m.gguf'", Progress("loading model")),
        ("main: loading model", Progress("loading model")),
        ("load_tensors: loading model tensors, this can take a while... (mmap = true)",
         Progress("loading weights")),
        ("...................", Progress("loading weights", 19.0)),
        ("." * 99, Progress("loading weights", 99.0)),
        ("0.00.1 I cmn  common_init_: fitting params to device memory ...",
         Progress("fitting to memory")),
        ("llama_context: constructing llama_context", Progress("preparing context")),
        ("llama_kv_cache:        CPU KV buffer size =     0.12 MiB", Progress("preparing context")),
        ("common_init_: warming up the model with an empty run - please wait ...",
         Progress("warming up")),
        ("main: server is listening on http://127.0.0.1:1 - starting the main loop",
         Progress("ready")),
        ("0.00.008.748 I srv          init: model loaded", Progress("ready")),
        ("slot print_timing: id  3 | task 0 | total time = 152.37 ms", None),
        ("", None),
    ],
)  # fmt: skip
def test_log_lines_tell_the_phase(line: str, expected: Progress | None) -> None:
    assert BUILT_IN.progress(line) == expected


@pytest.mark.parametrize(
    ("exit_text", "lines", "reason", "permanent"),
    [
        ("exit code 1",
         ["0.00.003.825 E llama_model_load: error loading model: unknown model architecture: 'no'",
          "0.00.004.353 E srv          init: exiting due to model loading error"],
         "this llama.cpp does not know the architecture no", True),
        ("exit code 1",
         ["gguf_init_from_file: failed to open GGUF file 'n.gguf' (No such file or directory)"],
         "cannot open n.gguf: No such file or directory", True),
        ("exit code 1",
         ["0.00.1 E gguf_init_from_reader: invalid magic characters: 'impo', expected 'GGUF'"],
         "the file is not a GGUF file (invalid magic characters: 'impo', expected 'GGUF')", True),
        ("exit code 78", ["modelyard: cannot read the model /x: No such file or directory"],
         "cannot read the model /x: No such file or directory", True),
        ("exit code 1",
         ["srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 18432"],
         "its port was taken by another program", False),
        ("exit code 1",
         ["ggml_backend_cuda: allocating 9 MiB on device 0: cudaMalloc failed: out of memory",
          "llama_model_load: error loading model: unable to allocate CUDA0 buffer"],
         "out of memory", False),
        ("exit code 1", ["error: invalid argument: --ctx-sze"],
         "llama-server refuses an option: error: invalid argument: --ctx-sze", True),
        ("killed by SIGKILL", ["loading"],
         "the system killed it, as it does when memory runs out", False),
        ("killed by SIGILL", [],
         "this build of llama.cpp uses instructions the processor lacks", True),
        ("exit code 1", ["modelyard: yard is ready at http://127.0.0.1:1"],
         "exit code 1: yard is ready at http://127.0.0.1:1", False),
        ("exit code 1", ["ModuleNotFoundError: No module named 'xllamacpp'"],
         "xllamacpp is not installed in this Python environment", True),
        ("exit code 78", ["what"], "exit code 78", True),
        ("exit code 3", ["", "0.00.1 E srv  init: odd end"], "exit code 3: odd end", False),
        ("exit code 3", [], "exit code 3, and it printed nothing", False),
    ],
)  # fmt: skip
def test_a_failure_is_explained_in_one_line(
    exit_text: str, lines: list[str], reason: str, permanent: bool
) -> None:
    failure = BUILT_IN.failure(exit_text, lines)

    assert failure.reason.startswith(reason)
    assert failure.permanent is permanent


def test_health_is_llama_cpps_own_route_unless_the_model_says_otherwise() -> None:
    other = ModelSpec("yard", "llamacpp", frozenset(), health_path="/v1/health")

    assert [BUILT_IN.health_path(model()), BUILT_IN.health_path(other)] == ["/health", "/v1/health"]
    assert BUILT_IN.fixed_port(model()) is None
