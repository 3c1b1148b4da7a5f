"""A model's price: read without loss, bounded, shown."""

from __future__ import annotations

from decimal import Decimal

import pytest
from tests.config.conftest import Loader, Problems

from modelyard.config.publish import describe
from modelyard.core.pricing import Price


def priced(text: str) -> str:
    return f"models: {{m: {{source: /m.gguf, price: {text}}}}}"


def test_amounts_are_kept_as_they_were_written(load_text: Loader) -> None:
    text = "{input: 0.1, output: 0.3, cached_input: 0.05, per: 1k, currency: EUR}"
    config = load_text(priced(text))

    price = config.models[0].price
    assert price == Price(Decimal("0.1"), Decimal("0.3"), Decimal("0.05"), 1000, "EUR")
    assert price.input + price.input + price.input == price.output
    written = {"input": 0.1, "output": 0.3, "cached_input": 0.05, "per": "1k", "currency": "EUR"}
    assert describe(config)["models"]["m"]["price"] == written


def test_no_price_is_not_a_price_of_nothing(load_text: Loader) -> None:
    assert load_text("models: {m: {source: /m.gguf}}").models[0].price is None
    assert load_text(priced("null")).models[0].price is None
    assert load_text(priced("{}")).models[0].price == Price()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{input: -1}", "is not between 0 and 1000000000"),
        ("{input: 1e300}", "is not between 0"),
        ("{input: 0.0000000000001}", "more than 12 digits"),
        ("{input: dear}", "must be an amount like 0.25, not 'dear'"),
        ("{input: true}", "must be an amount like 0.25"),
        ("{per: 0}", "must be a number of tokens, like 1M or 1k"),
        ("{per: 1.5}", "must be a number of tokens"),
        ("{per: 1G}", "must be a number of tokens"),
        ("{currency: usd}", "must be three capital letters"),
        ("{outptu: 1}", "outptu"),
        ("[1]", "must hold keys and values"),
        ("5", "must hold keys and values"),
    ],
)
def test_a_price_that_makes_no_sense_is_refused(
    text: str, words: str, problems_of: Problems
) -> None:
    (problem,) = problems_of(priced(text))

    assert ": models.m.price" in problem
    assert words in problem


def test_an_amount_may_come_from_the_environment(load_text: Loader) -> None:
    told = load_text(priced('{input: "${env:IN}"}'), env={"IN": "0.25"})

    assert told.models[0].price == Price(Decimal("0.25"))
