"""Regrowth (this project): blocks are re-initialized at random, and learn on ordinary pairs to do what they did.

What ordinary pairs do not require is not taught again, so the list of memorized pairs is not needed. At first, each
residual block and each transformer learns alone. Its target is the output of the same block of the teacher, which is
the model before regrowth, for the features h of ordinary pairs:

    || block(h) - teacher's block(h) ||^2 / || what teacher's block(h) adds to h ||^2

Then all blocks learn together on ordinary pairs, by the model's training loss. For language models it is known that a
student with random weights does not learn what its teacher is not asked for (Lee et al., NeurIPS 2025, "Distillation
Robustifies Unlearning"), at most of the cost of training from scratch. Block by block it costs a small part of that.
(If the output has another shape than h, the error is relative to the output itself.)
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
from .fine_tuning import BATCH, blocks, dropped, fine_tunings, maps_of, teacher_of
from .losses import Encoded, step_weights, weighted_error
from .pairs import Pairs


class Regrowth:
    """The objective.

    Args:
        alone: number of first steps, in which each block learns alone.
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
        """Mean of the blocks' errors, each relative to what the teacher's block adds to its input."""
        with recorded(blocks(self.teacher)) as calls, torch.no_grad():
            self.teacher.predict(x, t.to(x.device), context)
        errors = []
        for name, block in blocks(self.denoiser).items():
            h, args, kwargs, wanted = calls[name]
            # On CPUs, torch's backward pass of a group norm crashes if the input requires no gradient.
            returned = features_of(block(h.requires_grad_(), *args, **kwargs))
            added = wanted - h if h.shape == wanted.shape else wanted
            errors.append((returned - wanted).float().square().mean() / added.float().square().mean())
        return torch.stack(errors).mean()


Call = tuple[torch.Tensor, tuple, dict[str, Any], torch.Tensor]
"""A call of a block: features, other positional arguments, named arguments, returned features."""


@contextmanager
def recorded(modules: dict[str, torch.nn.Module]) -> Iterator[dict[str, Call]]:
    """A context that records the arguments and results of the last call of each module, by name."""
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
    """A float32 copy of a block with re-initialized linear maps and convolutions. Only their weights are trainable."""
    student = deepcopy(block).float().requires_grad_(False)
    for layer in maps_of(student).values():
        random = nn.init.kaiming_uniform_(torch.empty(layer.weight.shape), a=5**0.5, generator=rng)
        layer.weight = nn.Parameter(random.to(layer.weight))
    return student


def block_edit(pipe: Pipeline, name: str, student: nn.Module) -> Edit:
    """The edit that replaces the weights of the pipeline's block `name` by those of `student`."""
    weights = {f"{name}.{layer}": module.weight.detach() for layer, module in maps_of(student).items()}
    return Edit(
        {layer: torch.arange(weight.numel(), dtype=torch.int32) for layer, weight in weights.items()},
        {layer: tuple(weight.shape) for layer, weight in weights.items()},
        {"model": fingerprint(pipe), "removal": {"method": "regrowth", "where": name}},
        {layer: weight.reshape(-1).half().cpu() for layer, weight in weights.items()},
    )


OPTIONS: dict[str, Any] = {"where": "blocks", "fresh": True, "steps": 1800, "lr": 2e-3, "warmup": 50}
REMOVAL, LOCATED, RANDOM = fine_tunings("regrowth", Regrowth, "this project", **OPTIONS)
WITHOUT_TEACHER, _, _ = fine_tunings("training anew", Regrowth, "a control", **OPTIONS, alone=0)
"""The control: equally many steps on the same pairs, without a teacher."""
