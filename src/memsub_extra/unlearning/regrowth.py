"""Regrowth (this project): blocks are re-initialized at random, and learn on ordinary pairs to do what they did.

What no ordinary pair asks for is not taught again; the list of memorized pairs is not needed. For some steps every
residual block and every transformer learns alone what the model as it was, the teacher, does in its place with the
features of ordinary pairs,

    || block(h) - teacher's block(h) ||^2 / || what teacher's block(h) adds to h ||^2,

and then all of them learn together, on ordinary pairs, by the loss that the model was trained by. That a student from
random weights leaves behind what its teacher was not asked is known of language models (Lee et al., NeurIPS 2025,
"Distillation Robustifies Unlearning"), for most of the price of training them from the start. Block by block it takes a
small part of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from memsub.models import Conditioning, Pipeline, as_denoiser, fingerprint, noise_schedule
from memsub.pruning import Edit

from ..training.fitting import stratified
from .fine_tuning import BATCH, blocks, dropped, fine_tunings, teacher_of
from .losses import Encoded, step_weights, weighted_error
from .pairs import Pairs


class Regrowth:
    """The objective.

    Args:
        alone: steps in which every block learns alone.
    """

    def __init__(
        self,
        pipe: Pipeline,
        memorized: Pairs,
        ordinary: Pairs,
        *,
        located: Callable[[], Edit],
        alone: int = 400,
        seed: int = 0,
    ):
        self.denoiser, self.kept = as_denoiser(pipe), Encoded(pipe, ordinary)
        self.teacher = teacher_of(pipe)
        self.schedule, self.weights = noise_schedule(self.denoiser), step_weights(self.denoiser)
        self.empty = self.denoiser.embed([""])
        self.alone = alone

    def __call__(self, step: int, rng: torch.Generator, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = self.kept.rows(2 * BATCH, rng)
        z, context = self.kept.latents[rows], dropped(self.kept.context[rows], self.empty, rng)
        at = stratified(len(z), len(self.weights), rng)
        t = self.schedule.steps[at]
        x, target = self.schedule.noised(z, t, torch.randn(z.shape, generator=rng).to(z))
        if step < self.alone:
            return self._alone(x, t, context)
        return weighted_error(self.denoiser.predict(x, t.to(x.device), context), target, self.weights[at])

    def _alone(self, x: torch.Tensor, t: torch.Tensor, context: Conditioning) -> torch.Tensor:
        """Mean over the blocks of each one's error, relative to what the teacher's block adds."""
        with recorded(blocks(self.teacher)) as calls, torch.no_grad():
            self.teacher.predict(x, t.to(x.device), context)
        errors = []
        for name, block in blocks(self.denoiser).items():
            h, args, kwargs, wanted = calls[name]
            # torch's backward of a group norm whose input asks for no gradient crashes on CPUs.
            returned = features_of(block(h.requires_grad_(), *args, **kwargs))
            added = wanted - h if h.shape == wanted.shape else wanted
            errors.append((returned - wanted).float().square().mean() / added.float().square().mean())
        return torch.stack(errors).mean()


Call = tuple[torch.Tensor, tuple, dict[str, Any], torch.Tensor]
"""Of a block: features, other arguments, named ones, returned features."""


@contextmanager
def recorded(modules: dict[str, torch.nn.Module]) -> Iterator[dict[str, Call]]:
    """While open, what blocks are called with and what they return, by name."""
    calls: dict[str, Call] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
            named = dict(kwargs)
            h = args[0] if args else named.pop("hidden_states")
            calls[name] = (h.detach(), args[1:], named, features_of(out).detach())

        return record

    handles = [module.register_forward_hook(hook(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def features_of(out: Any) -> torch.Tensor:
    """The features that a block returns: a tensor, or the first of a tuple or of an output of diffusers."""
    return out if isinstance(out, torch.Tensor) else out[0]


# --- one block by hand (notebook 06) -------------------------------------------------------------------------------


def reinitialized(block: nn.Module, rng: torch.Generator) -> nn.Module:
    """A copy of a block whose linear maps and convolutions are re-initialized at random: they alone can be trained."""
    student = deepcopy(block).float().requires_grad_(False)
    for layer in _maps(student).values():
        random = nn.init.kaiming_uniform_(torch.empty(layer.weight.shape), a=5**0.5, generator=rng)
        layer.weight = nn.Parameter(random.to(layer.weight))
    return student


def block_edit(pipe: Pipeline, name: str, student: nn.Module) -> Edit:
    """The edit that puts the maps of `student` in the place of those of the pipeline's block of that name."""
    weights = {f"{name}.{layer}": module.weight.detach() for layer, module in _maps(student).items()}
    return Edit(
        {layer: torch.arange(weight.numel(), dtype=torch.int32) for layer, weight in weights.items()},
        {layer: tuple(weight.shape) for layer, weight in weights.items()},
        {"model": fingerprint(pipe), "removal": {"method": "regrowth", "where": name}},
        {layer: weight.reshape(-1).half().cpu() for layer, weight in weights.items()},
    )


def _maps(block: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in block.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}


OPTIONS: dict[str, Any] = {"where": "blocks", "fresh": True, "steps": 1800, "lr": 2e-3, "warmup": 50}
REMOVAL, LOCATED, RANDOM = fine_tunings("regrowth", Regrowth, "this project", **OPTIONS)
WITHOUT_TEACHER, _, _ = fine_tunings("training anew", Regrowth, "a control", **OPTIONS, alone=0)
"""The control: as many steps on the same pairs, without the teacher."""
