"""Notebook 03: do different sets of prompts mark the same weights?"""

from __future__ import annotations

from itertools import combinations, product

import numpy as np

from memsub.controls import random_masks
from memsub.neurons import WeightMasks
from memsub.overlap import pairwise_iou
from memsub.prompts import disjoint_pairs
from memsub_extra.run.grid import KINDS, Grid
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run
from memsub_extra.run.specs import Group
from memsub_extra.run.specs import Kind as PromptKind
from memsub_extra.store import Kind

from . import notebook01
from .listing import Notebook
from .subsets import Measured

OVERLAP = Kind("overlap", version=2)
OVERLAPS = Kind("overlaps")
PAPER = 0.01
"""The paper's sparsity."""
RANDOM_SETS = 3
"""Whose overlap is what chance gives; it hardly varies."""
PAIRS = {
    "memorized – memorized": "memorized",
    "ordinary – ordinary": "ordinary",
    "memorized – ordinary": "across",
}
"""What is compared with what, and its name in the store."""


def again(run: Run) -> list[Grid]:
    """A few subsets captured from a second noise, and the conditional half of a guided call alone from the first."""
    grids = [run.grid.again(seed=run.parameters.capture.seed + 1), run.grid.again(cfg_half="cond")]
    for grid in grids:
        grid.statistics, grid.null()
    return grids


def sparsities(p: Parameters) -> dict[str, float]:
    """The paper's sparsity, that of masks that are shown, and the edit's, by name; equal ones under one name."""
    named = {"the paper's": PAPER, "shown": p.mask_sparsity, "the edit's": p.spec.sparsity or PAPER}
    return {", ".join(n for n, s in named.items() if s == value): value for value in dict.fromkeys(named.values())}


def overlap(grid: Grid, kind: PromptKind, size: int) -> Measured:
    """IoU of the masks of every two subsets of a size that share no prompt, at every step."""
    pairs = _disjoint(grid, size)

    def make() -> dict[str, np.ndarray]:
        return {"iou": pairwise_iou(_masks(grid, kind, size), pairs=pairs).numpy()}

    return Measured(grid.run.store.arrays(OVERLAP, make, kind=kind, **_content(grid, size))["iou"], pairs)


def overlaps(grid: Grid, sparsity: float | None = None, steps: int | None = None) -> dict[str, Measured]:
    """IoU of every two smallest subsets, by what is compared (`PAIRS`); other arguments as of `Grid.masks`."""
    size, every = grid.sizes[0], list(product(range(grid.subsets), repeat=2))
    pairs = {name: every if name == "across" else _disjoint(grid, size) for name in PAIRS.values()}

    def make() -> dict[str, np.ndarray]:
        memorized, ordinary = (_masks(grid, kind, size, sparsity, steps) for kind in KINDS)
        sides = {"memorized": (memorized, memorized), "ordinary": (ordinary, ordinary), "across": (memorized, ordinary)}
        return {name: pairwise_iou(*sets, pairs=pairs[name]).numpy() for name, sets in sides.items()}

    made = grid.run.store.arrays(OVERLAPS, make, steps=steps, **_content(grid, size, sparsity))
    return {title: Measured(made[name], pairs[name]) for title, name in PAIRS.items()}


def random_overlap(grid: Grid, sparsity: float | None = None, steps: int | None = None) -> Measured:
    """The same of random masks, with as many weights in each row at each step as those of memorized subsets."""
    masks = [grid.masks(Group.subset("memorized", grid.sizes[0], i), sparsity, steps) for i in range(RANDOM_SETS)]
    random = [random_masks(each, seed) for seed, each in enumerate(masks)]
    return Measured(pairwise_iou(random).numpy(), list(combinations(range(RANDOM_SETS), 2)))


def between_captures(grid: Grid, other: Grid, steps: int) -> dict[str, Measured]:
    """IoU of each smallest subset with itself, captured in two ways, at the first steps, by kind of prompts."""
    pairs = [(i, i) for i in range(min(grid.subsets, other.subsets))]
    sides = {kind: [_masks(each, kind, grid.sizes[0], steps=steps) for each in (grid, other)] for kind in KINDS}
    return {kind: Measured(pairwise_iou(*sets, pairs=pairs).numpy(), pairs) for kind, sets in sides.items()}


def _masks(
    grid: Grid, kind: PromptKind, size: int, sparsity: float | None = None, steps: int | None = None
) -> list[WeightMasks]:
    return [grid.masks(Group.subset(kind, size, i), sparsity, steps) for i in range(grid.subsets)]


def _disjoint(grid: Grid, size: int) -> list[tuple[int, int]]:
    return disjoint_pairs(grid.run.data.members(size)[: grid.subsets])


def _content(grid: Grid, size: int, sparsity: float | None = None) -> dict[str, object]:
    """What the masks of a size's subsets are a function of."""
    statistics, sparsity = grid.statistics, sparsity or grid.run.parameters.mask_sparsity
    made = {"members": grid.run.data.members(size), "sparsity": sparsity, "provenance": statistics.provenance}
    return made | {"stats": statistics.prompts, "null": grid.null().prompts}


NOTEBOOK = Notebook(
    "03_subspace_overlap",
    experiments={"a second noise, and the conditional half": again},
    needs=(notebook01.NAME, "02_memorized_neurons"),
)
