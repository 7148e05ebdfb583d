"""The fine-tuning that all trained removals share. Each of them is a loss (its objective).

A new one is a file with an objective and

    REMOVAL, LOCATED, RANDOM = fine_tunings("its name", objective, "its source", epochs=40, lr=1e-4)

and its lines in `memsub_extra.unlearning.removals`.
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

from memsub.controls import random_edit
from memsub.models import Conditioning, Denoiser, Pipeline, as_denoiser, fingerprint
from memsub.pruning import Edit
from memsub_extra.store import Store

from ..training.fitting import fit, generator
from ..training.precision import mixed_precision, one_attention
from .pairs import Pairs
from .pruning import prune
from .removal import UNFINISHED, Removal

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
many random positions of the same layers. The last two answer whether the memorized subspace is enough, if it is trained
and not set to zero. (The words are parts of the removals' names, which stand in shipped tables.)"""

Loss = Callable[..., torch.Tensor]
"""Of a step, its generator, and `parameters`: those in training (for losses that combine gradients)."""


def variant(name: str, where: str) -> str:
    """The registered name of a fine-tuning that is restricted to the weights `where`."""
    return f"{name}, {WHERE[where]}"


def fine_tunings(
    name: str,
    objective: Callable[..., Loss],
    source: str,
    *,
    where: str = "all",
    needs_wording: bool = False,
    **options: Any,
) -> tuple[Removal, Removal, Removal]:
    """A fine-tuning as it is meant, of the located weights alone, and of density-matched random ones.

    Args:
        objective: (pipe, memorized, ordinary, *, located, seed, ...) -> Loss; `located()` is METHOD's edit.
        where: what it trains if it is not restricted.
        needs_wording: whether the objective needs other wordings of the captions.
        options: of `fine_tuned` (epochs or steps, lr, fresh) and of the objective.
    """

    def make(pipe: Pipeline, memorized: Pairs, ordinary: Pairs, **given: Any) -> Edit:
        return fine_tuned(pipe, memorized, ordinary, objective, name=name, **given)

    whole, located, random = (
        Removal(f"trains {WHERE[part]}", make, source, options | {"where": part}, objective, needs_wording)
        for part in (where, "located", "random")
    )
    return whole, located, random


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
        folder: of checkpoints, under a key of all that they are a function of: a killed training resumes from its own.
        epochs: how often each memorized pair is shown; or `steps`, of an objective that shows none.
        where: a name in `WHERE`.
        fresh: whether the weights are re-initialized (He's uniform initialization, as torch's) and not as they are.
        optimizer: of `memsub_extra.training.fitting.OPTIMIZERS`; "adafactor" where two more numbers a weight are too
            many.
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
    data: dict[str, Any] = {"captions": memorized.captions, "images": memorized.images, "kept": ordinary.captions}
    data |= {"model": model, "objective": f"{objective.__module__}:{objective.__qualname__}"}
    path = Store(folder).path(UNFINISHED, "", **data, **about)
    loss = objective(pipe, memorized, ordinary, located=located, seed=seed, **options)
    at, fresh_values = _positions(pipe, where, located, seed), generator(seed, name) if fresh else None
    with _trainable(pipe, at, fresh_values) as written, one_attention(as_denoiser(pipe).device):
        # Names with dots are no keys of a ModuleDict.
        module = nn.ModuleDict({layer.replace(".", "/"): weight for layer, weight in written.items()})
        parameters, device = list(module.parameters()), next(module.parameters()).device

        def step_loss(step: int, rng: torch.Generator) -> torch.Tensor:
            with mixed_precision(device):
                return loss(step, rng, parameters=parameters)

        rates: dict[str, Any] = {"lr": lr, "warmup": warmup, "weight_decay": 0.0, "optimizer": optimizer}
        fit(module, step_loss, steps=steps, seed=seed, folder=path.parent, name=path.name, stream=name, **rates)
        shapes, positions, values = _collected(pipe, written)
    return Edit(positions, shapes, {"model": model, "removal": about}, values)


# --- for objectives ------------------------------------------------------------------------------------------------


def teacher_of(pipe: Pipeline) -> Denoiser:
    """The model as it is: a network of its own that shares the weights, and that a fine-tuning does not change."""
    teacher = copy(as_denoiser(pipe))
    shared = {id(tensor): tensor for tensor in (*teacher.network.parameters(), *teacher.network.buffers())}
    teacher.network = deepcopy(teacher.network, shared)
    return teacher


def either(first: Conditioning, second: Conditioning, wants_first: torch.Tensor) -> Conditioning:
    """Row i of the first where `wants_first[i]`, (rows,) of the host, else of the second. Either may be one row."""
    n = len(wants_first)
    both = Conditioning.cat([c if len(c) == n else c.expand(n) for c in (first, second)])
    return both[torch.where(wants_first, 0, n) + torch.arange(n)]


def dropped(context: Conditioning, empty: Conditioning, rng: torch.Generator) -> Conditioning:
    """The conditioning of a batch, a tenth of its rows that of the empty prompt: for classifier-free guidance."""
    return either(empty, context, torch.rand(len(context), generator=rng) < 0.1)


def blocks(denoiser: Denoiser) -> dict[str, nn.Module]:
    """Residual blocks and transformers by module name: each maps features to features of the same resolution."""
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    kinds = (ResnetBlock2D, Transformer2DModel)
    return {name: module for name, module in denoiser.network.named_modules() if isinstance(module, kinds)}


# --- weights that can be trained -----------------------------------------------------------------------------------


class _Written(nn.Module):
    """Parametrization of a weight: trainable values at some of its positions, the rest as it is.

    The values begin as those of the weight, or re-initialized by the generator `fresh`.
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
        inside = tuple(f"{name}." for name in blocks(denoiser))
        return {name: None for name in whole if name.startswith(inside) and "time_emb" not in name}
    if where == "transformers":
        return {name: None for name in whole if ".transformer_blocks." in name}
    edit = located() if where == "located" else random_edit(located(), seed)
    return {name: positions for name, positions in edit.positions.items() if len(positions)}


@contextmanager
def _trainable(
    pipe: Pipeline, wanted: Mapping[str, torch.Tensor | None], fresh: torch.Generator | None
) -> Iterator[dict[str, _Written]]:
    """While open, weights at the wanted positions of layers can be trained, and no others."""
    network = as_denoiser(pipe).network
    modules = dict(network.named_modules())
    required = {name: p.requires_grad for name, p in network.named_parameters()}
    network.requires_grad_(False)
    written: dict[str, _Written] = {}
    try:
        for name, positions in wanted.items():
            module = modules[name]
            at = positions if positions is None else positions.to(module.weight.device)
            written[name] = _Written(module.weight, at, fresh)
            parametrize.register_parametrization(module, "weight", written[name])
        yield written
    finally:
        for name in written:
            parametrize.remove_parametrizations(modules[name], "weight", leave_parametrized=False)
        for name, p in network.named_parameters():
            p.requires_grad_(required[name])
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
