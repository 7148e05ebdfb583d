"""The denoising loss on pairs: what relearning and every fine-tuning removal minimize.

kept = Encoded(pipe, pairs)                                     # latents and conditioning, computed once
rows = kept.rows(32, rng)
loss = denoising_loss(pipe, kept.latents[rows], kept.context[rows], rng)
"""

from __future__ import annotations

import torch

from memsub.models import Conditioning, Denoiser, Pipeline, as_denoiser, noise_schedule

from ..training.fitting import v_weights
from .pairs import Pairs


class Encoded:
    """Latents (n, channels, height, width) and conditioning of pairs, computed once."""

    def __init__(self, pipe: Pipeline, pairs: Pairs):
        denoiser = as_denoiser(pipe)
        parts = range(0, len(pairs), 32)
        self.latents = torch.cat([denoiser.encode(pairs.images[i : i + 32]) for i in parts])
        self.context = Conditioning.cat([denoiser.embed(pairs.captions[i : i + 32]) for i in parts])

    def rows(self, n: int, rng: torch.Generator) -> torch.Tensor:
        """Indices of a batch, (n,), with replacement."""
        return torch.randint(len(self.latents), (n,), generator=rng)


def denoising_loss(
    pipe: Pipeline,
    z: torch.Tensor,
    context: Conditioning,
    rng: torch.Generator,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The model's training loss: mean squared error, at one random step and noise for each latent.

    Args:
        z: clean latents, (n, channels, height, width); `context` has one row for each.
        weights: weight of each step of the schedule, (steps,); default: all equal.
    """
    denoiser = as_denoiser(pipe)
    schedule = noise_schedule(denoiser)
    at = torch.randint(len(schedule.steps), (len(z),), generator=rng)
    t = schedule.steps[at].to(z.device)
    x, target = schedule.noised(z, t, torch.randn(z.shape, generator=rng).to(z))
    return weighted_error(denoiser.predict(x, t, context), target, None if weights is None else weights[at])


def weighted_error(predicted: torch.Tensor, target: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error, with weights (rows,) of the rows; default: all equal."""
    error = (predicted - target).float().square().flatten(1).mean(1)
    return error.mean() if weights is None else (weights.to(error) * error).mean()


def step_weights(denoiser: Denoiser) -> torch.Tensor:
    """Loss weights (steps,) of a model's schedule, with mean 1: `v_weights`, as in the training of the testbed.

    For flow matching they are all equal, because its prediction already has this weighting.
    """
    schedule = noise_schedule(denoiser)
    return torch.ones(len(schedule.steps)) if schedule.kind == "flow" else v_weights(denoiser.scheduler.alphas_cumprod)
