"""Regrowth (this project): all blocks begin anew at random, and ordinary pairs teach them what they did.

What no ordinary pair asks for is not taught again; the list of memorized pairs is not needed. For some steps every
residual block and every transformer learns alone what the model as it was, the teacher, does in its place with the
features of ordinary pairs,

    || block(h) - teacher's block(h) ||^2 / || what teacher's block(h) adds to h ||^2,

and then all of them learn together, on ordinary pairs, by the loss that the model was trained by. That a student from
random weights leaves behind what its teacher was not asked is known of language models (Lee et al., NeurIPS 2025,
"Distillation Robustifies Unlearning"), for most of the price of training them anew. Block by block it takes a small
part of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..audit import Encoded, Pairs, weighted_error
from ..denoiser import Pipeline, as_denoiser, noised
from ..fitting import stratified, v_weights
from ..pruning import Edit
from .base import Removal
from .fine_tuning import BATCH, as_it_is, dropped, fine_tunings


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
        self.teacher = as_it_is(pipe)
        self.none, self.weights = self.denoiser.embed([""]), v_weights(self.denoiser.scheduler.alphas_cumprod)
        self.alone = alone

    def __call__(self, step: int, rng: torch.Generator, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = self.kept.rows(2 * BATCH, rng)
        z, context = self.kept.latents[rows], dropped(self.kept.context[rows], self.none, rng)
        t = stratified(len(z), len(self.weights), rng)
        x, target = noised(self.denoiser, z, t, torch.randn(z.shape, generator=rng).to(z))
        if step < self.alone:
            return self._alone(x, t, context)
        return weighted_error(self.denoiser.predict(x, t.to(x.device), context), target, self.weights[t])

    def _alone(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Mean over the blocks of what each is wrong by, relative to what the teacher's adds."""
        with recorded(self.teacher.blocks()) as calls, torch.no_grad():
            self.teacher.predict(x, t.to(x.device), context)
        errors = []
        for name, block in self.denoiser.blocks().items():
            h, args, kwargs, wanted = calls[name]
            # torch's backward of a group norm whose input asks for no gradient crashes on CPUs.
            found = first(block(h.requires_grad_(), *args, **kwargs))
            added = wanted - h if h.shape == wanted.shape else wanted
            errors.append((found - wanted).float().square().mean() / added.float().square().mean())
        return torch.stack(errors).mean()


@contextmanager
def recorded(blocks: dict[str, torch.nn.Module]) -> Iterator[dict[str, tuple[torch.Tensor, tuple, dict, torch.Tensor]]]:
    """While open, what blocks are called with and what they return: features, other arguments, returned features."""
    calls: dict[str, Any] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
            named = dict(kwargs)
            h = args[0] if args else named.pop("hidden_states")
            calls[name] = (h.detach(), args[1:], named, first(out).detach())

        return record

    handles = [block.register_forward_hook(hook(name), with_kwargs=True) for name, block in blocks.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def first(out: Any) -> torch.Tensor:
    """The features of what a block returns: a tensor, a tuple, or an output of diffusers."""
    return out if isinstance(out, torch.Tensor) else out[0]


OPTIONS: dict[str, Any] = {"where": "blocks", "fresh": True, "steps": 1800, "lr": 2e-3, "warmup": 50}
NO_TEACHER = "training anew"
REMOVALS: dict[str, Removal] = fine_tunings("regrowth", Regrowth, "this project", **OPTIONS)
REMOVALS[NO_TEACHER] = fine_tunings(NO_TEACHER, Regrowth, "a control", **OPTIONS, alone=0)[NO_TEACHER]
