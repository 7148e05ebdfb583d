"""The fine-tuning that all trained removals share: each of them is a loss (its objective).

A new one is a file with an objective and `REMOVALS = fine_tunings("its name", objective, "its source", ...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..audit import Pairs
from ..controls import random_edit
from ..denoiser import Denoiser, Pipeline, as_denoiser, fingerprint
from ..fitting import fit, generator
from ..precision import mixed_precision
from ..pruning import Edit
from ..store import Store
from .base import Removal
from .pruning import prune

BATCH = 16
"""Memorized pairs a step: an epoch shows each of them once."""
WHERE = {
    "all": "all weights",
    "blocks": "all blocks",
    "transformers": "the transformer blocks",
    "located": "the located weights",
    "random": "as many random weights",
}
"""What a fine-tuning may train: all linear maps and convolutions of the network; those of its residual blocks and
transformers, but for those that read the time; those of its transformer blocks; the positions of METHOD's edit; or as
many others of the same layers. Is the memorized subspace enough, if it is trained and not zeroed?"""

Loss = Callable[..., torch.Tensor]
"""Of a step, its generator, and `parameters`: those in training (for losses that combine gradients)."""


def fine_tunings(
    name: str, objective: Callable[..., Loss], source: str, *, where: str = "all", **options: Any
) -> dict[str, Removal]:
    """The registry's entries of a fine-tuning: as it is meant, of the located weights, and of as many random ones.

    Args:
        objective: (pipe, memorized, ordinary, *, located, seed, ...) -> Loss, `located()` being METHOD's edit.
        where: what it trains if it is not restricted.
        options: of `fine_tuned` (epochs or steps, lr, fresh) and of the objective.
    """

    def make(pipe: Pipeline, memorized: Pairs, ordinary: Pairs, **given: Any) -> Edit:
        return fine_tuned(pipe, memorized, ordinary, objective, name=name, **given)

    return {
        name if which == where else f"{name}, {WHERE[which]}": Removal(
            f"trains {WHERE[which]}", make, source, options | {"where": which}, objective
        )
        for which in (where, "located", "random")
    }


def fine_tuned(
    pipe: Pipeline,
    memorized: Pairs,
    ordinary: Pairs,
    objective: Callable[..., Loss],
    *,
    name: str,
    folder: str | Path,
    lr: float,
    epochs: int = 0,
    steps: int = 0,
    where: str = "all",
    fresh: bool = False,
    warmup: int = 1,
    optimizer: str = "adamw",
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Edit:
    """Trains weights of the network by a loss, and returns the edit that sets them; the network is as before.

    Args:
        name: of the method, for the edit's provenance.
        folder: of checkpoints, under a key of all that they are a function of: a killed training goes on from its own.
        epochs: how often each memorized pair is shown; or `steps`, of an objective that shows none.
        where: a name in `WHERE`.
        optimizer: of `memsub.fitting.OPTIMIZERS`; "adafactor" where two more numbers a weight are too many.
        fresh: whether the weights begin at random (He's uniform initialization, as torch's) and not as they are.
        options: of the objective.

    Raises:
        ValueError: an unknown `where`.
        FloatingPointError: the loss is not finite.
    """
    if where not in WHERE:
        raise ValueError(f"unknown weights {where!r} to train; expected one of {', '.join(WHERE)}.")
    located = cache(lambda: prune(pipe, memorized, ordinary, seed=seed, progress=progress))
    steps = steps or epochs * -(-len(memorized) // BATCH)
    about = {"method": name, "where": where, "steps": steps, "lr": lr, "fresh": fresh, "seed": seed, **options}
    about |= {} if optimizer == "adamw" else {"optimizer": optimizer}
    model = fingerprint(pipe)
    told = {"captions": memorized.captions, "images": memorized.images, "kept": ordinary.captions, "model": model}
    path = Store(folder).path("unfinished", "", objective, **told, **about)
    loss = objective(pipe, memorized, ordinary, located=located, seed=seed, **options)
    with _trainable(pipe, _positions(pipe, where, located, seed), generator(seed, name) if fresh else None) as written:
        # Names with dots are no keys of a ModuleDict.
        held = nn.ModuleDict({layer.replace(".", "/"): w for layer, w in written.items()})
        parameters, device = list(held.parameters()), next(held.parameters()).device

        def of(step: int, rng: torch.Generator) -> torch.Tensor:
            with mixed_precision(device):
                return loss(step, rng, parameters=parameters)

        where_to: dict[str, Any] = {"folder": path.parent, "name": path.name, "stream": name}
        fit(held, of, steps=steps, lr=lr, seed=seed, warmup=warmup, weight_decay=0.0, optimizer=optimizer, **where_to)
        shapes, positions, values = _collected(pipe, written)
    return Edit(positions, shapes, {"model": model, "removal": about}, values)


def as_it_is(pipe: Pipeline) -> Denoiser:
    """The denoiser with a network of its own that shares the weights: a teacher, whom a fine-tuning does not change."""
    teacher = copy(as_denoiser(pipe))
    shared = {id(tensor): tensor for tensor in (*teacher.network.parameters(), *teacher.network.buffers())}
    teacher.network = deepcopy(teacher.network, shared)
    return teacher


def dropped(context: torch.Tensor, none: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Embeddings of a batch, a tenth of them that of the empty prompt: for guidance."""
    gone = (torch.rand(len(context), generator=rng) < 0.1)[:, None, None].to(none.device)
    return torch.where(gone, none, context)


