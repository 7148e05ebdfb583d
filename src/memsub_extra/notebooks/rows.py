"""Rows of the notebooks' tables: which model each is of.

rows = [Row({"model": "unedited"}), Row({"model": "pruned"}, spec), *twin_row(run, model=TWIN)]
evaluated(run, rows, part="report", description="pruned models")        # a table
for model in under_attack(run): ...                                     # unedited, pruned, at random, twin
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from memsub.models import Denoiser
from memsub_extra.run.model import Model
from memsub_extra.run.run import TWIN, Run
from memsub_extra.run.specs import EditSpec


@dataclass(frozen=True)
class Row:
    """A model of a table.

    Attributes:
        labels: what the table calls it, by column.
        spec: how its edit is made; None: it has none.
        twin: the twin instead.
    """

    labels: dict[str, Any]
    spec: EditSpec | None = None
    twin: bool = False

    def model(self, run: Run) -> Model:
        name = str(next(iter(self.labels.values()), ""))
        if self.twin:
            return Model(name, run.twin_pipe)
        return Model(name, run.pipe, run.grid.edit(self.spec) if self.spec else None)


def twin_row(run: Run, **labels: Any) -> list[Row]:
    """The twin as a row of a table, where the model has one."""
    return [Row(labels, twin=True)] if run.info.twin else []


def evaluated(run: Run, rows: Sequence[Row], part: str, description: str) -> pd.DataFrame:
    """`Scores.evaluate` of each row's model, on prompts of a part of the split that did not locate its edit."""
    table = []
    for row in tqdm(rows, desc=description):
        located_on = run.data.located_on(row.spec.located_on) if row.spec else []
        table.append(row.labels | run.scores.evaluate(row.model(run), run.data.held_out(located_on, part)))
    return pd.DataFrame(table)


def under_attack(run: Run, with_random: bool = True) -> list[Model]:
    """The models that notebooks compare: unedited, pruned, density-matched random, and the twin where there is one.

    Args:
        with_random: random weights leave the training images where they are: an attack has nothing to bring back.
    """
    models = [run.unedited, run.model()]
    if with_random:
        models.append(run.model(run.parameters.spec.changed(random=0), "pruned at random"))
    return [*models, *([run.twin] if run.twin else [])]


def gradient_rows(denoiser: Denoiser) -> int:
    """Rows of a network call that keeps its activations for a gradient: four at 64 x 64 latents, about 10 GB."""
    return max(4, 4 * 64**2 // denoiser.latent_shape[1] ** 2)


__all__ = ["TWIN", "Row", "evaluated", "gradient_rows", "twin_row", "under_attack"]
