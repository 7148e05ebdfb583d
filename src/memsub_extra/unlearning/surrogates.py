"""Images to sample instead of those that are removed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from memsub.models import Pipeline, as_denoiser, generate
from memsub.pruning import Edit, pruned

from .pairs import SAMPLING, Pairs


def surrogates(pipe: Pipeline, memorized: Pairs, edit: Edit, *, seeds: int = 4, seed: int = 0) -> np.ndarray:
    """An image to sample instead for each memorized caption: uint8 (captions, height, width, 3).

    Of `seeds` images of the edited model, it is the one whose latents differ most from those of the training image.
    """
    with pruned(pipe, edit):
        images = sampled(pipe, memorized.captions, seeds, seed)
    best = _distance(pipe, memorized, images).argmax(0).tolist()
    return np.stack([images[k][i] for i, k in enumerate(best)])


def sampled(pipe: Pipeline, captions: Sequence[str], seeds: int, seed: int) -> np.ndarray:
    """Images of each caption, uint8 (seeds, captions, height, width, 3); all have different seeds."""
    n = len(captions)
    return np.stack(
        [generate(pipe, captions, seeds=[seed + k * n + i for i in range(n)], **SAMPLING) for k in range(seeds)]
    )


def unlike(pipe: Pipeline, memorized: Pairs, *, seeds: int = 8, seed: int = 0) -> np.ndarray:
    """Images that the model samples for the captions in other words, uint8 (3/4 seeds, captions, height, width, 3).

    Of `seeds` images, the quarter most similar to the training image is left out, because some replicate it.
    """
    images = sampled(pipe, memorized.other_wording("sampling what is unlike the training images"), seeds, seed)
    order = _distance(pipe, memorized, images).argsort(0, descending=True)[: seeds * 3 // 4]
    return np.stack([images[row, range(len(memorized))] for row in order.numpy()])


def _distance(pipe: Pipeline, memorized: Pairs, images: np.ndarray) -> torch.Tensor:
    """Distances of the latents of images from those of the training images, (seeds, captions)."""
    denoiser = as_denoiser(pipe)
    trained = denoiser.encode(memorized.images).flatten(1)
    return torch.stack([(denoiser.encode(part).flatten(1) - trained).norm(dim=1) for part in images]).cpu()
