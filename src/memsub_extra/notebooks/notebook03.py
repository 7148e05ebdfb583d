"""Notebook 03: do different sets of prompts mark the same weights?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

import numpy as np

from memsub.controls import random_masks
from memsub.neurons import WeightMasks
from memsub.overlap import disjoint_pairs, pairwise_iou
from memsub_extra.run.grid import Grid
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run
from memsub_extra.run.specs import Group
from memsub_extra.run.specs import Kind as PromptKind
from memsub_extra.store import Kind

from . import notebook01
from .listing import Notebook
from .subsets import Measured

OVERLAP = Kind("overlap")
PAPER = 0.01
"""The paper's sparsity."""
RANDOM_SETS = 3
"""Number of random masks whose overlap estimates chance; it hardly varies."""
Masks = Mapping[PromptKind, Sequence[WeightMasks]]


def again(run: Run) -> list[Grid]:
    """A few subsets captured with a second noise, and with the first noise but only the conditional half of calls."""
    grids = [run.grid.again(seed=run.parameters.capture.seed + 1), run.grid.again(cfg_half="cond")]
    for grid in grids:
        grid.statistics, grid.null()
    return grids


def sparsities(p: Parameters) -> dict[str, float]:
    """Sparsity of the paper, of shown masks, and of the edit, by name; equal values have one joined name."""
    named = {"the paper's": PAPER, "shown": p.mask_sparsity, "the edit's": p.spec.sparsity or PAPER}
    return {", ".join(n for n, s in named.items() if s == value): value for value in dict.fromkeys(named.values())}


def overlap(grid: Grid, kind: PromptKind, size: int) -> Measured:
    """IoU of the masks of every two subsets of a size that share no prompt, at every step."""
    members = grid.run.data.members(size)
    pairs = disjoint_pairs(members)

    def make() -> dict[str, np.ndarray]:
        masks = [grid.masks(Group.subset(kind, size, i)) for i in range(len(members))]
        return {"iou": pairwise_iou(masks, pairs=pairs).numpy()}

    iou = grid.run.store.arrays(OVERLAP, make, kind=kind, **_content(grid, size))["iou"]
    return Measured(iou, pairs, independent=len(pairs) == len(members) * (len(members) - 1) / 2)


def overlaps(masks: Masks, pairs: Sequence[tuple[int, int]]) -> dict[str, Measured]:
    """IoU of every two subsets at every step, by comparison.

    Args:
        masks: as from `Grid.smallest`.
        pairs: pairs of subsets of one kind that share no prompt; pairs without masks are skipped.
    """
    memorized, ordinary = masks["memorized"], masks["ordinary"]
    alike = [pair for pair in pairs if max(pair) < len(memorized)]
    crossed = list(product(range(len(memorized)), range(len(ordinary))))
    return {
        "memorized – memorized": Measured(pairwise_iou(memorized, pairs=alike).numpy(), alike),
        "ordinary – ordinary": Measured(pairwise_iou(ordinary, pairs=alike).numpy(), alike),
        "memorized – ordinary": Measured(pairwise_iou(memorized, ordinary, crossed).numpy(), crossed),
    }


def random_overlap(masks: Sequence[WeightMasks]) -> Measured:
    """IoU of random masks that match the first `RANDOM_SETS` masks in weights per row and step."""
    random = [random_masks(each, seed) for seed, each in enumerate(masks[:RANDOM_SETS])]
    return Measured(pairwise_iou(random).numpy(), list(combinations(range(len(random)), 2)))


def with_itself(masks: Masks, others: Masks) -> dict[str, Measured]:
    """IoU of each subset with itself, captured in two ways, by kind of prompts."""
    pairs = {kind: [(i, i) for i in range(min(len(masks[kind]), len(others[kind])))] for kind in masks}
    return {kind: Measured(pairwise_iou(masks[kind], others[kind], same).numpy(), same) for kind, same in pairs.items()}


def _content(grid: Grid, size: int) -> dict[str, object]:
    """Everything that the masks of the subsets of a size depend on, for the key of the store."""
    statistics, sparsity = grid.statistics, grid.run.parameters.mask_sparsity
    made = {"members": grid.run.data.members(size), "sparsity": sparsity, "provenance": statistics.provenance}
    return made | {"stats": statistics.prompts, "null": grid.null().prompts}


NOTEBOOK = Notebook(
    "03_subspace_overlap",
    experiments={"a second noise, and the conditional half": again},
    needs=(notebook01.NAME, "02_memorized_neurons"),
)
