"""What the use of a model is said to cost.

Laws of this file:
- Money is `Decimal`: amounts are kept as they were written, and nothing is rounded here.
- A price is a statement of the configuration; nobody is billed by it yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

PER = 1_000_000
CURRENCY = "USD"


@dataclass(frozen=True, slots=True)
class Price:
    """What `per` tokens cost, in `currency`."""

    input: Decimal = Decimal(0)
    """Tokens of the request that were computed."""
    output: Decimal = Decimal(0)
    """Tokens of the answer."""
    cached_input: Decimal | None = None
    """Tokens of the request that were remembered; None is as `input`."""
    per: int = PER
    currency: str = CURRENCY
    """ISO 4217, three letters."""
