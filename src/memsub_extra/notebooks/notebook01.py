"""Notebook 01: the layers and activations that the method uses. Later notebooks read its statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch

from memsub.activations import ActivationStats
from memsub_extra.run.grid import KINDS, Grid
from memsub_extra.run.run import Run
from memsub_extra.run.specs import Group

from .listing import Notebook
from .subsets import Measured

Norms = dict[str, torch.Tensor]
"""Layer name to a_j / sqrt(m), (steps, neurons)."""


def captured(run: Run) -> tuple[ActivationStats, ActivationStats]:
    """Statistics of all groups of prompts, and of the empty prompt."""
    return run.grid.statistics, run.grid.null()


def controls(run: Run) -> list[ActivationStats]:
    """Statistics of the smallest subsets and the empty prompt in each control model, at the steps that edits unite."""
    grids = [run.grid.in_model(model) for model in run.controls.values()]
    return [stats for grid in grids for stats in (grid.statistics, grid.null())]


def by_subset(grid: Grid, measure: Callable[[Norms, Norms], torch.Tensor]) -> dict[str, Measured]:
    """A measure that compares the norms of every smallest subset with those of the empty prompt, by kind of prompts.

    Args:
        measure: norms of a set and norms of the empty prompt to (steps, layers).
    """
    null, size = grid.null().norms(), grid.sizes[0]
    values = {
        kind: [measure(grid.statistics.norms(str(Group.subset(kind, size, i))), null) for i in range(grid.subsets)]
        for kind in KINDS
    }
    units = [(i,) for i in range(grid.subsets)]
    return {kind: Measured(torch.stack(sets).numpy().astype(float), units) for kind, sets in values.items()}


NAME = "01_activation_capture"
NOTEBOOK = Notebook(NAME, experiments={"capture of the grid": captured, "capture in control models": controls})