class _Written(nn.Module):
    """Parametrization of a weight: trainable values at some of its positions, the rest as it is.

    The values begin as those of the weight, or as `fresh` draws them.
    """

    def __init__(self, weight: torch.Tensor, positions: torch.Tensor | None, fresh: torch.Generator | None):
        super().__init__()
        self.positions = positions
        begin = weight.detach()
        if fresh:
            begin = torch.empty(weight.shape, device=fresh.device)
            nn.init.kaiming_uniform_(begin, a=5**0.5, generator=fresh)
        begin = begin.to(weight.device)
        begin = begin.flatten(1) if positions is None else begin.reshape(-1)[positions]
        self.values = nn.Parameter(begin.float().clone())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        values = self.values.to(weight.dtype)
        if self.positions is None:
            return values.view(weight.shape)
        return weight.reshape(-1).index_copy(0, self.positions, values).view(weight.shape)


def _positions(pipe: Pipeline, where: str, located: Callable[[], Edit], seed: int) -> dict[str, torch.Tensor | None]:
    """By layer, what may be trained; None is all of it."""
    denoiser = as_denoiser(pipe)
    whole: dict[str, torch.Tensor | None] = {
        name: None for name, m in denoiser.network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))
    }
    if where == "all":
        return whole
    if where == "blocks":
        inside = tuple(f"{name}." for name in denoiser.blocks())
        return {name: None for name in whole if name.startswith(inside) and "time_emb" not in name}
    if where == "transformers":
        return {name: None for name in whole if ".transformer_blocks." in name}
    edit = located() if where == "located" else random_edit(located(), seed)
    return {name: positions for name, positions in edit.positions.items() if len(positions)}


@contextmanager
def _trainable(
    pipe: Pipeline, wanted: Mapping[str, torch.Tensor | None], fresh: torch.Generator | None
) -> Iterator[dict[str, _Written]]:
    """While open, weights at some positions of some layers can be trained."""
    network = as_denoiser(pipe).network
    modules = dict(network.named_modules())
    asked = {name: p.requires_grad for name, p in network.named_parameters()}
    network.requires_grad_(False)
    written: dict[str, _Written] = {}
    try:
        for name, positions in wanted.items():
            module = modules[name]
            here = positions if positions is None else positions.to(module.weight.device)
            written[name] = _Written(module.weight, here, fresh)
            parametrize.register_parametrization(module, "weight", written[name])
        yield written
    finally:
        for name in written:
            parametrize.remove_parametrizations(modules[name], "weight", leave_parametrized=False)
        for name, p in network.named_parameters():
            p.requires_grad_(asked[name])
            p.grad = None


def _collected(pipe: Pipeline, written: Mapping[str, _Written]) -> tuple[dict, dict, dict]:
    """Shapes, positions and values of an edit."""
    modules = dict(as_denoiser(pipe).network.named_modules())
    shapes = {layer: tuple(modules[layer].weight.shape) for layer in written}
    values = {layer: w.values.detach().reshape(-1).half().cpu() for layer, w in written.items()}
    positions = {
        layer: (torch.arange(w.values.numel(), dtype=torch.int32) if w.positions is None else w.positions.cpu())
        for layer, w in written.items()
    }
    return shapes, positions, values
