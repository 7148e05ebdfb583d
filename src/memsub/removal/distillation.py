"""Adversarial distillation (this project): under attack, the model says what it says without the memory.

The attacker looks for an embedding that makes the model denoise a training image x* better than it should. What it
should say is known where memory hangs on wording: what the model says for the same content in other words. So the model
as it was is the teacher, and the student is taught, on noised training images and on noised pictures that the model
draws for other wording (`x`), for the memorized caption and for embeddings under attack (`y`),

    || eps_student(x_t, t, y) - eps_teacher(x_t, t, other wording) ||^2  +  the loss on ordinary pairs

An attack of the student then gains nothing over knowing what the picture shows. It is made anew every 100 steps, on the
student as it is by then: the steps of a checkpoint, so that a killed training goes on as it would have. Noise in the
weights before training (`noise`) blurs what the training does not reach; relearning feeds on that ("Distillation
Robustifies Unlearning", Lee et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy, deepcopy

import torch

from ..attacks import EmbeddingAttack
from ..audit import STARTS, Encoded, Pairs, denoising_loss, starts
from ..denoiser import Pipeline, as_denoiser, noised
from ..fitting import CHECKPOINT_STEPS, generator
from ..pruning import Edit
from .base import Removal
from .fine_tuning import BATCH, Loss, fine_tunings
from .surrogates import other_wording, unlike


def distillation(
    pipe: Pipeline,
    memorized: Pairs,
    ordinary: Pairs,
    *,
    located: Callable[[], Edit],
    attacked: int = 32,
    iterations: int = 50,
    noises: int = 2,
    seed: int = 0,
) -> Loss:
    """The objective.

    Args:
        attacked: pairs under attack at a time, `iterations` each with so many `noises`.
    """
    denoiser, kept, n = as_denoiser(pipe), Encoded(pipe, ordinary), len(memorized)
    teacher = copy(denoiser)
    teacher.network = deepcopy(denoiser.network).requires_grad_(False)
    drawn = [denoiser.encode(images) for images in unlike(pipe, memorized, seeds=8, seed=seed)]
    # Training images as often as all that is drawn instead.
    clean = torch.stack([*drawn, *[denoiser.encode(memorized.images)] * len(drawn)])
    begins, others = starts(pipe, memorized.captions, seed), denoiser.embed(other_wording(memorized.captions))
    own, none, ours = begins["its caption"], denoiser.embed([""]), min(attacked, n)
    # v-prediction's weights (Salimans & Ho 2022), capped: steps of much noise decide what is where.
    weights = (1 / denoiser.scheduler.alphas_cumprod).clamp(max=2.5)
    weights = weights / weights.mean()
    pool: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attack(part: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the pairs under attack and their embeddings, half of the way and all of it."""
        rows = torch.randperm(n, generator=generator(seed, "distillation", part))[:ours]
        begin = torch.stack([begins[STARTS[(part + k) % len(STARTS)]][row] for k, row in enumerate(rows.tolist())])
        under = EmbeddingAttack(pipe, memorized.images[rows.numpy()], begin, noises=noises, seed=seed + 10_000 * part)
        found = []
        for _ in range(2):
            under.advance(iterations // 2, range(ours))
            found.append(under.embeddings(range(ours)))
        return rows.repeat(2), torch.cat(found)

    def loss(step: int, rng: torch.Generator, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        some, rows = kept.rows(2 * BATCH, rng), torch.randint(n, (BATCH,), generator=rng)
        dropped = (torch.rand(len(some), generator=rng) < 0.1)[:, None, None].to(none.device)  # for guidance
        context = torch.where(dropped, none, kept.context[some])
        ordinary_loss = denoising_loss(pipe, kept.latents[some], context, rng, weights)
        if (part := step // CHECKPOINT_STEPS) not in pool:
            pool.clear()
            pool[part] = attack(part)
        chosen = torch.randint(2 * ours, (BATCH,), generator=rng)
        rows, y = torch.cat([rows, pool[part][0][chosen]]), torch.cat([own[rows], pool[part][1][chosen]])
        z = clean[torch.randint(len(clean), (len(rows),), generator=rng), rows]
        t = torch.randint(len(weights), (len(rows),), generator=rng)
        x, _ = noised(denoiser, z, t.to(z.device), torch.randn(z.shape, generator=rng).to(z))
        with torch.no_grad():
            told = teacher.predict(x, t.to(z.device), others[rows])
        error = (denoiser.predict(x, t.to(z.device), y) - told).float().square().flatten(1).mean(1)
        return ordinary_loss + (weights[t].to(error) * error).mean()

    return loss


REMOVALS: dict[str, Removal] = fine_tunings(
    "adversarial distillation", distillation, "this project", where="blocks", epochs=80, lr=5e-4, warmup=20
)
