"""Requests come out as the shape of their model says, and otherwise as they were."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.core.errors import InvalidRequest
from modelyard.core.shaping import Shape
from modelyard.core.specs import Task
from modelyard.http.shaping import shaped

HELLO = [{"role": "user", "content": "hello"}]


def done(body: dict[str, Any], shape: Shape, task: Task = Task.CHAT) -> Any:
    return json.loads(shaped(json.dumps(body).encode(), shape, task, None))


@pytest.mark.parametrize(
    ("shape", "before", "after"),
    [
        (Shape(strip=frozenset({"user"})), {"user": "x", "n": 1}, {"n": 1}),
        (Shape(default={"top_k": 5}), {}, {"top_k": 5}),
        (Shape(default={"top_k": 5}), {"top_k": None}, {"top_k": 5}),
        (Shape(default={"top_k": 5}), {"top_k": 9}, {"top_k": 9}),
        (Shape(set={"top_k": 5}), {"top_k": 9}, {"top_k": 5}),
        (
            Shape(set={"chat_template_kwargs": {"think": False}}),
            {"chat_template_kwargs": {"think": True, "x": 1}},
            {"chat_template_kwargs": {"think": False, "x": 1}},
        ),
        (Shape(clamp={"temperature": (0, 1)}), {"temperature": 1.9}, {"temperature": 1}),
        (Shape(clamp={"temperature": (0.5, None)}), {"temperature": 0}, {"temperature": 0.5}),
        (Shape(clamp={"temperature": (0, 1)}), {"temperature": "hot"}, {"temperature": "hot"}),
        (Shape(clamp={"stop": (0, 1)}), {"stop": True}, {"stop": True}),
        (Shape(clamp={"temperature": (0, 1)}), {}, {}),
        (Shape(max_output_tokens=9), {}, {"max_tokens": 9}),
        (Shape(max_output_tokens=9), {"max_tokens": 99}, {"max_tokens": 9}),
        (Shape(max_output_tokens=9), {"max_tokens": 3}, {"max_tokens": 3}),
        (Shape(max_output_tokens=9), {"max_tokens": -1}, {"max_tokens": 9}),
        (
            Shape(max_output_tokens=9),
            {"max_completion_tokens": 99},
            {"max_completion_tokens": 9},
        ),
    ],
)
def test_parameters_are_changed_in_order(
    shape: Shape, before: dict[str, Any], after: dict[str, Any]
) -> None:
    assert done({"messages": HELLO, **before}, shape) == {"messages": HELLO, **after}


@pytest.mark.parametrize(
    ("messages", "first"),
    [
        (HELLO, {"role": "system", "content": "Be kind."}),
        ([], {"role": "system", "content": "Be kind."}),
        (
            [{"role": "system", "content": "And brief."}],
            {"role": "system", "content": "Be kind.\n\nAnd brief."},
        ),
        (
            [{"role": "developer", "content": [{"type": "text", "text": "Hm."}]}],
            {
                "role": "developer",
                "content": [{"type": "text", "text": "Be kind."}, {"type": "text", "text": "Hm."}],
            },
        ),
    ],
)
def test_conversations_begin_with_the_models_system_prompt(
    messages: list[Any], first: dict[str, Any]
) -> None:
    assert done({"messages": messages}, Shape(system="Be kind."))["messages"][0] == first


def test_other_tasks_have_neither_cap_nor_system_prompt() -> None:
    shape = Shape(system="Be kind.", max_output_tokens=3)

    assert done({"input": "x"}, shape, Task.EMBEDDING) == {"input": "x"}


def test_the_models_name_is_replaced_where_its_engine_does_not_know_it() -> None:
    assert json.loads(shaped(b'{"model": "v", "x": 1}', None, Task.CHAT, "m")) == {
        "model": "m",
        "x": 1,
    }


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not a JSON object"):
        shaped(b"[1]", Shape(strip=frozenset({"x"})), Task.CHAT, None)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.text(min_size=1, max_size=4), values, max_size=6))
def test_whatever_a_request_holds_only_what_the_shape_names_is_changed(
    body: dict[str, Any],
) -> None:
    shape = Shape(
        strip=frozenset({"a"}),
        default={"b": 1},
        set={"c": {"d": 2}},
        clamp={"e": (0, 1)},
        max_output_tokens=5,
        system="s",
    )
    changed = {"a", "b", "c", "e", "messages", "max_tokens", "max_completion_tokens", "n_predict"}
    after = done(body, shape)

    assert {k: v for k, v in after.items() if k not in changed} == {
        k: v for k, v in body.items() if k not in changed
    }
    assert "a" not in after
