"""Prompt-embedding optimization (Wen et al., ICLR 2024): a few gradient steps before sampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from memsub.io.distributed import gathered, shard
from memsub.models import (
    Conditioning,
    Denoiser,
    Pipeline,
    Sample,
    as_captions,
    as_denoiser,
    check_finite,
    check_request,
    initial_noise,
    model_input,
    one_seed_each,
)

from .base import GRADIENT_ROWS, Baseline, Context, declare
from .detection import first_latents, text_magnitude


@torch.inference_mode(False)
@torch.enable_grad()
def optimized_embeddings(
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    target: float,
    seeds: int | Sequence[int] = 0,
    steps: int = 50,
    lr: float = 0.05,
    iterations: int = 10,
    batch_size: int = 16,
) -> Conditioning:
    """Optimizes each prompt's embedding until the text has little effect at the first step (Wen et al. 2024, sec. 4.2).

    AdamW minimizes ||eps(x_T, prompt) - eps(x_T, empty)|| at the first step, for the image's initial noise. A prompt
    stops when this norm is at most `target`. Under `accelerate launch` each process takes a share of the prompts.

    Args:
        target: norm at which a prompt stops. Smaller is stronger.
        lr: learning rate of AdamW.
        seeds: as for `generate`.
        batch_size: prompts at a time.

    Returns:
        A conditioning for `generate`, with a row for each prompt.

    Raises:
        ValueError: no prompts, a wrong number of seeds, or steps or a batch size below 1.
        FloatingPointError: an embedding is NaN or infinite.
    """
    prompts = as_captions(prompts)
    check_request(prompts, steps, batch_size)
    seeds = one_seed_each(seeds, len(prompts))
    denoiser = as_denoiser(pipe)
    empty = denoiser.embed([""])  # first: some adapters cannot embed, and raise an error
    denoiser.scheduler.set_timesteps(steps)
    mine = shard(range(len(prompts)))
    # A prompt may take every iteration; the counting denoiser makes only one.
    declare(denoiser, GRADIENT_ROWS * len(mine) * (iterations - 1))
    moved: dict[int, Conditioning] = {}
    for i in range(0, len(mine), batch_size):
        part = mine[i : i + batch_size]
        noise = initial_noise(denoiser, [seeds[j] for j in part])
        optimized = _optimize(denoiser, [prompts[j] for j in part], empty, noise, target, lr, iterations)
        moved |= dict(zip(part, optimized.to("cpu"), strict=True))
    moved = gathered(moved)
    together = Conditioning.cat([moved[i] for i in range(len(prompts))])
    check_finite(together.embeddings, "an optimized embedding")
    return together.to(denoiser.device, denoiser.dtype)


def _optimize(
    denoiser: Denoiser,
    prompts: list[str],
    empty: Conditioning,
    noise: torch.Tensor,
    target: float,
    lr: float,
    iterations: int,
) -> Conditioning:
    scheduler = denoiser.scheduler
    t = scheduler.timesteps[0]
    x = model_input(scheduler, first_latents(scheduler, noise), t)
    text = denoiser.embed(prompts)
    embedding = text.embeddings.float()
    with torch.no_grad():
        unconditional = denoiser.predict(x, t, empty.expand(len(prompts)))
    embedding.requires_grad_(True)
    optimizer = torch.optim.AdamW([embedding], lr=lr)
    rows = torch.arange(len(prompts), device=embedding.device)  # prompts above the target
    for _ in range(iterations):
        moved = text[rows.tolist()].with_embeddings(embedding[rows])
        length = text_magnitude(x[rows], unconditional[rows], denoiser.predict(x[rows], t, moved))
        unfinished = ~(length.detach() <= target)  # NaN is not finished: it ends in the embedding
        if not unfinished.any():
            break
        (gradient,) = torch.autograd.grad(length.sum(), [embedding])
        rows, before = rows[unfinished.to(rows.device)], embedding.detach().clone()
        embedding.grad = gradient
        optimizer.step()
        with torch.no_grad():
            # AdamW would move finished prompts by momentum, so they are left out.
            done = torch.ones(len(prompts), dtype=torch.bool, device=embedding.device)
            done[rows] = False
            embedding.copy_(torch.where(done[:, None, None], before, embedding))
    return text.with_embeddings(embedding.detach())


def _make(context: Context, target: float) -> Sample:
    def sample(prompts: Sequence[str], *, seeds: Sequence[int]) -> np.ndarray:
        options = {"steps": context.steps, "batch_size": context.gradient_rows}
        moved = optimized_embeddings(context.pipe, prompts, target=target, seeds=seeds, **options)
        return context.sample(moved, seeds=seeds)

    return sample


BASELINE = Baseline("the embedding of each prompt, before sampling", "target length", _make, (1.0, 0.7, 0.4))
