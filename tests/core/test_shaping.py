"""Which target of a virtual model is asked, and how shapes are laid over each other."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.core.errors import ModelNotFound
from modelyard.core.names import Names
from modelyard.core.shaping import Choose, Shape, Standing, Target, Turns, VirtualModel, choose
from modelyard.core.specs import ModelSpec, Task

COLD = Standing(is_ready=False, has_room=False)
BUSY = Standing(is_ready=True, has_room=False)
FREE = Standing(is_ready=True, has_room=True)


def virtual(how: Choose, *weights: int, fallback: bool = True) -> VirtualModel:
    targets = tuple(Target(name, weight) for name, weight in zip("abc", weights, strict=False))
    return VirtualModel("v", targets, how, fallback, {"night": (Target("c"),)})


@pytest.mark.parametrize(
    ("how", "standing", "order"),
    [
        (Choose.ORDERED, {"b": FREE}, "abc"),
        (Choose.WARM, {}, "abc"),
        (Choose.WARM, {"b": BUSY, "c": FREE}, "bac"),
        (Choose.SPILLOVER, {"a": BUSY, "b": COLD, "c": FREE}, "cab"),
        (Choose.SPILLOVER, {"a": BUSY, "b": BUSY, "c": COLD}, "abc"),
    ],
)
def test_the_first_one_asked_is_the_one_that_the_rule_names(
    how: Choose, standing: dict[str, Standing], order: str
) -> None:
    chosen = choose(virtual(how, 1, 1, 1), "", Turns(), lambda name: standing.get(name, COLD))

    assert chosen == list(order)


def test_without_fallback_only_one_is_asked() -> None:
    only = virtual(Choose.WARM, 1, 1, fallback=False)

    assert choose(only, "", Turns(), lambda name: FREE if name == "b" else COLD) == ["b"]


def test_a_mode_gives_other_targets() -> None:
    assert choose(virtual(Choose.ORDERED, 1, 1), "night", Turns(), lambda _: COLD) == ["c"]
    assert choose(virtual(Choose.ORDERED, 1, 1), "unknown", Turns(), lambda _: COLD) == ["a", "b"]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=3).filter(any))
def test_weights_are_exact_over_each_round(weights: list[int]) -> None:
    turns = Turns()
    shared = virtual(Choose.WEIGHTED, *weights)
    asked = Counter(choose(shared, "", turns, lambda _: COLD)[0] for _ in range(3 * sum(weights)))

    assert [asked[name] for name in "abc"[: len(weights)]] == [3 * weight for weight in weights]


def test_a_canary_is_spread_out() -> None:
    turns = Turns()
    shared = virtual(Choose.WEIGHTED, 9, 1)
    asked = [choose(shared, "", turns, lambda _: COLD)[0] for _ in range(20)]

    first, second = (at for at, name in enumerate(asked) if name == "b")
    assert second - first == 10


def test_a_variant_lies_over_its_model() -> None:
    model = Shape(strip=frozenset({"user"}), set={"temperature": 0}, system="Be kind.")
    variant = Shape(set={"temperature": 1, "top_p": 0.5}, max_output_tokens=9)
    joined = model.under(variant)

    assert joined.strip == {"user"}
    assert joined.set == {"temperature": 1, "top_p": 0.5}
    assert (joined.system, joined.max_output_tokens) == ("Be kind.", 9)


def test_names_lead_to_models_variants_and_virtual_models() -> None:
    base, loud = Shape(set={"seed": 1}), Shape(set={"temperature": 2})
    spec = ModelSpec("m", "command", frozenset({Task.CHAT}), aliases=("alias",), shape=base,
                     variants={"m-loud": loud, "taken": loud})  # fmt: skip
    other = ModelSpec("taken", "command", frozenset({Task.CHAT}))
    names = Names([spec, other], [virtual(Choose.WARM, 1), VirtualModel("m", (Target("taken"),))])

    assert names.meaning("m").shape is base
    assert names.meaning("alias").shape is base
    assert names.meaning("alias").is_engines
    assert names.meaning("m-loud").shape == base.under(loud)
    assert not names.meaning("m-loud").is_engines
    assert names.meaning("taken").spec is other
    assert set(names.virtuals) == {"v"}
    with pytest.raises(ModelNotFound, match="did you mean m-loud"):
        names.meaning("m-laud")
