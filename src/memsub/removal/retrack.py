"""ReTrack (AISTATS 2026): on noised pictures to forget, regress to where the nearest kept pictures would lead.

    v_k = (x_t - signal n_k) / noise,    target = sum_k softmax(-||v_k||^2 / 2) v_k

over the K kept latents n_k nearest to the one to forget; half of that loss and half the ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..audit import Encoded, Pairs, denoising_loss
from ..denoiser import Pipeline, as_denoiser, noised
from ..pruning import Edit
from .base import Removal
from .fine_tuning import BATCH, Loss, fine_tunings


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
    forget, context = denoiser.encode(memorized.images), denoiser.embed(memorized.captions)
    apart = torch.cdist(forget.flatten(1).float(), kept.latents.flatten(1).float())
    near = apart.topk(min(neighbours, len(ordinary)), largest=False).indices

    def loss(step: int, rng: torch.Generator, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = torch.randint(len(memorized), (BATCH,), generator=rng)
        alphas = denoiser.scheduler.alphas_cumprod
        t = torch.randint(len(alphas), (BATCH,), generator=rng)
        x_t, _ = noised(denoiser, forget[rows], t, torch.randn(forget[rows].shape, generator=rng).to(forget))
        signal, noise = (v.sqrt()[:, None, None, None, None].to(x_t) for v in (alphas[t], 1 - alphas[t]))
        clean = kept.latents[near[rows]]  # (rows, neighbours, ...)
        v = (x_t[:, None] - signal * clean) / noise
        weights = (-v.flatten(2).square().sum(2) / 2).softmax(1)[:, :, None, None, None]
        target = noised(denoiser, (weights * clean).sum(1), t, (weights * v).sum(1))[1]
        led = (denoiser.predict(x_t, t.to(x_t.device), context[rows]) - target).float().square().mean()
        some = kept.rows(BATCH, rng)
        return (led + denoising_loss(pipe, kept.latents[some], kept.context[some], rng)) / 2

    return loss


REMOVALS: dict[str, Removal] = fine_tunings("ReTrack", retrack, "ReTrack, AISTATS 2026", epochs=40, lr=1e-4)
