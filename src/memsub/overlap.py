"""How much sets of prompts share: IoU of their masks, for every pair, step and layer (METHOD, step 6).

overlap = pairwise_iou([masks_a, masks_b, masks_c])     # (pairs, steps, layers)
overlap.mean(0).mean(0)                                 # a curve per layer
overlap.mean(0).mean(1)                                 # a curve per step
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import torch

from .neurons import NeuronMasks


def pairwise_iou(
    sets: Sequence[NeuronMasks],
    others: Sequence[NeuronMasks] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> torch.Tensor:
    """IoU of every two of `sets`, or of each of them with each of `others`; 0 where the union is empty.

    Args:
        pairs: which of `sets` to compare with which of `sets` (or of `others`); default all.

    Returns:
        float64, shape (pairs, steps, layers).

    Raises:
        ValueError: fewer than two sets, or sets of different models or numbers of steps.
    """
    everything = [*sets, *(others or [])]
    first = everything[0] if everything else None
    if len(everything) < 2:
        raise ValueError(f"an overlap needs two sets or more; got {len(everything)}.")
    for masks in everything:
        if masks.made["model"] != first.made["model"] or masks.steps != first.steps:
            raise ValueError("these sets of masks were made from different models or with different numbers of steps.")
    if pairs is None:
        pairs = list(
            combinations(range(len(sets)), 2) if others is None else product(range(len(sets)), range(len(others)))
        )
    if others is not None:
        pairs = [(a, len(sets) + b) for a, b in pairs]
    out = torch.zeros(len(pairs), first.steps, len(first.layers), dtype=torch.float64)
    for column, name in enumerate(first.layers):
        layers = [masks.layers[name] for masks in everything]
        dense = torch.zeros(len(everything), layers[0].shape[0] * layers[0].shape[1], dtype=torch.bool)
        for step in range(first.steps):
            dense.zero_()
            found = [layer.flat(step) for layer in layers]
            for row, positions in zip(dense, found, strict=True):
                row[positions] = True
            for p, (a, b) in enumerate(pairs):
                shared = int(dense[b][found[a]].sum())
                union = len(found[a]) + len(found[b]) - shared
                out[p, step, column] = shared / union if union else 0.0
    return out
