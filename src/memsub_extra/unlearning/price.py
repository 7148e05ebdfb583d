"""What a removal takes at full size, before it begins: steps, time, memory and data.

    print(price("regrowth", "sd14", memorized=500))     # steps, minutes, GB, pairs; it names what was not measured
    describe(parameters)                        # all removals, as lines of `memsub check sd14 --parts`

No removal was made on the published weights yet. Steps follow from the removal's options. The time is that of all its
network calls, attacks and teachers included, from the measured time of a step on a GPU. The memory is that of one step
on random weights, if this was measured on a GPU (`tools.fullsize_removals`).
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
from .pruning import NOISES
from .removals import REMOVALS, displayed

CAPTURED = 10
"""Sampling steps that adversarial pruning captures in each round: its default for every model."""
RECIPE = "bfloat16, gradient checkpointing, optimizer='adafactor'"
"""Settings in which memory was measured."""


@dataclass(frozen=True)
class Rows:
    """Numbers of rows of network calls in a step of a removal; tests/test_removal.py counts them.

    Attributes:
        trained: rows with a gradient with respect to the weights, which is computed `gradients` times.
        attacked: rows with a gradient with respect to the embeddings.
        watched: rows without a gradient, such as a teacher's.
        ordinary: rows of ordinary pairs among all of these.
    """

    trained: int = 0
    attacked: int = 0
    watched: float = 0
    ordinary: int = 2 * BATCH
    gradients: int = 1

    @property
    def forward(self) -> float:
        """The number of rows without a gradient that cost as much. A backward pass counts as one row for the gradient
        of the inputs, one for that of the weights, and one for what gradient checkpointing computes again."""
        return self.trained * (1 + 3 * self.gradients) + self.attacked * 3 + self.watched


OF_A_STEP = {
    "adversarial fine-tuning": Rows(trained=2 * BATCH, attacked=50 * 2 * BATCH, ordinary=BATCH),
    "SISS": Rows(trained=BATCH, gradients=3, ordinary=0),
    "ReTrack": Rows(trained=2 * BATCH, ordinary=BATCH),
    "adversarial distillation": Rows(trained=4 * BATCH, attacked=4 * BATCH, watched=2 * BATCH),
    "regrowth": Rows(trained=2 * BATCH, watched=2 * BATCH * 400 / 1800),  # 400 of 1800 steps have a teacher
    "training anew": Rows(trained=2 * BATCH),
    "further training": Rows(trained=2 * BATCH),
}
"""Rows in a step of the removals that train, by name."""


@dataclass(frozen=True)
class Price:
    """The cost of a removal.

    Attributes:
        steps: training steps of `BATCH` pairs; for a removal that does not train, iterations of its attacks per pair.
        minutes: minutes of its network calls on the measured GPU; None if the time of the model's steps or the number
            of the removal's calls is unknown, or if it neither trains nor attacks.
        gigabytes: peak memory of one step on that GPU; None if it was not measured.
        pairs: number of captions with training images that are removed.
        ordinary: number of ordinary pairs shown in all steps, repetitions included.
        wordings: whether it needs other wordings of the captions.
        unknown: sentences that say what is not known, and why.
    """

    steps: int
    minutes: float | None
    gigabytes: float | None
    pairs: int
    ordinary: int = 0
    wordings: bool = False
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        """All attributes in one line of text."""
        parts = [f"{self.steps:,} steps" if self.steps else "no steps: it neither trains nor attacks"]
        parts += [f"{self.minutes:.1f} minutes"] if self.minutes is not None else []
        parts += [f"{self.gigabytes:.1f} GB"] if self.gigabytes is not None else []
        parts.append(f"{self.pairs:,} pairs" + (" with other wordings" if self.wordings else ""))
        parts += [f"ordinary pairs shown {self.ordinary:,} times in all"] if self.ordinary else []
        return ". ".join([", ".join(parts), *self.unknown]) + "."


def price(name: str, model: str, memorized: int) -> Price:
    """The cost of removing this number of memorized pairs.

    Args:
        model: name of a model. Minutes and memory are known for those measured on a GPU, sd14 and sd20; for others
            only steps and data, and `unknown` says so. Give the measured model that is as large as yours.

    Raises:
        ValueError: there is no such removal.
    """
    removal, known = REMOVALS.find(name), load_json(KNOWN)
    options: dict[str, Any] = removal.options
    steps = options.get("steps") or options.get("epochs", 0) * -(-memorized // BATCH)
    of_a_step = OF_A_STEP.get(name.partition(",")[0], Rows(ordinary=0))
    rows = steps * of_a_step.forward
    if name == "adversarial pruning":
        rounds, iterations = options["rounds"], options["iterations"]
        steps = rounds * iterations
        captured = (1 + rounds) * memorized * 2 * CAPTURED
        rows = steps * memorized * Rows(attacked=NOISES).forward + captured
    guided = known["gpu"]["step_ms"].get(model)  # of an image: two rows
    minutes = rows * guided / 2 / 60_000 if guided and rows else None
    gigabytes = known["removals"].get(model, {}).get(name)
    unknown = []
    if guided is None:
        measured = " and ".join(sorted(known["gpu"]["step_ms"]))
        unknown.append(
            f"Minutes and memory of {model!r} are not known: on a GPU {measured} were measured. Name the one that it "
            "is as large as"
        )
    elif gigabytes is None:
        unknown.append(f"The memory of this removal was not measured on {model}")
    if steps and not rows:
        unknown.append("Minutes are not known: nobody counted the network calls of its steps")
    data = steps * of_a_step.ordinary
    return Price(steps, minutes, gigabytes, memorized, data, removal.needs_wording, tuple(unknown))


def describe(p: Parameters) -> str:
    """Lines for the cost estimate; empty for models that were not measured on a GPU."""
    model, known = find_model(p.model).name, load_json(KNOWN)
    if model not in known["gpu"]["step_ms"]:
        return ""
    prices = {n: price(n, model, p.grid.memorized) for n in REMOVALS if "," not in n}
    rows = {displayed(name): of for name, of in prices.items() if of.steps}
    table = pd.DataFrame(
        {
            "steps": [of.steps for of in rows.values()],
            "minutes": [of.minutes for of in rows.values()],
            "GB": [of.gigabytes for of in rows.values()],
            "ordinary pairs shown": [of.ordinary for of in rows.values()],
            "other wordings": ["needed" if of.wordings else "" for of in rows.values()],
        },
        index=pd.Index(rows, name=f"removal of {p.grid.memorized} pairs"),
    ).astype({"minutes": float, "GB": float})
    return (
        f"removals that train or attack, which nobody has made on these weights. Steps: of {BATCH} pairs; of "
        "adversarial pruning, iterations of its attack on each. Minutes: network calls of the steps, attacks and "
        f"teachers included, on one {known['gpu']['name']}; GB: of one step there ({RECIPE}). Data: the images of the "
        "memorized captions, and ordinary pairs, all in memory (0.8 MB each at 512 pixels). A killed one resumes "
        "from its folder.\n"
        f"{table.round(1).to_string(na_rep='not measured')}"
    )
