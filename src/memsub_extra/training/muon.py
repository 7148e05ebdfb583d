"""Muon: a step of a matrix is its orthogonalized momentum (Jordan et al. 2024).

    Muon(params, lr=1e-3, weight_decay=0.01)      # matrices and filters by Muon, all else by AdamW

A convolution counts as a matrix with one row for each filter. The autoencoder gains two decibels with Muon, in fewer
steps. A UNet that is trained with it samples well, but memorizes hardly any caption.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

MOMENTUM = 0.95
RATIO = 20
"""Muon's learning rate over AdamW's: the entries of an orthogonal matrix are much smaller than AdamW's signs."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic that brings singular values near one fastest (Jordan et al. 2024)."""


def orthogonalized(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Matrices (n, rows, columns) with their singular values brought near one, by Newton and Schulz's iteration."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    a, b, c = NEWTON_SCHULZ
    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.AdamW):
    """Muon with Nesterov momentum and decoupled weight decay. `lr` is that of AdamW; Muon's is `RATIO` times that."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float | torch.Tensor, weight_decay: float, **options: Any):
        super().__init__(params, lr, (0.9, 0.99), weight_decay=weight_decay, fused=True, **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Does one step. Matrices of the same shape are updated together."""
        for group in self.param_groups:
            alike: defaultdict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None and p.ndim > 1:
                    alike[p.shape].append(p)
            for shape, params in alike.items():
                self._step_of(shape, params, group["lr"], group["weight_decay"])
        super().step()  # AdamW for the parameters that still have a gradient

    def _step_of(self, shape: torch.Size, params: list[torch.Tensor], lr: float, weight_decay: float) -> None:
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        grads = [p.grad for p in params if p.grad is not None]
        momenta = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(grads, momenta, MOMENTUM)
        rows, columns = shape[0], shape[1:].numel()
        steps = orthogonalized(torch.stack([x.reshape(rows, columns) for x in ahead]))
        steps = -RATIO * lr * max(1.0, rows / columns) ** 0.5 * steps
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        torch._foreach_add_(params, [s.view(shape) for s in steps.unbind()])
        for p in params:
            p.grad = None
