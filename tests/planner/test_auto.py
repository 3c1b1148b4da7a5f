"""What an `auto` model is started with, and the way down; no engine runs here."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.planner.large_models import folder, gguf_file
from tests.planner.machines import found_at, machine

from modelyard.config import load
from modelyard.core.errors import ConfigError
from modelyard.core.specs import AUTO_PROFILE, ModelSpec, OptionValue, Profile
from modelyard.engines.lack import Lack, lack_in, longest_in
from modelyard.planner.auto import Recipe, Standing, lower, machine_for, recipes, served

OPEN = Profile(AUTO_PROFILE)
CARD = "rtx 4090"
CARDS = {CARD: ["GPU-0", "GPU-1"], "cpu": ["cpu"]}


def spec(engine: str, *profiles: Profile, **options: OptionValue) -> ModelSpec:
    return ModelSpec("m", engine, frozenset(), options=options, profiles=profiles or (OPEN,))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return folder(tmp_path / "model")


@pytest.fixture
def quantised(tmp_path: Path) -> Path:
    return gguf_file(tmp_path / "m-Q4_K_M.gguf")


def test_without_a_profile_devices_memory_and_options_are_planned(quantised: Path) -> None:
    ways = recipes(found_at(quantised), spec("llamacpp"), OPEN, machine(24564))

    first = ways[0]
    assert first.name == "as planned"
    assert first.profile.devices == (CARD,)
    assert first.profile.options["gpu_layers"] == 33
    assert first.profile.options["ctx_size"] == first.context
    assert 20000 < first.profile.memory_mib[CARD] <= 24564
    claims = [sum(way.profile.memory_mib.values()) for way in ways if way.profile.devices != ()]
    assert len(ways) > 5
    assert claims[0] == max(claims)
    assert ways[-1].profile.devices == ("cpu",)


def test_two_like_cards_are_named_twice_and_claim_alike(tmp_path: Path) -> None:
    ways = recipes(found_at(folder(tmp_path / "m")), spec("vllm"), OPEN, machine(12288, 12288))

    assert ways[0].profile.devices == (CARD, CARD)
    assert set(ways[0].profile.memory_mib) == {CARD}
    assert ways[0].profile.options["tensor_parallel_size"] == 2


def test_options_that_a_person_wrote_are_kept_however_they_are_spelled(checkpoint: Path) -> None:
    written = spec("vllm", **{"max-model-len": 8000, "enforce_eager": False})

    ways = recipes(found_at(checkpoint), written, OPEN, machine(24564))

    assert ways[0].context == 8000
    for way in ways:
        assert "max_model_len" not in way.profile.options
        assert "enforce_eager" not in way.profile.options
    assert not [way for way in ways if way.name.startswith(("context", "eager"))]


def test_who_places_layers_is_not_told_where_they_go(quantised: Path) -> None:
    ways = recipes(found_at(quantised), spec("llamacpp", gpu_layers=10), OPEN, machine(24564))

    assert {way.profile.devices for way in ways} == {(CARD,)}
    assert not [way for way in ways if "on cards" in way.name]
    assert all("gpu_layers" not in way.profile.options for way in ways)


def test_a_profile_keeps_its_cards_and_its_memory(checkpoint: Path) -> None:
    two = Profile("two", (CARD, CARD))
    bounded = Profile("bounded", (CARD,), {CARD: 18000})
    here = machine(24564, 24564)
    both = machine_for(two, here, CARDS)
    one = machine_for(bounded, here, CARDS)
    assert both is not None
    assert one is not None

    ways = recipes(found_at(checkpoint), spec("vllm", two), two, both)
    within = recipes(found_at(checkpoint), spec("vllm", bounded), bounded, one)

    assert ways[0].profile.devices == (CARD, CARD)
    assert within[0].profile.memory_mib == {CARD: 18000}
    # The share follows from what was declared.
    assert "gpu_memory_utilization" not in within[0].profile.options
    assert within[0].context < 52000


def test_a_profile_whose_card_is_not_there_is_left_alone() -> None:
    missing = Profile("other", ("rtx 3060",))

    assert machine_for(missing, machine(24564), {"rtx 3060": []}) is None


def test_a_share_that_was_too_little_is_kept_and_a_full_card_is_given_less(
    checkpoint: Path,
) -> None:
    ways = recipes(found_at(checkpoint), spec("vllm"), OPEN, machine(24564))
    share = "gpu_memory_utilization"

    kept = lower(ways, Standing(), Lack.BUDGET, None)
    given = lower(ways, Standing(), Lack.DEVICE, None)
    assert kept is not None
    assert given is not None

    assert kept.step == given.step == 1
    assert served(ways, kept).options["max_model_len"] == ways[1].context
    assert served(ways, kept).options[share] == ways[0].profile.options[share]
    assert served(ways, kept).memory_mib == ways[0].profile.memory_mib
    assert served(ways, given) == ways[1].profile
    assert served(ways, given).memory_mib[CARD] < ways[0].profile.memory_mib[CARD]


def test_a_share_is_kept_also_when_weights_move_to_the_host(checkpoint: Path) -> None:
    ways = recipes(found_at(checkpoint), spec("vllm"), OPEN, machine(24564))
    step = next(at for at, way in enumerate(ways) if "in host memory" in way.name)

    profile = served(ways, Standing(step, 0))

    assert profile.devices == (CARD, "cpu")
    assert profile.memory_mib[CARD] == ways[0].profile.memory_mib[CARD]
    assert profile.memory_mib["cpu"] == ways[step].profile.memory_mib["cpu"]


def test_contexts_that_the_engine_says_are_too_long_are_not_tried(checkpoint: Path) -> None:
    ways = recipes(found_at(checkpoint), spec("vllm"), OPEN, machine(24564))

    on = lower(ways, Standing(), Lack.BUDGET, 10_000)

    assert on is not None
    assert ways[on.step].context <= 10_000 < ways[on.step - 1].context


def test_the_ladder_ends(quantised: Path) -> None:
    ways = recipes(found_at(quantised), spec("llamacpp"), OPEN, machine(8192))
    steps: list[Recipe] = []
    at: Standing | None = Standing()
    while at is not None:
        steps.append(ways[at.step])
        at = lower(ways, at, Lack.DEVICE, None)

    assert steps == list(ways)


@pytest.mark.parametrize(
    ("line", "lack", "longest"),
    [
        (("ValueError: To serve at least one request with the models's max seq len (131072), (16.0 "
         "GiB KV cache is needed, which is larger than the available KV cache memory (3.38 GiB). "
         "Based on the available memory, the estimated maximum model length is 27648."),
         Lack.BUDGET, 27648),
        (("ValueError: No available memory for the cache blocks. Try increasing "
         "`gpu_memory_utilization` when initializing the engine."), Lack.BUDGET, None),
        (("The model's max seq len (32768) is larger than the maximum number of tokens that can be "
         "stored in KV cache (9024)."), Lack.BUDGET, 9024),
        (("ValueError: Free memory on device cuda:0 (10.54/23.69 GiB) on startup is less than "
         "desired GPU memory utilization (0.9, 21.32 GiB)."), Lack.DEVICE, None),
        (("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 786.00 MiB. GPU 0 has a "
         "total capacity of 79.11 GiB of which 140.75 MiB is free."), Lack.DEVICE, None),
        (("RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy "
         "requests."), Lack.DEVICE, None),
        (("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 144817.04 MiB on device 0: "
         "cudaMalloc failed: out of memory"), Lack.DEVICE, None),
        ("llama_model_load: error loading model: unable to allocate CUDA0 buffer",
         Lack.DEVICE, None),
        ("0.02.468.179 E alloc_tensor_range: failed to allocate Vulkan0 buffer of size 1037832192",
         Lack.DEVICE, None),
        ("ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory", Lack.DEVICE, None),
        ("ggml_aligned_malloc: insufficient memory (attempted to allocate 36000.00 MB)",
         Lack.DEVICE, None),
        (("llama_init_from_model: failed to initialize the context: failed to allocate buffer for "
         "kv cache"), Lack.DEVICE, None),
        (("RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't "
         "allocate memory: you tried to allocate 274877906944 bytes."), Lack.DEVICE, None),
        ("Error in memory profiling. Initial free memory 22.1 GiB, current free memory 22.4 GiB.",
         None, None),
        ("llama_model_loader: loaded meta data with 33 key-value pairs", None, None),
        ("error loading model: unknown model architecture: 'mystery'", None, None),
    ],
)  # fmt: skip
def test_engines_words_for_too_little_memory_are_known(
    line: str, lack: Lack | None, longest: int | None
) -> None:
    """The lines are quoted from vLLM, llama.cpp and torch, or from reports about them."""
    assert (lack_in(line), longest_in(line)) == (lack, longest)


@pytest.mark.parametrize("engine", ["command", "remote"])
def test_auto_means_nothing_to_engines_whose_options_nobody_knows(
    engine: str, tmp_path: Path
) -> None:
    entry = {
        "command": "engine: command, command: [./serve], tasks: [chat]",
        "remote": "engine: remote, upstreams: [{url: https://api.example.com/v1}], tasks: [chat]",
    }[engine]

    with pytest.raises(ConfigError, match=r"models\.m\.auto: means nothing for the engine"):
        loaded(f"models: {{m: {{{entry}, auto: true}}}}", tmp_path)


def loaded(text: str, place: Path) -> ModelSpec:
    file = place / "modelyard.yaml"
    file.write_text(text)
    return load(file, env={}).models[0]


def test_a_written_profile_or_memory_is_not_an_open_one(tmp_path: Path) -> None:
    text = "models: {{m: {{engine: vllm, source: /m, auto: true{more}}}}}"
    told = [
        loaded(text.format(more=more), tmp_path).profiles[0]
        for more in ("", ", memory: 4GiB", ", profiles: [{name: auto, devices: [gpu]}]")
    ]

    assert told[0] == OPEN
    assert OPEN not in told[1:]
