"""What a removal takes at full size, before it begins: steps, time, memory and data.

    price("regrowth", "sd14", memorized=500)    # Price(steps=1800, ...)
    describe(parameters)                        # all of them, as lines of `memsub check sd14 --parts`

Nobody has made one of them on the published weights. Steps are what the removal's options say; the time is what its
network calls take at least, by the step that was measured on a GPU; the memory is that of a step on random weights,
where it was measured on a GPU (`tools.fullsize_removals`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from memsub.io.files import load_json
from memsub.models import find_model
from memsub_extra.run.parameters import Parameters

from ..notebooks.cost import KNOWN
from .fine_tuning import BATCH
from .removals import REMOVALS, displayed

CALLS = 4
"""Rows of a network call that a trained row counts as: forward, backward as two, and forward again for what gradient
checkpointing threw away. A teacher and an attack within the removal are not in it."""
RECIPE = "bfloat16, gradient checkpointing, optimizer='adafactor'"
"""How memory was measured."""


@dataclass(frozen=True)
class Price:
    """What a removal takes.

    Attributes:
        steps: of training, of `BATCH` pairs; 0 for one that does not train.
        minutes: at least, on the GPU that was measured; None where the model was not.
        gigabytes: peak of one step on that GPU; None where it was not measured.
        pairs: captions with their training images that it needs, besides ordinary pairs.
    """

    steps: int
    minutes: float | None
    gigabytes: float | None
    pairs: int


def price(name: str, model: str, memorized: int) -> Price:
    """What a removal of so many memorized pairs takes.

    Raises:
        ValueError: there is no such removal.
    """
    options: dict[str, Any] = REMOVALS.find(name).options
    steps = options.get("steps") or options.get("epochs", 0) * -(-memorized // BATCH)
    known = load_json(KNOWN)
    step = known["gpu"]["step_ms"].get(model)  # of a guided image: two rows
    minutes = steps * BATCH * CALLS * step / 2 / 60_000 if step and steps else None
    return Price(steps, minutes, known["removals"].get(model, {}).get(name), memorized)


def describe(p: Parameters) -> str:
    """Lines for the cost estimate; empty for models that were not measured, and for those of a known world."""
    model, known = find_model(p.model).name, load_json(KNOWN)
    if model not in known["gpu"]["step_ms"]:
        return ""
    rows = {displayed(n): price(n, model, p.grid.memorized) for n in REMOVALS if "," not in n and REMOVALS[n].objective}
    table = pd.DataFrame(
        {
            "steps": [of.steps for of in rows.values()],
            "minutes, at least": [of.minutes for of in rows.values()],
            "GB": [of.gigabytes for of in rows.values()],
        },
        index=pd.Index(rows, name=f"removal of {p.grid.memorized} pairs"),
    )
    return (
        f"removals that train, {BATCH} pairs a step, which nobody has made on these weights. Minutes: their own "
        f"network calls alone on one {known['gpu']['name']}, without attacks and teachers; GB: of one step there "
        f"({RECIPE}). Data: the images of the memorized captions, and ordinary pairs. A killed one resumes from its "
        "folder.\n"
        f"{table.round(1).to_string(na_rep='not measured')}"
    )
