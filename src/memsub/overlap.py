"""How much the masks of sets of prompts overlap: IoU for every pair, step and layer (METHOD, step 6).

    >>> one, other, third = (locate(pipe, stats, null, sparsity=s) for s in (0.05, 0.1, 0.2))
    >>> overlap = pairwise_iou([one, other, third])
    >>> overlap.shape                                       # (pairs, steps, layers)
    torch.Size([3, 3, 4])
    >>> per_layer, per_step = overlap.mean(0).mean(0), overlap.mean(0).mean(1)

    >>> subsets(4, size=2, count=2)                         # indices of two disjoint subsets of two prompts
    [[2, 0], [1, 3]]

IoU = |A and B| / |A or B|. One table with a row for each weight counts all pairs of a layer and step together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import torch

from .neurons import WeightMasks


def pairwise_iou(
    sets: Sequence[WeightMasks],
    others: Sequence[WeightMasks] | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> torch.Tensor:
    """IoU of every two of `sets`, or of each of them with each of `others`; 0 where the union is empty.

    Args:
        pairs: indices (i, j): compare set i with set j, or with j of `others`. Default: all pairs.

    Returns:
        float64, shape (pairs, steps, layers).

    Raises:
        ValueError: there are fewer than two sets, or they differ in model or number of steps.
    """
    everything = [*sets, *(others or [])]
    if len(everything) < 2:
        raise ValueError(f"an overlap needs two sets or more; got {len(everything)}.")
    first = everything[0]
    if len({(masks.provenance["model"], masks.steps) for masks in everything}) > 1:
        raise ValueError("these sets of masks were made from different models or with different numbers of steps.")
    if pairs is None:
        mine = range(len(sets))
        pairs = list(combinations(mine, 2) if others is None else product(mine, range(len(others))))
    if others is not None:
        pairs = [(a, len(sets) + b) for a, b in pairs]
    a, b = torch.tensor(pairs, dtype=torch.long, device="cpu").view(-1, 2).T
    iou = torch.zeros(len(pairs), first.steps, len(first.layers), dtype=torch.float64, device="cpu")
    n = len(everything)
    for column, name in enumerate(first.layers):
        layers = [masks.layers[name] for masks in everything]
        d, f = layers[0].shape
        member = torch.zeros(d * f, n, dtype=torch.uint8, device="cpu")  # a row a weight: which sets mark it
        for step in range(first.steps):
            marked = [layer.flat(step) for layer in layers]
            cells = torch.cat([positions * n + i for i, positions in enumerate(marked)])
            member.view(-1).index_fill_(0, cells, 1)
            # Row i of `shared`, (n, n), sums the table over the weights of set i: how many of them each set marks. Its
            # diagonal holds the sizes. float32 counts exactly up to 16.7 million, and sums faster than integers.
            shared = torch.stack([member.index_select(0, p).sum(0, dtype=torch.float32) for p in marked]).double()
            member.view(-1).index_fill_(0, cells, 0)  # for the next step, without clearing the whole table
            size, both = shared.diagonal(), shared[a, b]
            iou[:, step, column] = both / (size[a] + size[b] - both).clamp(min=1)
    return iou


def subsets(prompts: int, size: int, count: int, seed: int = 0) -> list[list[int]]:
    """`count` subsets of `size` indices below `prompts`, disjoint if there are enough indices.

    The indices are shuffled and cut into disjoint subsets; when they run out, they are shuffled again. Subsets of
    different shuffles may share prompts, which makes their masks overlap. `disjoint_pairs` lists those that do not.

    Raises:
        ValueError: `size` is larger than `prompts`.
    """
    if not 1 <= size <= prompts:
        raise ValueError(f"subsets of {size} prompts were asked for, but there are {prompts}.")
    rng = np.random.default_rng(seed)
    chosen: list[list[int]] = []
    while len(chosen) < count:
        order = rng.permutation(prompts).tolist()
        chosen += [order[i : i + size] for i in range(0, prompts - size + 1, size)]
    return chosen[:count]


def disjoint_pairs(members: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of subsets that share no prompt."""
    return [(i, j) for i, j in combinations(range(len(members)), 2) if set(members[i]).isdisjoint(members[j])]
