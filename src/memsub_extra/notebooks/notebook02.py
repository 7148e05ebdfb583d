"""Notebook 02: how many weights do memorized prompts mark, and ordinary ones?"""

from __future__ import annotations

from memsub.neurons import WeightMasks
from memsub_extra.run.run import Run
from memsub_extra.run.specs import Group

from . import notebook01
from .listing import Notebook


def masks(run: Run) -> dict[str, list[WeightMasks]]:
    """Masks of every subset of the smallest size, by kind of prompts."""
    size, count = run.parameters.grid.sizes[0], run.parameters.grid.subsets
    return {
        "memorized": [run.grid.masks(Group.subset("memorized", size, i)) for i in range(count)],
        "ordinary": [run.grid.masks(Group.subset("ordinary", size, i)) for i in range(count)],
    }


NOTEBOOK = Notebook("02_memorized_neurons", needs=(notebook01.NAME,))
