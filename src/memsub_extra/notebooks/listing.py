"""The notebooks of a run, and what each computes: a module a notebook, listed by name.

    NOTEBOOKS["04_pruning"].experiments["sweep"](run)      # the table that notebook 04 shows
    precompute(run)                                        # everything that takes time, of all notebooks

An experiment is a function of a run. It is written once: what it costs is what it asks of a model that only counts
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
    """A file notebooks/<name>.ipynb.

    Attributes:
        name: of the file, without its ending.
        needs_world: the world that it is about, whose models it is for; empty: for any model.
        experiments: what of it asks for network calls, by title.
        needs: the names of notebooks whose experiments it reads; side by side it begins after them.
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
    """All that the notebooks take from a GPU."""
    for notebook in of_model(run.info):
        for experiment in notebook.experiments.values():
            experiment(run)
