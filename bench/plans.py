"""What models of common shapes do on common cards, by the planner: the table of docs/plan.md.

    python -m bench.plans

The files have true headers and holes for weights (tests/planner/large_models.py).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.planner.large_models import LLAMA_8B, LLAMA_70B, Shape, folder, gguf_file

from modelyard.config.plans import Ask, PlanView
from modelyard.planner.locate import models_at
from modelyard.planner.machine import machine_named
from modelyard.planner.plan import make_plan, view_of

SHAPES = {
    "8B (Llama 3.1)": LLAMA_8B,
    "14B (Qwen2.5)": Shape(48, 5120, 13824, 40, 8, words=152064, context=131072),
    "32B (Qwen2.5)": Shape(64, 5120, 27648, 40, 8, words=152064, context=131072),
    "70B (Llama 3.1)": LLAMA_70B,
}
"""From each model's config.json on the Hub."""
MACHINES = ("RTX 4060", "RTX 4090", "2x RTX 4090", "A100 80GB", "2x A100 80GB")
RAM_MIB = 64 * 1024
RESERVE_MIB = 512


def main() -> int:
    print("| model | " + " | ".join(MACHINES) + " |")
    print("|---" * (len(MACHINES) + 1) + "|")
    with tempfile.TemporaryDirectory() as place:
        for name, shape in SHAPES.items():
            paths = {
                "16 bits": folder(Path(place) / name / "16", shape),
                "Q4_K": gguf_file(Path(place) / name / "4" / "m-Q4_K_M.gguf", shape),
            }
            for bits, path in paths.items():
                cells = [_cell(_planned(path, machine)) for machine in MACHINES]
                print(f"| {name}, {bits} | " + " | ".join(cells) + " |")
    return 0


def _planned(path: Path, text: str) -> PlanView:
    found, _ = models_at(path)
    return view_of(make_plan(found, machine_named(text, RAM_MIB, RESERVE_MIB), Ask()))


def _cell(view: PlanView) -> str:
    if not view.fits:
        return "no"
    speed = f"{view.speed.first_tokens_s or 0:.3g} tokens/s"
    if len(view.shares) == 1 or not any(share.needs_mib for share in view.shares[:-1]):
        return f"host, {speed}"
    away = {"CPU offload", "layers", "experts"} & {row.name for row in view.settings}
    where = "with the host" if away else f"{view.context // 1024} k"
    return f"{where}, {speed}"


if __name__ == "__main__":
    sys.exit(main())
