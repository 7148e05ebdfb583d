"""Further training on ordinary pairs alone: what is forgotten by itself? The control of all other fine-tunings."""

from __future__ import annotations

from .fine_tuning import BATCH, Loss, fine_tunings
from .losses import Encoded, denoising_loss


def further_training(pipe, memorized, ordinary, *, located, seed=0) -> Loss:
    """The objective: the loss that the model was trained by."""
    kept = Encoded(pipe, ordinary)

    def loss(step, rng, parameters):
        rows = kept.rows(2 * BATCH, rng)
        return denoising_loss(pipe, kept.latents[rows], kept.context[rows], rng)

    return loss


REMOVAL, LOCATED, RANDOM = fine_tunings(
    "further training", further_training, "a control", where="transformers", epochs=80, lr=5e-4, warmup=20
)
