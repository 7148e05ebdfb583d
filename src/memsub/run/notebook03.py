"""Notebook 03: do different sets of prompts mark the same weights?"""

from __future__ import annotations

import numpy as np
from tqdm.auto import tqdm

from ..controls import random_masks
from ..io.store import Kind
from ..neurons import WeightMasks
from ..overlap import pairwise_iou
from ..prompts import disjoint_pairs
from . import notebook01
from .notebooks import Notebook
from .run import Run
from .specs import Group
from .specs import Kind as PromptKind

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


NOTEBOOK = Notebook("03_subspace_overlap", needs=(notebook01.NAME,))
