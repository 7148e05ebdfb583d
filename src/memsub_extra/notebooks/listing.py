"""The notebooks of a run and their experiments: one module for each notebook, listed by name.

    NOTEBOOKS["04_pruning"].experiments["sweep"](run)      # a table of notebook 04
    precompute(run)                                        # all experiments of all notebooks

An experiment is a function of a run. Its cost is estimated by the same function, on a model that only counts
(`memsub_extra.notebooks.cost`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from memsub.models import ModelInfo
from memsub.registry import Registry


@dataclass(frozen=True)
class Notebook:
    """A notebook, notebooks/<name>.ipynb.

    Attributes:
        name: name of the file without suffix.
        needs_world: world whose models it requires; empty for notebooks that apply to any model.
        experiments: the functions that make network calls, by title.
        needs: names of notebooks whose experiments it reads; it starts after them.
    """

    name: str
    needs_world: str = ""
    experiments: Mapping[str, Callable[[Any], object]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def suits(self, model: ModelInfo) -> bool:
        """Whether it can be run on a model."""
        return self.needs_world in ("", model.world)


NOTEBOOKS: Registry[Notebook] = Registry(
    "memsub.notebooks",
    "notebook",
    {
        "00_testbed": "memsub_extra.notebooks.notebook00:NOTEBOOK",
        "01_activation_capture": "memsub_extra.notebooks.notebook01:NOTEBOOK",
        "02_memorized_neurons": "memsub_extra.notebooks.notebook02:NOTEBOOK",
        "03_subspace_overlap": "memsub_extra.notebooks.notebook03:NOTEBOOK",
        "04_pruning": "memsub_extra.notebooks.notebook04:NOTEBOOK",
        "05_attack_evaluation": "memsub_extra.notebooks.notebook05:NOTEBOOK",
    },
)
"""In the order of execution."""


def of_model(model: ModelInfo) -> list[Notebook]:
    """The notebooks that suit a model, in order of their names."""
    return [NOTEBOOKS[name] for name in sorted(NOTEBOOKS) if NOTEBOOKS[name].suits(model)]


def precompute(run: Any) -> None:
    """Runs all experiments of the notebooks that suit the run's model, which store their results."""
    for notebook in of_model(run.info):
        for experiment in notebook.experiments.values():
            experiment(run)
