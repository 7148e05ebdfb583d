"""ReTrack (AISTATS 2026): on noised images to forget, regress to where the nearest kept images would lead.

    v_k = (x_t - signal n_k) / noise,    target = sum_k softmax(-||v_k||^2 / 2) v_k

where n_k are the K kept latents nearest to the one to forget. The loss is the mean of this one and the ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from memsub.models import Pipeline, as_denoiser, noise_schedule
from memsub.pruning import Edit

from .fine_tuning import BATCH, Loss, fine_tunings
from .losses import Encoded, denoising_loss
from .pairs import Pairs


def retrack(
    pipe: Pipeline,
    memorized: Pairs,
    ordinary: Pairs,
    *,
    located: Callable[[], Edit],
    neighbours: int = 10,
    seed: int = 0,
) -> Loss:
    """The objective, with K = `neighbours`."""
    denoiser, kept = as_denoiser(pipe), Encoded(pipe, ordinary)
    schedule = noise_schedule(denoiser)
    forget, context = denoiser.encode(memorized.images), denoiser.embed(memorized.captions)
    apart = torch.cdist(forget.flatten(1).float(), kept.latents.flatten(1).float())
    near = apart.topk(min(neighbours, len(ordinary)), largest=False).indices

    def loss(step: int, rng: torch.Generator, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = torch.randint(len(memorized), (BATCH,), generator=rng)
        at = torch.randint(len(schedule.steps), (BATCH,), generator=rng)
        t = schedule.steps[at]
        x_t, _ = schedule.noised(forget[rows], t, torch.randn(forget[rows].shape, generator=rng).to(forget))
        signal, noise = (share[at][:, None, None, None, None].to(x_t) for share in (schedule.signal, schedule.noise))
        clean = kept.latents[near[rows]]  # (rows, neighbours, channels, height, width)
        v = (x_t[:, None] - signal * clean) / noise
        weights = (-v.flatten(2).square().sum(2) / 2).softmax(1)[:, :, None, None, None]
        target = schedule.noised((weights * clean).sum(1), t, (weights * v).sum(1))[1]
        led = (denoiser.predict(x_t, t.to(x_t.device), context[rows]) - target).float().square().mean()
        batch = kept.rows(BATCH, rng)
        return (led + denoising_loss(pipe, kept.latents[batch], kept.context[batch], rng)) / 2

    return loss


REMOVAL, LOCATED, RANDOM = fine_tunings("ReTrack", retrack, "ReTrack, AISTATS 2026", epochs=40, lr=1e-4)
