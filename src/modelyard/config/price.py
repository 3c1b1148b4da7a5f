"""A model's `price`: what its tokens are said to cost.

Laws of this file:
- Amounts are read without loss: what is written as 0.1 is a tenth, not its nearest binary number.
- What a price leaves out costs nothing; a model without a price has none, which is something else.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from modelyard.config.kinds import Kind
from modelyard.config.sections import Section, written_keys
from modelyard.config.tree import EnvText
from modelyard.config.wording import describe_kind, shorten
from modelyard.core.pricing import Price

_PRICE: Final = Price()
_MOST: Final = Decimal(10) ** 9
_FINEST: Final = -12
"""Digits behind the point that an amount may have."""
_COUNT: Final = re.compile(r"(?P<number>[1-9][0-9]{0,8})(?P<unit>[kM]?)")
_UNITS: Final = {"": 1, "k": 1000, "M": 1_000_000}


def _read_amount(value: object) -> Decimal:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number and not isinstance(value, EnvText):
        raise ValueError(f"must be an amount like 0.25, not {describe_kind(value)}")
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"must be an amount like 0.25, not {shorten(str(value))}") from None
    if not amount.is_finite() or not 0 <= amount <= _MOST:
        raise ValueError(f"{shorten(str(value))} is not between 0 and {_MOST:f}")
    exponent = amount.as_tuple().exponent
    if isinstance(exponent, int) and exponent < _FINEST:
        raise ValueError(f"has more than {-_FINEST} digits behind the point")
    return amount


def _write_amount(amount: Decimal) -> int | float:
    return int(amount) if amount == amount.to_integral_value() else float(amount)


def _read_per(value: object) -> int:
    found = _COUNT.fullmatch(str(value)) if not isinstance(value, bool | float) else None
    if found is None:
        raise ValueError("must be a number of tokens, like 1M or 1k")
    return int(found["number"]) * _UNITS[found["unit"]]


def _write_per(per: int) -> str | int:
    for unit in ("M", "k"):
        if per % _UNITS[unit] == 0:
            return f"{per // _UNITS[unit]}{unit}"
    return per


def _read_currency(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Z]{3}", value):
        raise ValueError("must be three capital letters, like USD, EUR or CNY")
    return str(value)


_AMOUNT: Final = Kind(
    _read_amount,
    {"type": ["number", "string"], "minimum": 0, "pattern": r"\$\{env:"},
    _write_amount,
)


class PriceSection(Section):
    """What tokens cost."""

    input: Annotated[Decimal, _AMOUNT] = Field(
        _PRICE.input, description="Price of the tokens of a request that are computed."
    )
    output: Annotated[Decimal, _AMOUNT] = Field(
        _PRICE.output, description="Price of the tokens of an answer."
    )
    cached_input: Annotated[Decimal | None, _AMOUNT.or_none()] = Field(
        _PRICE.cached_input,
        description="Price of the tokens of a request that the engine remembered; null is as "
        "`input`.",
    )
    per: Annotated[
        int, Kind(_read_per, {"type": ["string", "integer"], "pattern": _COUNT.pattern}, _write_per)
    ] = Field(_PRICE.per, description="Number of tokens that the prices are for.")
    currency: Annotated[
        str, Kind(_read_currency, {"type": "string", "pattern": r"^[A-Z]{3}$|\$\{env:"})
    ] = Field(_PRICE.currency, description="Currency of the prices, by its three letters.")

    def value(self) -> Price:
        return Price(self.input, self.output, self.cached_input, self.per, self.currency)


def _read_price(value: object) -> object:
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"must hold keys and values (key: value), not {describe_kind(value)}")
    return value


OptionalPrice = Annotated[PriceSection | None, BeforeValidator(_read_price)]


def written_price(price: Price | None) -> dict[str, Any] | None:
    """`price` in the words of the file."""
    return None if price is None else written_keys(PriceSection, price)
