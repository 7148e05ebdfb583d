"""How much sets of prompts share: IoU of their masks, for every pair, step and layer (METHOD, step 6).

overlap = pairwise_iou([masks_a, masks_b, masks_c])     # (pairs, steps, layers)
overlap.mean(0).mean(0)                                 # a curve per layer
overlap.mean(0).mean(1)                                 # a curve per step
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import torch

from .neurons import WeightMasks


def pairwise_iou(
    sets: Sequence[WeightMasks],
    others: Sequence[WeightMasks] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> torch.Tensor:
    """IoU of every two of `sets`, or of each of them with each of `others`; 0 where the union is empty.

    Args:
        pairs: which of `sets` to compare with which of `sets` (or of `others`); default all.

    Returns:
        float64, shape (pairs, steps, layers). Raises ValueError for fewer than two sets, or sets of different models.
    """
    everything = [*sets, *(others or [])]
    if len(everything) < 2:
        raise ValueError(f"an overlap needs two sets or more; got {len(everything)}.")
    first = everything[0]
    if len({(masks.provenance["model"], masks.steps) for masks in everything}) > 1:
        raise ValueError("these sets of masks were made from different models or with different numbers of steps.")
    if pairs is None:
        own = range(len(sets))
        pairs = list(combinations(own, 2) if others is None else product(own, range(len(others))))
    if others is not None:
        pairs = [(a, len(sets) + b) for a, b in pairs]
    a, b = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
    out = torch.zeros(len(pairs), first.steps, len(first.layers), dtype=torch.float64)
    n = len(everything)
    for column, name in enumerate(first.layers):
        layers = [masks.layers[name] for masks in everything]
        d, f = layers[0].shape
        member = torch.zeros(d * f, n, dtype=torch.uint8)  # a row a weight: which sets mark it
        for step in range(first.steps):
            found = [layer.flat(step) for layer in layers]
            marked = torch.cat([positions * n + i for i, positions in enumerate(found)])
            member.view(-1).index_fill_(0, marked, 1)
            # float32 counts exactly up to 16.7 million, and sums faster than integers
            shared = torch.stack([member.index_select(0, p).sum(0, dtype=torch.float32) for p in found]).double()
            member.view(-1).index_fill_(0, marked, 0)
            size, both = shared.diagonal(), shared[a, b]
            out[:, step, column] = both / (size[a] + size[b] - both).clamp(min=1)
    return out
