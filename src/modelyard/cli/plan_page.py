"""How a plan looks to a person.

Laws of this file:
- The verdict comes first and in one line; what is needed to act on it comes last, to be copied.
- Text from files is cleaned of control characters, as everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from modelyard.cli.output import WIDE, is_terminal
from modelyard.cli.words import bar, clean, memory, short_path

if TYPE_CHECKING:
    from rich.console import Console

    from modelyard.config.plans import PlanView, ShareView, SpeedView

_GOOD, _BAD, _HEAD, _QUIET = "bold green", "bold red", "bold", "dim"
_NARROWEST = 80
_BAR = 16
_PARTS = (("weights", "offloaded weights"), ("kv cache",))


def print_plan(view: PlanView, *, formulas: bool) -> None:
    """Print all of a plan."""
    from rich.console import Console

    width = None if is_terminal(sys.stdout) else WIDE
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    if console.width < _NARROWEST:
        console = Console(width=_NARROWEST, highlight=False, markup=False, emoji=False)
    page = _Page(console)
    page.title(view)
    page.devices(view.shares)
    if formulas:
        page.formulas(view.shares)
    page.head("Settings")
    page.table(
        ("SETTING", "VALUE", "WHY"), [(row.name, row.value, row.reason) for row in view.settings]
    )
    page.speed(view.speed, view.sequences)
    page.alternatives(view)
    if view.fallbacks:
        page.head("If a start runs out of memory all the same, in this order")
        page.line("  " + " > ".join(step.name for step in view.fallbacks), _QUIET)
    for note in view.notes:
        page.line(f"Note: {note}")
    page.head("Command")
    for command in view.commands:
        page.raw(command)
    page.head("modelyard.yaml")
    page.raw(view.config.rstrip())


class _Page:
    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, text: str = "", style: str = "") -> None:
        from rich.text import Text

        self._console.print(Text(clean(text), style))

    def raw(self, text: str) -> None:
        """What is to be copied: never folded."""
        print(clean(text))

    def head(self, text: str) -> None:
        self.line()
        self.line(text, _HEAD)

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()
    ) -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=None,
            pad_edge=False,
            header_style=_QUIET,
            padding=(0, 2, 0, 0),
            show_header=any(columns),
        )
        table.add_column("")
        for column in columns:
            is_number = column in right
            table.add_column(
                column, justify="right" if is_number else "left", no_wrap=column != columns[-1]
            )
        for row in rows:
            styles = {"yes": _GOOD, "no": _BAD}
            table.add_row("", *(Text(clean(cell), styles.get(cell, "")) for cell in row))
        with self._console.capture() as capture:
            self._console.print(table)
        for line in capture.get().splitlines():
            print(line.rstrip())

    # ------------------------------------------------------------------------------------- parts

    def title(self, view: PlanView) -> None:
        facts = [view.architecture, view.quantization, memory(view.weights_mib)]
        if view.trained_context:
            facts.append(f"made for {view.trained_context} tokens")
        self.line(view.model, _HEAD)
        self.line(", ".join(facts), _QUIET)
        self.line(short_path(view.source), _QUIET)
        self.line(f"on {view.hardware}, by {view.engine}: {view.engine_reason}", _QUIET)
        self.line()
        self.line(view.verdict[0].upper() + view.verdict[1:], _GOOD if view.fits else _BAD)

    def devices(self, shares: Sequence[ShareView]) -> None:
        self.head("Memory (an estimate, until a run was measured)")
        rows = []
        for share in shares:
            parts = [
                sum(term.mib for term in share.terms if term.name in names) for names in _PARTS
            ]
            rest = share.needs_mib - sum(parts)
            fill = bar(share.needs_mib, share.available_mib, _BAR) if share.available_mib else ""
            rows.append(
                (
                    share.device if share.name == share.device else f"{share.device} {share.name}",
                    memory(share.needs_mib),
                    memory(share.available_mib),
                    fill,
                    *(memory(round(mib)) for mib in parts),
                    memory(max(0, round(rest))),
                )
            )
        columns = ("DEVICE", "NEEDS", "THERE IS", "", "WEIGHTS", "KV CACHE", "REST")
        self.table(columns, rows, right=("NEEDS", "THERE IS", "WEIGHTS", "KV CACHE", "REST"))

    def formulas(self, shares: Sequence[ShareView]) -> None:
        self.head("How it was reckoned")
        rows = [
            (share.device, term.name, f"{term.mib:.1f}", f"{term.formula} ({term.source})")
            for share in shares
            for term in share.terms
        ]
        self.table(("DEVICE", "PART", "MIB", "FORMULA (SOURCE)"), rows, right=("MIB",))

    def speed(self, speed: SpeedView, sequences: int) -> None:
        self.head("Speed (at best, by bandwidth and arithmetic; engines reach half to 80 %)")
        rows = [("ready after", f"{speed.load_s:.0f} s")]
        if speed.first_tokens_s is not None and speed.decode_tokens_s is not None:
            full = f"{_rate(speed.decode_tokens_s)} with a full context"
            rows.append(("writes", f"{_rate(speed.first_tokens_s)} tokens/s, {full}"))
        if speed.together_tokens_s is not None and sequences > 1:
            full = f"{_rate(speed.together_tokens_s)} tokens/s with full contexts"
            rows.append((f"{sequences} together", full))
        if speed.prefill_tokens_s is not None:
            rows.append(("reads", f"{_rate(speed.prefill_tokens_s)} tokens/s"))
        self.table(("", ""), rows)
        for basis in speed.basis:
            self.line(f"  {basis}", _QUIET)

    def alternatives(self, view: PlanView) -> None:
        if not view.alternatives:
            return
        self.head("What else could be done")
        rows = [
            (
                other.name,
                "yes" if other.fits else "no",
                memory(other.gpu_mib) if other.gpu_mib else "-",
                memory(other.host_mib),
                str(other.longest_context) if other.longest_context else "-",
                other.cost,
            )
            for other in view.alternatives
        ]
        columns = ("CHANGE", "FITS", "CARDS", "HOST", "LONGEST CONTEXT", "COST")
        self.table(columns, rows, right=("CARDS", "HOST", "LONGEST CONTEXT"))


def _rate(per_s: float) -> str:
    return f"{per_s:.1f}" if per_s < 10 else f"{per_s:,.0f}"
