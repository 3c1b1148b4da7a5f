"""What a plan says of llama.cpp's memory, next to what the real llama.cpp allocates."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.catalog.llamacpp_log import buffers
from tests.catalog.tiny_models import MODELS, make
from tests.planner.machines import found_at, machine

from modelyard.config.plans import Ask
from modelyard.planner.layout import Layout, reckon
from modelyard.planner.plan import fallbacks, make_plan, view_of
from modelyard.planner.subject import subject_of

ROUNDING_MIB = 0.02
OUR_PROCESS = ("process", "outputs", "checkpoints", "repacked weights", "prompt cache")
"""Terms that are not among llama.cpp's buffers for weights, cache and intermediate results."""


@pytest.mark.parametrize(
    ("name", "context", "sequences", "kv"),
    [
        ("GQA (llama)", 4096, 1, ""),
        ("GQA, tied (qwen3)", 2048, 3, "q8_0"),
        ("MoE (qwen3moe)", 4096, 2, ""),
        ("MLA (deepseek2)", 4096, 2, ""),
        ("window (gemma3)", 8192, 2, ""),
        ("state and heads (falcon-h1)", 4096, 2, ""),
    ],
)
def test_what_a_plan_says_fits_on_the_host_is_what_llama_cpp_takes(
    tmp_path: Path, name: str, context: int, sequences: int, kv: str
) -> None:
    path = make(MODELS[name], tmp_path / "model.gguf")
    subject = subject_of(found_at(path))
    layout = Layout("llamacpp", 0, context, sequences, kv)

    # With one sequence llama.cpp is left to choose, which is four that share the context.
    real = buffers(
        path, context * sequences, sequences if sequences > 1 else -1, kv.upper() or "F16"
    )
    taken = real.weights + real.cache + real.compute
    reckoned = reckon(subject, layout, machine())
    beside = sum(reckoned.term(term) for term in OUR_PROCESS)
    claimed = reckoned.host_mib - beside

    # Rather a little too much than too little, and never by much.
    assert taken - 3 * ROUNDING_MIB - 0.15 <= claimed <= taken * 1.1 + 1.5
    for spare, fits in ((-5, False), (-1, False), (0, True), (1, True), (1000, True)):
        sized = machine(host=reckoned.host_mib + spare)
        assert reckon(subject, layout, sized).fits is fits


def test_a_cache_of_blocks_is_advised_only_where_llama_cpp_starts_with_it(tmp_path: Path) -> None:
    """Heads of 16 numbers do not fill blocks of 32."""
    path = make(MODELS["GQA (llama)"], tmp_path / "model.gguf")
    plan = make_plan(found_at(path), machine(8000), Ask())

    assert buffers(path, 512, 1).cache
    with pytest.raises(RuntimeError):  # it says why in its log, of which the end may be lost
        buffers(path, 512, 1, "Q8_0")
    assert not [step for step in fallbacks(plan) if step.layout.kv]
    assert not [other for other in view_of(plan).alternatives if "q8_0" in other.name]
