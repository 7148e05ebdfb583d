"""Pictures to draw instead of those that are removed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..audit import SAMPLING, Pairs
from ..denoiser import Pipeline, as_denoiser
from ..generation import generate
from ..prompts import other_wording
from ..pruning import Edit, pruned


def surrogates(pipe: Pipeline, memorized: Pairs, edit: Edit, *, seeds: int = 4, seed: int = 0) -> np.ndarray:
    """For each memorized caption a picture to draw instead: of some draws of the edited model the one least like it.

    Likeness is that of latents, so that nothing is needed that knows the world.
    """
    with pruned(pipe, edit):
        drawn = drawings(pipe, memorized.captions, seeds, seed)
    best = _distance(pipe, memorized, drawn).argmax(0).tolist()
    return np.stack([drawn[k][i] for i, k in enumerate(best)])


def drawings(pipe: Pipeline, captions: Sequence[str], seeds: int, seed: int) -> np.ndarray:
    """Some pictures of each caption, uint8 (seeds, captions, height, width, 3)."""
    n = len(captions)
    return np.stack(
        [generate(pipe, captions, seeds=[seed + k * n + i for i in range(n)], **SAMPLING) for k in range(seeds)]
    )


def unlike(pipe: Pipeline, memorized: Pairs, *, seeds: int = 8, seed: int = 0) -> np.ndarray:
    """What the model itself draws for the captions in other words, uint8 (3/4 seeds, captions, height, width, 3).

    Of `seeds` draws those that are least like the training image: now and then the model replicates it all the same.
    """
    drawn = drawings(pipe, other_wording(memorized.captions), seeds, seed)
    order = _distance(pipe, memorized, drawn).argsort(0, descending=True)[: seeds * 3 // 4]
    return np.stack([drawn[row, range(len(memorized))] for row in order.numpy()])


def _distance(pipe: Pipeline, memorized: Pairs, drawn: np.ndarray) -> torch.Tensor:
    """Of latents from those of the training images, (seeds, captions)."""
    denoiser = as_denoiser(pipe)
    own = denoiser.encode(memorized.images).flatten(1)
    return torch.stack([(denoiser.encode(images).flatten(1) - own).norm(dim=1) for images in drawn]).cpu()
