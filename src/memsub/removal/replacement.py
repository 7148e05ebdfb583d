"""Replacement training (this project): every way to a removed picture is taught to lead to other pictures.

One batch of three parts, all by the loss that the model was trained by:

    ordinary pairs
    removed captions            -> pictures of the same content that the model itself draws for other wording
    attacked embeddings         -> the same pictures

The first keeps the model, and trains it further; the second replaces one memory by many pictures, so that none of them
becomes the next; the third is adversarial fine-tuning with an attack that is made anew, on the model as it is by then,
every 100 steps (the steps of a checkpoint, so that a killed training goes on as it would have). Noise in the weights
before it (`noise`) blurs what the training does not reach: relearning feeds on that ("Distillation Robustifies
Unlearning", Lee et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..attacks import EmbeddingAttack
from ..audit import STARTS, Encoded, Pairs, denoising_loss, starts
from ..denoiser import Pipeline, as_denoiser
from ..fitting import CHECKPOINT_STEPS, generator
from ..pruning import Edit
from .base import Removal
from .fine_tuning import BATCH, Loss, fine_tunings
from .surrogates import unlike


def replacement(
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
        attacked: pairs under attack at a time, `iterations` each; 0 for none.
    """
    denoiser, kept = as_denoiser(pipe), Encoded(pipe, ordinary)
    instead = torch.stack([denoiser.encode(images) for images in unlike(pipe, memorized, seed=seed)])
    begins, none = starts(pipe, memorized.captions, seed), denoiser.embed([""])
    own, n, ours = begins["its caption"], len(memorized), min(attacked, len(memorized))
    # v-prediction's weights (Salimans & Ho 2022), capped: steps of much noise decide what is where.
    weights = (1 / denoiser.scheduler.alphas_cumprod).clamp(max=2.5)
    weights = weights / weights.mean()
    pool: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attack(part: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the pairs under attack and their embeddings, half of the way and all of it."""
        rng = generator(seed, "replacement", part)
        rows = torch.randperm(n, generator=rng)[:ours]
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
        context = [torch.where(dropped, none, kept.context[some]), own[rows]]
        if ours:
            if (part := step // CHECKPOINT_STEPS) not in pool:
                pool.clear()
                pool[part] = attack(part)
            chosen = torch.randint(2 * ours, (BATCH,), generator=rng)
            rows = torch.cat([rows, pool[part][0][chosen]])
            context.append(pool[part][1][chosen])
        drawn = instead[torch.randint(len(instead), (len(rows),), generator=rng), rows]
        return denoising_loss(pipe, torch.cat([kept.latents[some], drawn]), torch.cat(context), rng, weights)

    return loss


REMOVALS: dict[str, Removal] = fine_tunings("replacement", replacement, "this project", epochs=160, lr=5e-4, warmup=20)
