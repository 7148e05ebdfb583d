"""Notebook 02: how many weights do memorized and ordinary prompts mark?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from memsub.activations import ActivationStats
from memsub.neurons import WeightMasks, locate, row_budget
from memsub_extra.run.grid import KINDS, Grid
from memsub_extra.run.run import Run
from memsub_extra.run.specs import Group

from . import notebook01
from .listing import Notebook
from .subsets import Measured


def all_steps(run: Run) -> ActivationStats:
    """Statistics of a few subsets at all steps; those of the whole grid if it was captured at all steps."""
    return run.grid.all_steps.statistics


def density(masks: Mapping[Any, Sequence[WeightMasks]]) -> dict[str, Measured]:
    """Share of the weights (%) that each subset marks, by kind of prompts; `masks` as from `Grid.smallest`."""
    return {kind: _shares(sets) for kind, sets in masks.items()}


def exchanged(grid: Grid, steps: int) -> dict[str, Measured]:
    """As `density` at the first steps, with the sides of the rule exchanged: weights that are among the largest of
    their row for the empty prompt, and larger for it than for a subset.
    """
    null, sparsity = grid.null().only(steps=steps), grid.run.parameters.mask_sparsity
    shares: dict[str, Measured] = {}
    for kind in KINDS:
        names = [str(Group.subset(kind, grid.sizes[0], i)) for i in range(grid.subsets)]
        shares[kind] = _shares([locate(grid.pipe, null, grid.statistics.only(n, steps), sparsity) for n in names])
    return shares


def of_largest(densities: Mapping[str, Measured], masks: WeightMasks) -> dict[str, Measured]:
    """Densities in percent of the largest number of weights that the sparsity of `masks` allows."""
    sparsity, widths = masks.provenance["sparsity"], [layer.shape[1] for layer in masks.layers.values()]
    allowed = np.array([row_budget(sparsity, f) / f for f in widths])
    return {kind: Measured(m.values / allowed, m.units) for kind, m in densities.items()}


def _shares(masks: Sequence[WeightMasks]) -> Measured:
    values = np.stack([100 * each.density().numpy().astype(float) for each in masks])
    return Measured(values, [(i,) for i in range(len(masks))])


NOTEBOOK = Notebook("02_memorized_neurons", experiments={"capture at all steps": all_steps}, needs=(notebook01.NAME,))
