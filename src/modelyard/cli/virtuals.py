"""Variants and virtual models at the command line: what a name that is no model's id stands for.

Laws of this file:
- What a name resolves to is always shown beside it.
- A virtual model is looked for only where no model has the name; the answer to an unknown name is
  the server's, with the names near it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelyard.cli.words import NOTHING, clean, listed

if TYPE_CHECKING:
    from modelyard.client import Client
    from modelyard.core.views import ModelView, VirtualView


def found(client: Client, name: str) -> ModelView | VirtualView:
    """The model or the virtual model of this name. Raises ApiError with `model_not_found`."""
    from modelyard.client import ApiError

    try:
        return client.model(name)
    except ApiError as error:
        if error.code != "model_not_found":
            raise
        for virtual in client.modes().virtuals:
            if virtual.id == name:
                return virtual
        raise


def rows(views: list[ModelView], virtuals: list[VirtualView]) -> list[tuple[str, ...]]:
    """Lines for `list`: each model's variants as if they were models, then the virtual models."""
    variants: list[tuple[str, ...]] = [
        (
            name,
            listed(view.tasks),
            "variant",
            NOTHING,
            str(view.context_length or NOTHING),
            view.state,
            f"-> {view.id}",
        )
        for view in views
        for name in view.variants
    ]
    return variants + [
        (
            each.id,
            listed(each.tasks),
            "virtual",
            NOTHING,
            NOTHING,
            each.state,
            f"-> {listed(each.targets)} ({each.choose})",
        )
        for each in virtuals
    ]


def notes(virtuals: list[VirtualView]) -> list[str]:
    """What is wrong with virtual models, one sentence each."""
    return [
        f"{clean(each.id)}: there is no model {clean(name)}"
        for each in virtuals
        for name in each.unknown
    ]


def pairs(view: VirtualView) -> list[tuple[str, str]]:
    """What `show` prints of a virtual model."""
    shown: list[tuple[str, str]] = [
        ("Name", view.id),
        ("Stands for", ", ".join(view.targets)),
        ("Models", ", ".join(view.models)),
        ("Not there", ", ".join(view.unknown)),
        ("Asks first", _CHOICES.get(view.choose, view.choose)),
        ("Falls back", "yes" if view.fallback else "no"),
        ("State", view.state),
        ("Tasks", listed(view.tasks)),
    ]
    return [(name, text) for name, text in shown if text]


_CHOICES = {
    "ordered": "the first (ordered)",
    "weighted": "each by its weight (weighted)",
    "warm": "the first that is ready (warm)",
    "spillover": "the first that can answer at once (spillover)",
}


def changes(shape: Mapping[str, Any]) -> str:
    """What a shape changes, in one line: `set {"temperature": 0.6}, max_output_tokens 256`."""
    return ", ".join(f"{name} {json.dumps(part)}" for name, part in shape.items()) or "nothing"
