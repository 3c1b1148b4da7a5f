"""How a network is stepped: Muon for the matrices of its blocks, AdamW for everything else.

Laws of this file:
* The learning rate rises over the first steps, stays, and falls to zero over the last part.
* Gradients are clipped to norm 1 before every step.
"""

from __future__ import annotations

import torch
from torch import nn


class Stepper:
    """Both optimisers of one network under one schedule."""

    def __init__(
        self, network: nn.Module, steps: int, *, muon_rate: float = 0.02, adam_rate: float = 3e-3
    ) -> None:
        self.network = network
        self.steps = steps
        self.warm_up = max(1, min(50, steps // 10))
        self.cool_down = max(1, int(steps * 0.5))
        self.done = 0
        trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        matrices = [p for n, p in trained if n.startswith("blk.") and p.ndim == 2]
        others = [p for n, p in trained if not (n.startswith("blk.") and p.ndim == 2)]
        self.muon = torch.optim.Muon(
            matrices, lr=muon_rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"
        )
        self.adam = torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.rates = [(self.muon, muon_rate), (self.adam, adam_rate)]

    def _share(self) -> float:
        if self.done < self.warm_up:
            return (self.done + 1) / self.warm_up
        return min(1.0, (self.steps - self.done) / self.cool_down)

    def step(self, loss: torch.Tensor) -> None:
        """One step down the gradient of the loss."""
        for optimiser, rate in self.rates:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = rate * self._share()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser, _ in self.rates:
            optimiser.step()
        self.done += 1
