"""Notebook 03: do different sets of prompts mark the same weights?"""

from __future__ import annotations

from itertools import product

import numpy as np
from tqdm.auto import tqdm

from memsub.controls import random_masks
from memsub.neurons import WeightMasks
from memsub.overlap import pairwise_iou
from memsub.prompts import disjoint_pairs
from memsub_extra.run.run import Run
from memsub_extra.run.specs import Group
from memsub_extra.run.specs import Kind as PromptKind
from memsub_extra.store import Kind

from . import notebook01
from .intervals import jackknife_interval
from .listing import Notebook

OVERLAP = Kind("overlap")
CONTROL = Kind("overlap-control")
RANDOM_SETS = 5
"""Of masks, whose overlap is what chance gives."""


def overlap(run: Run, kind: PromptKind, size: int) -> np.ndarray:
    """IoU of the masks of every two subsets of a size that share no prompt: (pairs, steps, layers)."""

    def make() -> dict[str, np.ndarray]:
        pairs = disjoint_pairs(run.data.members(size))
        return {"iou": pairwise_iou(_masks(run, kind, size), pairs=pairs).numpy()}

    return run.store.arrays(OVERLAP, make, kind=kind, **_content(run, size))["iou"]


def overlap_control(run: Run, size: int) -> dict[str, np.ndarray]:
    """As `overlap`: "across", of memorized with ordinary subsets; "random", of density-matched random masks."""

    def make() -> dict[str, np.ndarray]:
        memorized, ordinary = _masks(run, "memorized", size), _masks(run, "ordinary", size)
        bar = tqdm(memorized[:RANDOM_SETS], desc="random masks")
        random = [random_masks(masks, seed) for seed, masks in enumerate(bar)]
        return {"across": pairwise_iou(memorized, ordinary).numpy(), "random": pairwise_iou(random).numpy()}

    return run.store.arrays(CONTROL, make, **_content(run, size))


def _masks(run: Run, kind: PromptKind, size: int) -> list[WeightMasks]:
    return [run.grid.masks(Group.subset(kind, size, i)) for i in range(run.parameters.grid.subsets)]


def _content(run: Run, size: int) -> dict[str, object]:
    """What the masks of a size's subsets are a function of."""
    statistics, sparsity = run.grid.statistics, run.parameters.mask_sparsity
    made = {"members": run.data.members(size), "sparsity": sparsity, "provenance": statistics.provenance}
    return made | {"stats": statistics.prompts, "null": run.grid.null().prompts}


def ratio_without_a_subset(
    run: Run, size: int, values: np.ndarray, others: np.ndarray, crossed: bool = False
) -> list[float]:
    """Ratios of mean overlaps, mean(values) / mean(others), without each subset in turn, for a jackknife interval.

    Pairs share subsets, so subsets are the independent units.

    Args:
        values: one a pair of memorized (or ordinary) subsets that share no prompt.
        others: what they are compared with: as `overlap_control`, of all pairs of a memorized and an ordinary subset
            (`crossed`), or random masks, which no subset is left out of.
    """
    subsets = range(run.parameters.grid.subsets)
    pairs = disjoint_pairs(run.data.members(size))
    ratios = []
    for k in subsets:
        ours = values[[k not in pair for pair in pairs]].mean()
        theirs = others[[k not in pair for pair in product(subsets, repeat=2)]] if crossed else others
        ratios.append(float(ours / theirs.mean()))
    return ratios


def mean_interval(run: Run, size: int, values: np.ndarray) -> tuple[float, float]:
    """Jackknife interval of the mean overlap of the pairs of a size, over subsets."""
    without = ratio_without_a_subset(run, size, values, np.ones(1))
    return jackknife_interval(float(values.mean()), without)


NOTEBOOK = Notebook("03_subspace_overlap", needs=(notebook01.NAME,))
