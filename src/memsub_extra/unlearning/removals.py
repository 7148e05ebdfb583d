"""Removals: edits that should leave a model as if it had never been trained on some images, by name.

    edit = REMOVALS["adversarial distillation"].edit(pipe, memorized, ordinary, folder="runs/removal")
    with pruned(pipe, edit): ...                # audit it (`memsub_extra.unlearning.audit`), or sample
    edit.save("edit.safetensors")

To add a removal, write a file in this folder and a line below. Another package lists its removals in the entry points
"memsub.removals".
"""

from __future__ import annotations

from memsub.registry import Registry

from .fine_tuning import variant
from .removal import Removal

_HERE = "memsub_extra.unlearning"


def _family(name: str, module: str) -> dict[str, str]:
    """The three forms of a fine-tuning: of its usual weights, of located ones, and of density-matched random ones."""
    forms = {name: "REMOVAL", variant(name, "located"): "LOCATED", variant(name, "random"): "RANDOM"}
    return {form: f"{_HERE}.{module}:{attribute}" for form, attribute in forms.items()}


REMOVALS: Registry[Removal] = Registry(
    "memsub.removals",
    "removal",
    {
        "pruning": f"{_HERE}.pruning:PRUNING",
        "pruning, against ordinary": f"{_HERE}.pruning:AGAINST_ORDINARY",
        "pruning, against other wording": f"{_HERE}.pruning:AGAINST_OTHER_WORDING",
        "pruning, half of the layers": f"{_HERE}.pruning:HALF_OF_THE_LAYERS",
        "adversarial pruning": f"{_HERE}.pruning:UNDER_ATTACK",
        "pruning at 1 %": f"{_HERE}.pruning:ONE_PERCENT",
        **_family("adversarial fine-tuning", "adversarial"),
        **_family("SISS", "siss"),
        **_family("ReTrack", "retrack"),
        **_family("adversarial distillation", "distillation"),
        **_family("regrowth", "regrowth"),
        "training anew": f"{_HERE}.regrowth:WITHOUT_TEACHER",
        **_family("further training", "further_training"),
    },
)
"""Removals by name. The shipped tables contain these names; `displayed` gives the ones that are shown."""
_WORDS = {"training anew": "training, re-initialized", "as many random weights": "density-matched random weights"}


def displayed(name: str) -> str:
    """The name of a removal as tables and figures show it."""
    for key, words in _WORDS.items():
        name = name.replace(key, words)
    return name
