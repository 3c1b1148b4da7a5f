"""The memory of one replica, device by device."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.catalog.checkpoints import LLAMA, checkpoint, safetensors
from tests.catalog.tiny_models import MODELS, make

from modelyard.catalog.estimate import estimate
from modelyard.catalog.estimate_folder import Wish, estimate_folder
from modelyard.catalog.estimate_split import Split, estimate_split
from modelyard.catalog.folder_checkpoint import FolderCheckpoint, read_folder
from modelyard.catalog.gguf import GgufHeader, read_header
from modelyard.core.defaults import VLLM_CONTEXT_MIB

MIB = 2**20


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    """Four layers with experts, untied."""
    return read_header(make(MODELS["MoE (qwen3moe)"], tmp_path_factory.mktemp("m") / "moe.gguf"))


def total(shares: dict[str, float]) -> float:
    return sum(shares.values())


def weights(header: GgufHeader, split: Split) -> dict[str, float]:
    found = estimate_split(header, split, context=4096)
    return {device: share.term("weights") for device, share in found.items()}


def test_a_model_on_one_gpu_leaves_its_table_of_words_on_the_host(experts: GgufHeader) -> None:
    found = weights(experts, Split())

    assert found["host"] == pytest.approx(128 * 512 * 2 / MIB)
    assert total(found) == pytest.approx(experts.tensor_bytes / MIB)


def test_a_table_that_is_the_output_too_is_loaded_twice(tmp_path: Path) -> None:
    tied = read_header(make(MODELS["GQA, tied (qwen3)"], tmp_path / "tied.gguf"))

    found = weights(tied, Split())

    assert total(found) == pytest.approx((tied.tensor_bytes + 128 * 512 * 2) / MIB)
    assert total(weights(tied, Split(gpu_layers=0))) == pytest.approx(tied.tensor_bytes / MIB)


@pytest.mark.parametrize(
    ("split", "layers"),
    [
        (Split(), {"gpu0": 4, "host": 0}),
        (Split(gpu_layers=0), {"gpu0": 0, "host": 4}),
        (Split(gpu_layers=3), {"gpu0": 2, "host": 2}),
        (Split((1, 1)), {"gpu0": 3, "gpu1": 1, "host": 0}),
        (Split((3, 1), gpu_layers=4), {"gpu0": 3, "gpu1": 0, "host": 1}),
    ],
)
def test_whole_layers_go_where_their_share_is_and_their_cache_with_them(
    experts: GgufHeader, split: Split, layers: dict[str, int]
) -> None:
    found = estimate_split(experts, split, context=4096)

    # a layer: 2 heads x (32 + 32) numbers x 2 bytes x 4096 tokens
    assert {device: share.term("kv cache") for device, share in found.items()} == {
        device: float(count) for device, count in layers.items()
    }


def test_experts_can_stay_on_the_host(experts: GgufHeader) -> None:
    together, apart = weights(experts, Split()), weights(experts, Split(host_experts=3))
    of_layer = 3 * 128 * 256 * 8 * 2 / MIB

    assert apart["host"] == pytest.approx(together["host"] + 3 * of_layer)
    assert total(apart) == pytest.approx(total(together))


def test_every_term_says_how_it_was_reckoned_and_from_what(
    experts: GgufHeader, tmp_path: Path
) -> None:
    folder = read(checkpoint(tmp_path / "m", template=True))
    found = [
        estimate(experts, experts.file_bytes),
        *estimate_split(experts, Split((1, 1)), projector_bytes=MIB).values(),
        *estimate_folder(folder, "vllm", Wish(gpus=2, tensor_parallel=2)).values(),
        *estimate_folder(folder, "transformers").values(),
    ]

    terms = [term for share in found for term in share.terms]
    assert len(terms) > 25
    assert all(term.name and term.formula and term.source for term in terms)


def read(place: Path) -> FolderCheckpoint:
    return read_folder(place, place.name, {path.name: path for path in place.iterdir()})


def test_tensor_parallel_gpus_have_equal_parts(tmp_path: Path) -> None:
    folder = read(checkpoint(tmp_path / "m", template=True))

    one = estimate_folder(folder, "vllm", Wish(gpus=1))["gpu0"]
    two = estimate_folder(folder, "vllm", Wish(gpus=2, tensor_parallel=2))

    assert set(two) == {"gpu0", "gpu1", "host"}
    assert two["gpu0"].term("weights") == one.term("weights") / 2
    assert two["gpu0"].term("kv cache") == one.term("kv cache") / 2
    assert two["gpu1"].term("CUDA context") == VLLM_CONTEXT_MIB
    assert (one.term("collective buffers"), two["gpu0"].term("collective buffers")) == (0, 600)


def test_pipeline_stages_divide_the_cache_by_layers(tmp_path: Path) -> None:
    folder = read(checkpoint(tmp_path / "m", template=True))

    one = estimate_folder(folder, "vllm", Wish(gpus=1))["gpu0"]
    two = estimate_folder(folder, "vllm", Wish(gpus=2, pipeline_parallel=2))["gpu1"]

    assert two.term("kv cache") == one.term("kv cache") / 2


def test_offloaded_weights_move_to_the_host(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "m", template=True)
    large = {"model.layers.0.a.weight": ("BF16", (1024, 1024))}
    (place / "model.safetensors").write_bytes(safetensors(large))
    folder = read(place)

    found = estimate_folder(folder, "vllm", Wish(gpus=1, cpu_offload_mib=1))
    most = estimate_folder(folder, "vllm", Wish(gpus=1, cpu_offload_mib=4096))

    assert found["gpu0"].term("weights") == 2
    assert found["gpu0"].term("offloaded weights") == -1
    assert found["host"].term("offloaded weights") == 1
    assert most["gpu0"].term("offloaded weights") == -2


def test_vllm_loads_single_precision_as_16_bits(tmp_path: Path) -> None:
    place = checkpoint(tmp_path / "m", template=True)
    single = {"model.layers.0.a.weight": ("F32", (1024, 1024))}
    (place / "model.safetensors").write_bytes(safetensors(single))
    folder = read(place)

    def mib(engine: str, dtype: str | None = None) -> float:
        return estimate_folder(folder, engine, Wish(gpus=1, dtype=dtype))["gpu0"].term("weights")

    assert (mib("vllm"), mib("vllm", "float32"), mib("transformers")) == (2, 4, 4)


def test_eager_spares_the_graphs_and_a_longer_context_costs(tmp_path: Path) -> None:
    config = {**LLAMA, "max_position_embeddings": 65536}
    folder = read(checkpoint(tmp_path / "m", config, template=True))

    plain = estimate_folder(folder, "vllm", Wish(gpus=1, context=4096))["gpu0"]
    eager = estimate_folder(folder, "vllm", Wish(gpus=1, context=4096, eager=True))["gpu0"]
    longer = estimate_folder(folder, "vllm", Wish(gpus=1, context=8192, sequences=2))["gpu0"]
    halved = estimate_folder(folder, "vllm", Wish(gpus=1, context=4096, kv_dtype="fp8"))["gpu0"]

    assert plain.term("CUDA graphs") > 0 == eager.term("CUDA graphs")
    assert longer.term("kv cache") == 4 * plain.term("kv cache") == 8 * halved.term("kv cache")
    # 2 layers x 2 heads x (16 + 16) numbers x 2 bytes x 4096 tokens
    assert plain.term("kv cache") * MIB == 2 * 2 * 32 * 2 * 4096
    assert (plain.context, longer.context) == (4096, 2 * 8192)


def test_what_only_reads_remembers_nothing(tmp_path: Path) -> None:
    config = {"architectures": ["BertModel"], "model_type": "bert", "num_hidden_layers": 2}
    folder = read(checkpoint(tmp_path / "m", config))

    assert estimate_folder(folder, "transformers")["host"].term("kv cache") == 0
