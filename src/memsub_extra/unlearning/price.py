"""What a removal takes at full size, before it begins: steps, time, memory and data.

    print(price("regrowth", "sd14", memorized=500))     # steps, minutes, GB, pairs; of what nobody measured it says so
    describe(parameters)                        # all of them, as lines of `memsub check sd14 --parts`

Nobody has made one of them on the published weights. Steps are what the removal's options say; the time is that of its
network calls, attacks and teachers included, by the step that was measured on a GPU; the memory is that of a step on
random weights, where it was measured on a GPU (`tools.fullsize_removals`).
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
"""Steps that adversarial pruning captures in each round, whatever the model: its own default."""
RECIPE = "bfloat16, gradient checkpointing, optimizer='adafactor'"
"""How memory was measured."""


@dataclass(frozen=True)
class Rows:
    """Rows of network calls in a step of a removal; tests/test_removal.py counts them.

    Attributes:
        trained: whose gradient with respect to the weights is taken, `gradients` times.
        attacked: whose gradient with respect to the embeddings is taken.
        watched: without a gradient, such as a teacher's.
        ordinary: ordinary pairs among all of these.
    """

    trained: int = 0
    attacked: int = 0
    watched: float = 0
    ordinary: int = 2 * BATCH
    gradients: int = 1

    @property
    def forward(self) -> float:
        """As so many rows of a call without a gradient. A backward pass counts as one with respect to what comes in and
        one with respect to the weights, and as one more for what gradient checkpointing threw away."""
        return self.trained * (1 + 3 * self.gradients) + self.attacked * 3 + self.watched


OF_A_STEP = {
    "adversarial fine-tuning": Rows(trained=2 * BATCH, attacked=50 * 2 * BATCH, ordinary=BATCH),
    "SISS": Rows(trained=BATCH, gradients=3, ordinary=0),
    "ReTrack": Rows(trained=2 * BATCH, ordinary=BATCH),
    "adversarial distillation": Rows(trained=4 * BATCH, attacked=4 * BATCH, watched=2 * BATCH),
    "regrowth": Rows(trained=2 * BATCH, watched=2 * BATCH * 400 / 1800),  # there is a teacher in 400 steps of 1800
    "training anew": Rows(trained=2 * BATCH),
    "further training": Rows(trained=2 * BATCH),
}
"""Of those that train, by name."""


@dataclass(frozen=True)
class Price:
    """What a removal takes.

    Attributes:
        steps: of training, of `BATCH` pairs; of one that does not train, iterations of its attacks on a pair.
        minutes: of its network calls on the GPU that was measured; None where that was not, and for one that neither
            trains nor attacks.
        gigabytes: peak of one step on that GPU; None where it was not measured.
        pairs: captions with their training images that it needs.
        ordinary: how many ordinary pairs it shows, each as often as it is drawn from those that it is given.
        wordings: whether it needs other wordings of the captions.
        unknown: what is not known and why, sentences.
    """

    steps: int
    minutes: float | None
    gigabytes: float | None
    pairs: int
    ordinary: int = 0
    wordings: bool = False
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        """All of it, as a line of words."""
        parts = [f"{self.steps:,} steps" if self.steps else "no steps: it neither trains nor attacks"]
        parts += [f"{self.minutes:.1f} minutes"] if self.minutes is not None else []
        parts += [f"{self.gigabytes:.1f} GB"] if self.gigabytes is not None else []
        parts.append(f"{self.pairs:,} pairs" + (" with other wordings" if self.wordings else ""))
        parts += [f"ordinary pairs shown {self.ordinary:,} times in all"] if self.ordinary else []
        return ". ".join([", ".join(parts), *self.unknown]) + "."


def price(name: str, model: str, memorized: int) -> Price:
    """What a removal of so many memorized pairs takes.

    Args:
        model: a name. Minutes and memory are known of those that were measured on a GPU, sd14 and sd20; of any other
            the steps alone are, and `unknown` says so: give the one that yours is as large as.

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
    """Lines for the cost estimate; empty for models that were not measured, and for those of a known world."""
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
