"""Notebook 02: how many weights do memorized prompts mark, and ordinary ones?"""

from __future__ import annotations

import numpy as np

from memsub.activations import ActivationStats
from memsub.neurons import locate, row_budget
from memsub_extra.run.grid import KINDS, Grid
from memsub_extra.run.run import Run
from memsub_extra.run.specs import Group

from . import notebook01
from .listing import Notebook
from .subsets import Measured


def all_steps(run: Run) -> ActivationStats:
    """Statistics of a few subsets at all steps; of those of the grid where it was captured at all."""
    return run.grid.all_steps.statistics


def density(grid: Grid, sparsity: float | None = None, steps: int | None = None) -> dict[str, Measured]:
    """Share of the weights (%) that every smallest subset marks, by kind of prompts; arguments as of `Grid.masks`."""
    units = [(i,) for i in range(grid.subsets)]
    groups = {kind: [Group.subset(kind, grid.sizes[0], i) for i in range(grid.subsets)] for kind in KINDS}
    marked = {kind: [100 * grid.masks(group, sparsity, steps).density() for group in groups[kind]] for kind in KINDS}
    return {kind: Measured(np.stack([d.numpy() for d in of]).astype(float), units) for kind, of in marked.items()}


def larger(grid: Grid, steps: int) -> dict[str, Measured]:
    """Of the largest weights of a row for one side, the share (%) that is larger than for the other, at the first steps.

    "memorized" and "ordinary": largest for a subset, as the rule asks. "memorized, exchanged" and "ordinary,
    exchanged": largest for the empty prompt, and larger than for the subset. Of exchangeable sides both are equal.
    """
    sparsity, null = grid.run.parameters.mask_sparsity, grid.null().only(steps=steps)
    units = [(i,) for i in range(grid.subsets)]
    shares: dict[str, Measured] = {}
    for kind in KINDS:
        sets = [grid.statistics.only(str(Group.subset(kind, grid.sizes[0], i)), steps) for (i,) in units]
        for name, pairs in ((kind, [(s, null) for s in sets]), (f"{kind}, exchanged", [(null, s) for s in sets])):
            masks = [locate(grid.pipe, ours, theirs, sparsity) for ours, theirs in pairs]
            allowed = [row_budget(sparsity, layer.shape[1]) / layer.shape[1] for layer in masks[0].layers.values()]
            values = np.stack([100 * m.density().numpy().astype(float) / allowed for m in masks])
            shares[name] = Measured(values, units)
    return shares


NOTEBOOK = Notebook("02_memorized_neurons", experiments={"capture at all steps": all_steps}, needs=(notebook01.NAME,))
