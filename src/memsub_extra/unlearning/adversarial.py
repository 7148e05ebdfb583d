"""Adversarial fine-tuning (Kowalczuk, Hintersdorf et al. 2025, "Finding Dori").

For each batch of memorized pairs, an inner attack optimizes embeddings y_adv for their images. The step then lowers

    the loss on ordinary pairs + || eps - eps_theta(x~_t, t, y_adv) ||^2

where x~ is a surrogate image of the same caption: the model learns to sample another image for the embedding as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from memsub.models import Pipeline, as_denoiser
from memsub.pruning import Edit
from memsub_extra.attacks import EmbeddingAttack

from .attack_work import starts
from .fine_tuning import BATCH, Loss, fine_tunings
from .losses import Encoded, denoising_loss
from .pairs import Pairs
from .surrogates import surrogates


def adversarial(
    pipe: Pipeline,
    memorized: Pairs,
    ordinary: Pairs,
    *,
    located: Callable[[], Edit],
    iterations: int = 50,
    noises: int = 2,
    seed: int = 0,
) -> Loss:
    """The objective. In turn, the inner attack begins at the caption, at another caption, and at noise.

    Args:
        iterations: number of iterations of the inner attack; each uses `noises` steps and noises per image.
    """
    kept = Encoded(pipe, ordinary)
    instead = as_denoiser(pipe).encode(surrogates(pipe, memorized, located(), seed=seed))
    beginnings = starts(pipe, memorized.captions, seed)
    per_epoch = -(-len(memorized) // BATCH)

    def loss(step: int, rng: torch.Generator, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        order = torch.randperm(len(memorized), generator=torch.Generator().manual_seed(seed + step // per_epoch))
        rows = order[(step % per_epoch) * BATCH :][:BATCH]
        begin = beginnings[("its caption", "another caption", "noise")[step % 3]][rows]
        attack = EmbeddingAttack(pipe, memorized.images[rows.numpy()], begin, noises=noises, seed=seed + 10_000 * step)
        attack.advance(iterations, range(len(rows)))
        batch = kept.rows(BATCH, rng)
        ordinary_loss = denoising_loss(pipe, kept.latents[batch], kept.context[batch], rng)
        return ordinary_loss + denoising_loss(pipe, instead[rows], attack.embeddings(range(len(rows))), rng)

    return loss


REMOVAL, LOCATED, RANDOM = fine_tunings(
    "adversarial fine-tuning", adversarial, "Kowalczuk, Hintersdorf et al. 2025, Finding Dori", epochs=5, lr=1e-4
)
