"""Which way a plan chooses, for models of real shapes on cards of real sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.planner.large_models import (
    LLAMA_8B,
    LLAMA_70B,
    Q8_0,
    QWEN3_30B_A3B,
    folder,
    gguf_file,
)
from tests.planner.machines import found_at, machine

from modelyard.config.plans import Ask, PlanView
from modelyard.core.errors import InvalidRequest, ModelNotFound
from modelyard.core.specs import Device
from modelyard.engines.vllm_memory import host_kv_gib
from modelyard.planner.locate import models_at
from modelyard.planner.machine import Machine, machine_named, machine_of
from modelyard.planner.plan import find, make_plan, view_of
from modelyard.testing.server import DEMO_MODELS

RESERVE_MIB = 512
MIB = 2**20


def on(text: str, ram_gib: int = 64) -> Machine:
    return machine_named(text, ram_gib * 1024, RESERVE_MIB)


def planned(path: Path, where: Machine, ask: Ask | None = None) -> PlanView:
    found, beside = models_at(path)
    ask = ask or Ask()
    return view_of(make_plan(found, where, ask, beside=beside, any_variant=path.is_dir()))


def setting(view: PlanView, name: str) -> str:
    return next((row.value for row in view.settings if row.name == name), "")


def test_a_model_takes_the_fewest_cards_that_hold_it_whole(tmp_path: Path) -> None:
    small = gguf_file(tmp_path / "small" / "m-Q4_K_M.gguf")
    large = gguf_file(tmp_path / "large" / "m-Q4_K_M.gguf", LLAMA_70B)

    one, two = planned(small, on("2x RTX 4090")), planned(large, on("2x RTX 4090"))

    assert (one.fits, len(one.shares)) == (True, 2)
    assert (two.fits, len(two.shares)) == (True, 3)
    assert "--tensor-split 1,1" in two.commands[0]
    assert one.context == one.trained_context == 131072
    assert 20000 < two.context == two.longest_context < 131072


def test_experts_go_to_the_host_before_whole_layers_do(tmp_path: Path) -> None:
    view = planned(gguf_file(tmp_path / "m-Q4_K_M.gguf", QWEN3_30B_A3B), on("RTX 4060"))

    assert view.fits
    assert "experts" in view.verdict
    assert setting(view, "layers") == ""
    assert "exps=CPU" in str(view.options["override_tensor"])
    gpu, host = view.shares
    assert gpu.needs_mib <= gpu.available_mib
    assert host.needs_mib > 5000


def test_a_dense_model_leaves_as_few_layers_to_the_host_as_it_must(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m-Q8_0.gguf", LLAMA_8B, Q8_0)
    view = planned(path, on("RTX 4060"))

    layers = int(view.options["gpu_layers"])
    assert view.fits
    assert 0 < layers < 33
    one_more = f"{layers + 1} of 33"
    assert one_more not in view.verdict
    assert view.shares[0].available_mib - view.shares[0].needs_mib < 8500 / 33 + 80


def test_of_quantisations_the_largest_that_fits_whole_is_taken(tmp_path: Path) -> None:
    gguf_file(tmp_path / "Llama-Q4_K_M.gguf")
    gguf_file(tmp_path / "Llama-Q8_0.gguf", LLAMA_8B, Q8_0)

    assert planned(tmp_path, on("RTX 4090")).quantization == "Q8_0"
    small = planned(tmp_path, on("RTX 4060"))
    assert small.quantization == "Q4_K_M"
    other = next(each for each in small.alternatives if "Q8_0" in each.name)
    assert "3.7 GiB larger" in other.cost


def test_a_named_file_stays_and_others_are_alternatives(tmp_path: Path) -> None:
    gguf_file(tmp_path / "Llama-Q4_K_M.gguf")
    named = gguf_file(tmp_path / "Llama-Q8_0.gguf", LLAMA_8B, Q8_0)

    view = planned(named, on("RTX 4060"))

    assert view.quantization == "Q8_0"
    assert any("Q4_K_M" in other.name and other.fits for other in view.alternatives)


def test_what_does_not_fit_anywhere_says_how_much_is_missing_and_what_would_help(
    tmp_path: Path,
) -> None:
    view = planned(folder(tmp_path / "m", LLAMA_70B), on("4x RTX 3090", ram_gib=32))

    assert not view.fits
    assert "missing" in view.verdict
    more = next(each for each in view.alternatives if each.name.endswith("x rtx 3090"))
    assert more.fits
    assert "more of these cards" in more.cost


@pytest.mark.parametrize(
    ("text", "fits"), [("A100 80GB", False), ("2x A100 80GB", True), ("2x 40GiB", False)]
)
def test_the_size_table_of_old_is_put_right(tmp_path: Path, text: str, fits: bool) -> None:
    """70B in 16 bits are 140 GB: they never fitted one A100 of 80 GB, as was said once."""
    view = planned(folder(tmp_path / "m", LLAMA_70B), on(text, ram_gib=16), Ask(context=2048))

    assert view.fits is fits
    assert view.weights_mib == pytest.approx(70.55e9 * 2 / 2**20, rel=0.01)


def test_the_cache_of_two_thousand_tokens_is_reckoned_not_guessed(tmp_path: Path) -> None:
    view = planned(folder(tmp_path / "m"), on("RTX 4090"), Ask(context=2048))

    cache = next(term for term in view.shares[0].terms if term.name == "kv cache")
    # 32 layers x 8 heads x (128 + 128) numbers x 2 bytes x 2048 tokens
    assert cache.mib == 32 * 8 * 256 * 2 * 2048 / 2**20
    assert all(term.formula and term.source for share in view.shares for term in share.terms)


def test_a_long_context_on_a_card_with_fp8_takes_an_fp8_cache_and_on_others_not(
    tmp_path: Path,
) -> None:
    place = folder(tmp_path / "m")
    ask = Ask(context=68000)

    assert planned(place, on("RTX 4090"), ask).options.get("kv_cache_dtype") == "fp8"
    assert "kv_cache_dtype" not in planned(place, on("RTX 3090"), ask).options


def test_writing_is_bound_by_bandwidth_and_reading_by_arithmetic(tmp_path: Path) -> None:
    place = folder(tmp_path / "m")
    ask = Ask(context=2048)
    fast, slow = planned(place, on("H100 80GB"), ask), planned(place, on("RTX 4090"), ask)

    # 7.5 billion weights of 16 bits that a token goes through, and the cache, once for each token
    n_bytes = 7.505e9 * 2 + 268e6
    assert slow.speed.decode_tokens_s == pytest.approx(1008e9 / n_bytes, rel=0.01)
    assert fast.speed.decode_tokens_s == pytest.approx(3350e9 / n_bytes, rel=0.01)
    assert slow.speed.prefill_tokens_s == pytest.approx(165.2e12 / 2 / 7.505e9, rel=0.01)
    assert any("assumed" in basis for basis in slow.speed.basis)


def test_experts_make_writing_fast_for_the_size(tmp_path: Path) -> None:
    moe = planned(gguf_file(tmp_path / "a" / "m-Q4_K_M.gguf", QWEN3_30B_A3B), on("RTX 4090"))
    dense = planned(gguf_file(tmp_path / "b" / "m-Q4_K_M.gguf"), on("RTX 4090"), Ask(context=16384))

    assert moe.weights_mib > 3 * dense.weights_mib
    assert (moe.speed.decode_tokens_s or 0) > (dense.speed.decode_tokens_s or 0)


def test_sequences_that_were_asked_for_have_room_at_full_length(tmp_path: Path) -> None:
    place = folder(tmp_path / "m")
    one = planned(place, on("H100 80GB"), Ask(context=8192))
    many = planned(place, on("H100 80GB"), Ask(context=8192, concurrency=16))

    def cache(view: PlanView) -> float:
        return sum(term.mib for term in view.shares[0].terms if term.name == "kv cache")

    assert cache(many) == 16 * cache(one)
    assert many.options["max_num_seqs"] == 16
    assert (many.speed.together_tokens_s or 0) > 5 * (one.speed.decode_tokens_s or 0)


def test_heads_that_do_not_divide_are_split_by_layers(tmp_path: Path) -> None:
    view = planned(folder(tmp_path / "m", LLAMA_8B), machine(9000, 9000, 9000))

    assert view.options["pipeline_parallel_size"] == 3
    assert "do not divide" in next(r.reason for r in view.settings if r.name == "layers split")


def test_a_wish_without_sense_is_refused_with_the_nearest_that_has_some(tmp_path: Path) -> None:
    found = found_at(gguf_file(tmp_path / "Llama-Q4_K_M.gguf"))

    for ask, words in (
        (Ask(context=0), "context must be 1 to"),
        (Ask(concurrency=10**9), "concurrency must be 1 to"),
        (Ask(engine="vlm"), "did you mean vllm"),
        (Ask(engine="vllm"), "vllm does not load Llama-Q4_K_M"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            make_plan(found, machine(8000), ask)
    with pytest.raises(ModelNotFound, match="did you mean Llama-Q4_K_M"):
        find("lama-q4_k_m", [found])


def test_every_alternative_is_reckoned_and_priced(tmp_path: Path) -> None:
    view = planned(folder(tmp_path / "m"), on("RTX 4090 + RTX 4090"), Ask(context=16384))

    names = {other.name for other in view.alternatives}
    assert {"context 8192", "KV cache fp8", "eager", "2 cards", "host only"} <= names
    assert {"half of the weights on the host", "engine transformers"} <= names
    assert all(other.cost and other.host_mib for other in view.alternatives)
    halved = next(o for o in view.alternatives if o.name == "context 8192")
    assert view.shares[0].needs_mib - halved.gpu_mib == pytest.approx(1024, abs=4)


def test_what_only_reads_gets_a_batch_as_long_as_its_context() -> None:
    view = planned(DEMO_MODELS / "yard-embed.gguf", on("none"))

    assert "--ctx-size 512 --batch-size 512 --ubatch-size 512 --embedding" in view.commands[0]
    assert "kv cache" not in {term.name for share in view.shares for term in share.terms}


def test_vllm_on_the_host_is_told_its_cache_in_whole_gibibytes(tmp_path: Path) -> None:
    found = found_at(folder(tmp_path / "m"))
    for context, gib in ((2048, 1), (16384, 2), (20480, 3)):
        view = view_of(make_plan(found, on("none"), Ask(context=context, engine="vllm")))
        weights = -(-found.weight_bytes // MIB)

        assert view.commands[0].startswith(f"env VLLM_CPU_KVCACHE_SPACE={gib} vllm serve")
        assert host_kv_gib(view.shares[-1].needs_mib, weights) == gib


def test_memory_that_card_and_host_share_is_not_counted_twice() -> None:
    """Apple's GPU may hold three quarters of the machine's memory."""
    gpu = Device("apple:0", "Apple M2 Max", 65536, 49152, "apple")
    here = machine_of([Device("cpu", "Apple M2 Max", 65536, 65024), gpu])

    assert here.gpus[0].available_mib + here.host.available_mib == 65024
    assert here.gpus[0].bandwidth_gbs == 400
