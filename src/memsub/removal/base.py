"""What a removal is, and the fine-tuning that all trained ones share.

A removal makes an `Edit` of a pipeline, which is as before afterwards. It is told the pairs to remove and ordinary
pairs to keep; on what it was not told it is judged (`memsub.audit`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..audit import Pairs
from ..denoiser import Pipeline, as_denoiser, fingerprint
from ..fitting import fit
from ..pruning import Edit

Make = Callable[..., Edit]
"""(pipe, memorized: Pairs, ordinary: Pairs, *, folder, seed, progress, ...) -> Edit."""


@dataclass(frozen=True)
class Removal:
    """A way to take memorized pictures out of a model, for the registry.

    Attributes:
        changes: what it changes, in words.
        make: what makes the edit; unfinished work lies in its `folder`, and a second call goes on from there.
        source: where it was published.
        options: of `make`.
    """

    changes: str
    make: Make
    source: str
    options: dict[str, Any]

    def edit(self, pipe: Pipeline, memorized: Pairs, ordinary: Pairs, **options: Any) -> Edit:
        """Makes the edit; `options` go before the removal's own."""
        return self.make(pipe, memorized, ordinary, **self.options | options)


class _Written(nn.Module):
    """Parametrization of a weight: trainable values at some of its positions, the rest as it is."""

    def __init__(self, weight: torch.Tensor, positions: torch.Tensor | None):
        super().__init__()
        self.positions = positions
        flat = weight.detach().reshape(-1)
        self.values = nn.Parameter((flat if positions is None else flat[positions]).float().clone())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        values = self.values.to(weight.dtype)
        if self.positions is None:
            return values.view(weight.shape)
        return weight.reshape(-1).index_copy(0, self.positions, values).view(weight.shape)


@contextmanager
def _trainable(pipe: Pipeline, only: Edit | None) -> Iterator[dict[str, _Written]]:
    """While open, weights at the positions of an edit (None: of all linear maps and convolutions) can be trained."""
    network = as_denoiser(pipe).network
    modules = {n: m for n, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    chosen = {n: modules[n] for n in (only.positions if only else modules) if only is None or len(only.positions[n])}
    asked = {name: p.requires_grad for name, p in network.named_parameters()}
    network.requires_grad_(False)
    written: dict[str, _Written] = {}
    try:
        for name, module in chosen.items():
            positions = only.positions[name].to(module.weight.device) if only else None
            written[name] = _Written(module.weight, positions)
            parametrize.register_parametrization(module, "weight", written[name])
        yield written
    finally:
        for name in written:
            parametrize.remove_parametrizations(chosen[name], "weight", leave_parametrized=False)
        for name, p in network.named_parameters():
            p.requires_grad_(asked[name])
            p.grad = None


def fine_tuned(
    pipe: Pipeline,
    loss: Callable[[int, torch.Generator, Sequence[torch.Tensor]], torch.Tensor],
    *,
    steps: int,
    lr: float,
    only: Edit | None,
    folder: str | Path,
    name: str,
    seed: int,
    about: dict[str, Any],
) -> Edit:
    """Trains weights of the network by a loss, and returns the edit that sets them; the network is as before.

    Args:
        loss: of a step, its generator, and the parameters in training (for losses that combine gradients).
        only: positions to train; None for all weights of linear maps and convolutions.
        folder: of the checkpoint `<name>.safetensors`: a training that was killed goes on from it.
        about: what it is a function of, for the edit's provenance.

    Raises:
        ValueError: a checkpoint of another length.
        FloatingPointError: the loss is not finite.
    """
    model = fingerprint(pipe)
    with _trainable(pipe, only) as written:
        # Names with dots are no keys of a ModuleDict.
        held = nn.ModuleDict({layer.replace(".", "/"): w for layer, w in written.items()})
        parameters = list(held.parameters())

        def cached(step: int, rng: torch.Generator) -> torch.Tensor:
            with parametrize.cached():  # a step calls the network several times with the same weights
                return loss(step, rng, parameters)

        fit(held, cached, steps=steps, lr=lr, seed=seed, folder=Path(folder), name=name, warmup=1, weight_decay=0.0)
        values = {layer: w.values.detach().half().cpu() for layer, w in written.items()}
        positions = {
            layer: (torch.arange(w.values.numel()) if w.positions is None else w.positions.cpu())
            for layer, w in written.items()
        }
    modules = dict(as_denoiser(pipe).network.named_modules())
    shapes = {layer: tuple(modules[layer].weight.shape) for layer in written}
    return Edit(positions, shapes, {"model": model, "removal": about}, values)


class Batches:
    """Latents and embeddings of pairs, computed once, and batches of them."""

    def __init__(self, pipe: Pipeline, pairs: Pairs):
        denoiser = as_denoiser(pipe)
        parts = range(0, len(pairs), 32)
        self.latents = torch.cat([denoiser.encode(pairs.images[i : i + 32]) for i in parts])
        self.context = torch.cat([denoiser.embed(pairs.captions[i : i + 32]) for i in parts])

    def __len__(self) -> int:
        return len(self.latents)

    def rows(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """Indices of a batch, drawn with replacement."""
        return torch.randint(len(self), (n,), generator=rng)
