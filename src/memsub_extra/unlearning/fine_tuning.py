"""The fine-tuning that all trained removals share. Each of them is a loss (its objective).

To add a removal, write a file with its objective and the line

    REMOVAL, LOCATED, RANDOM = fine_tunings("its name", objective, "its source", epochs=40, lr=1e-4)

and list its name in `memsub_extra.unlearning.removals`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import copy, deepcopy
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from memsub.controls import random_edit
from memsub.models import (
    Conditioning,
    Denoiser,
    Pipeline,
    as_denoiser,
    check_plain,
    check_request,
    fingerprint,
    named_modules,
    only_shapes,
    sampler_fingerprint,
)
from memsub.pruning import Edit
from memsub_extra.store import Store

from ..training.fitting import OPTIMIZERS, fit, generator
from ..training.precision import mixed_precision, one_attention
from .pairs import Pairs
from .pruning import prune
from .removal import UNFINISHED, Removal

BATCH = 16
"""Memorized pairs per step. An epoch has ceil(pairs / BATCH) steps."""
WHERE = {
    "all": "all weights",
    "blocks": "all blocks",
    "transformers": "the transformer blocks",
    "located": "the located weights",
    "random": "as many random weights",
}
"""Weights that a fine-tuning may train: all linear maps and convolutions of the network; those in its residual blocks
and transformers, except the maps that read the time; those in its transformer blocks; the positions of METHOD's edit;
or equally many random positions of the same layers. The last two test whether training the memorized subspace alone is
enough. (The values are parts of the removals' names in the shipped tables, so they must not change.)"""

Loss = Callable[..., torch.Tensor]
"""loss(step, generator, parameters=...) -> scalar; `parameters` are the trained ones, for losses with gradients."""


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
    """Three variants of a fine-tuning: of its usual weights, of the located ones, and of density-matched random ones.

    Args:
        objective: (pipe, memorized, ordinary, *, located, seed, ...) -> Loss; `located()` is METHOD's edit.
        where: the usual weights, a key of `WHERE`.
        needs_wording: whether the objective needs other wordings of the captions.
        options: options of `fine_tuned` (epochs or steps, lr, fresh) and of the objective.
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
    """Trains weights of the network, and returns the edit that sets them. Afterwards the network is restored.

    Args:
        name: name of the method, for the edit's provenance.
        folder: folder of checkpoints. Their key depends on data, model and options, so a killed training resumes.
        epochs: number of passes over the memorized pairs; 0 if `steps` is given, for objectives that do not show them.
        where: a key of `WHERE`.
        fresh: start from re-initialized weights (torch's default, He's uniform initialization), not from the current.
        optimizer: a name in `memsub_extra.training.fitting.OPTIMIZERS`. "adafactor" takes less memory than "adamw",
            which keeps two more numbers per weight.
        options: options of the objective.

    Raises:
        ValueError: an unknown `where` or `optimizer`, a number out of bounds, or a layer that cannot be trained.
        FloatingPointError: the loss or a trained weight is not finite.
    """
    located = cache(lambda: prune(pipe, memorized, ordinary, seed=seed, progress=progress))
    steps = steps or epochs * -(-len(memorized) // BATCH)
    _check_options(where, optimizer, lr, steps, warmup)
    _check_layers(pipe)
    about = {"method": name, "where": where, "steps": steps, "lr": lr, "fresh": fresh, "seed": seed, **options}
    about |= {} if optimizer == "adamw" else {"optimizer": optimizer}
    model = fingerprint(pipe)
    of = {"objective": f"{objective.__module__}:{objective.__qualname__}", "warmup": warmup, **about}
    path = Store(folder).path(UNFINISHED, "", **_inputs(pipe, memorized, ordinary), **of)
    loss = objective(pipe, memorized, ordinary, located=located, seed=seed, **options)
    at, fresh_values = _positions(pipe, where, located, seed), generator(seed, name) if fresh else None
    mixed = as_denoiser(pipe).dtype == torch.float32
    with _trainable(pipe, at, fresh_values) as written, one_attention(as_denoiser(pipe).device):
        # Keys of a ModuleDict must not contain dots.
        module = nn.ModuleDict({layer.replace(".", "/"): weight for layer, weight in written.items()})
        parameters, device = list(module.parameters()), next(module.parameters()).device

        def step_loss(step: int, rng: torch.Generator) -> torch.Tensor:
            with mixed_precision(device) if mixed else nullcontext():
                return loss(step, rng, parameters=parameters)

        rates: dict[str, Any] = {"lr": lr, "warmup": warmup, "weight_decay": 0.0, "optimizer": optimizer}
        fit(module, step_loss, steps=steps, seed=seed, folder=path.parent, name=path.name, stream=name, **rates)
        shapes, positions, values = _collected(pipe, written)
    return Edit(positions, shapes, {"model": model, "removal": about}, values)


# --- for objectives ------------------------------------------------------------------------------------------------


def teacher_of(pipe: Pipeline) -> Denoiser:
    """The model with its current weights. Its network is a copy that shares them; a fine-tuning does not change it."""
    teacher = copy(as_denoiser(pipe))
    shared = {id(tensor): tensor for tensor in (*teacher.network.parameters(), *teacher.network.buffers())}
    teacher.network = deepcopy(teacher.network, shared)
    return teacher


def either(first: Conditioning, second: Conditioning, wants_first: torch.Tensor) -> Conditioning:
    """Row i is that of `first` if wants_first[i] (bool, on the host), else that of `second`; both may have one row."""
    n = len(wants_first)
    both = Conditioning.cat([c if len(c) == n else c.expand(n) for c in (first, second)])
    return both[torch.where(wants_first, 0, n) + torch.arange(n)]


def dropped(context: Conditioning, empty: Conditioning, rng: torch.Generator) -> Conditioning:
    """Replaces each row by the empty prompt with probability 0.1, for classifier-free guidance."""
    return either(empty, context, torch.rand(len(context), generator=rng) < 0.1)


def blocks(denoiser: Denoiser) -> dict[str, nn.Module]:
    """Residual blocks and transformers by module name. Each maps features to features of the same resolution."""
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    kinds = (ResnetBlock2D, Transformer2DModel)
    return {name: module for name, module in denoiser.network.named_modules() if isinstance(module, kinds)}


def maps_of(network: nn.Module) -> dict[str, Any]:
    """The linear maps and convolutions of a network, by name."""
    return {name: m for name, m in named_modules(network).items() if isinstance(m, (nn.Linear, nn.Conv2d))}


# --- weights that can be trained -----------------------------------------------------------------------------------


class _Written(nn.Module):
    """Parametrization of a weight: trainable values at some positions (None: all), the given weight elsewhere.

    The values start as those of the weight, or re-initialized by the generator `fresh`.
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
    """Layer names to flat positions of the weights to train; None: all of the layer's weights."""
    denoiser = as_denoiser(pipe)
    whole: dict[str, torch.Tensor | None] = dict.fromkeys(maps_of(denoiser.network))
    if where == "all":
        return whole
    if where == "blocks":
        inside = tuple(f"{name}." for name in blocks(denoiser))
        return {name: None for name in whole if name.startswith(inside) and "time_emb" not in name}
    if where == "transformers":
        return {name: None for name in whole if ".transformer_blocks." in name}
    edit = located() if where == "located" else random_edit(located(), seed)
    return {name: positions for name, positions in edit.positions.items() if len(positions)}


def _inputs(pipe: Pipeline, memorized: Pairs, ordinary: Pairs) -> dict[str, Any]:
    """The content of a removal's inputs, for the key of its checkpoints."""
    return {
        "model": sampler_fingerprint(pipe),
        "captions": memorized.captions,
        "images": memorized.images,
        "wordings": memorized.wordings,
        "kept": ordinary.captions,
        "kept images": ordinary.images,
    }


def _check_options(where: str, optimizer: str, lr: float, steps: int, warmup: int) -> None:
    """Raises ValueError for an unknown name, or a number out of bounds."""
    for what, given, known in (("where", where, WHERE), ("optimizer", optimizer, OPTIMIZERS)):
        if given not in known:
            raise ValueError(f"unknown {what} {given!r}; expected one of {', '.join(known)}.")
    if not (isinstance(lr, Real) and math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be a number above 0; got {lr!r}.")
    check_request([""], steps, BATCH, warmup=warmup)


def _check_layers(pipe: Pipeline) -> None:
    """Raises ValueError for an adapter in the network, or a layer whose weight cannot be trained."""
    network = as_denoiser(pipe).network
    for name, module in named_modules(network).items():
        if hasattr(module, "base_layer"):
            raise ValueError(
                f"layer {name} holds an adapter: fuse it and take it off before training, by pipe.fuse_lora() and "
                "pipe.unload_lora_weights()."
            )
    shapes = only_shapes(network)
    for name, module in maps_of(network).items():
        weight = check_plain(name, module, shapes, linear=False).weight
        if weight.element_size() == 1:
            raise ValueError(f"layer {name} is stored in 8 bits, which do not train: load the model without casting.")
        if weight.is_inference():
            raise ValueError(f"layer {name} was loaded within torch.inference_mode(): load the pipeline outside of it.")


@contextmanager
def _trainable(
    pipe: Pipeline, wanted: Mapping[str, torch.Tensor | None], fresh: torch.Generator | None
) -> Iterator[dict[str, _Written]]:
    """A context in which only the wanted positions of layers are trainable; it yields the parametrizations by layer."""
    network = as_denoiser(pipe).network
    modules: dict[str, Any] = named_modules(network)
    required = {name: p.requires_grad for name, p in network.named_parameters()}
    network.requires_grad_(False)
    written: dict[str, _Written] = {}
    try:
        for name, positions in wanted.items():
            module = modules[name]
            at = positions if positions is None else positions.to(module.weight.device)
            one = _Written(module.weight, at, fresh)
            parametrize.register_parametrization(module, "weight", one)
            written[name] = one
        yield written
    finally:
        for name in written:
            parametrize.remove_parametrizations(modules[name], "weight", leave_parametrized=False)
        for name, p in network.named_parameters():
            p.requires_grad_(required[name])
            p.grad = None


def _collected(pipe: Pipeline, written: Mapping[str, _Written]) -> tuple[dict, dict, dict]:
    """Shapes, positions and values (float16) of the edit that sets the trained weights, by layer.

    Raises FloatingPointError for a weight that is not finite.
    """
    modules: dict[str, Any] = named_modules(as_denoiser(pipe).network)
    shapes = {layer: tuple(modules[layer].weight.shape) for layer in written}
    values = {layer: w.values.detach().reshape(-1).half().cpu() for layer, w in written.items()}
    if bad := [layer for layer, trained in values.items() if not trained.isfinite().all()]:
        raise FloatingPointError(f"the training diverged: weights of layer {bad[0]} are not finite. Lower lr.")
    positions = {
        layer: (torch.arange(w.values.numel(), dtype=torch.int32) if w.positions is None else w.positions.cpu())
        for layer, w in written.items()
    }
    return shapes, positions, values
