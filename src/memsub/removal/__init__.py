"""Removals: edits that should leave a model as if it had never seen some pictures, by name.

    edit = REMOVALS["adversarial distillation"].edit(pipe, memorized, ordinary, folder="runs/removal")
    with pruned(pipe, edit): ...                # audit it (`memsub.audit`), or draw
    edit.save("edit.safetensors")

A new one is a function in a file of this folder and an entry in the registry of that file.
"""

from __future__ import annotations

from ..audit import Pairs
from . import adversarial, distillation, further_training, pruning, regrowth, retrack, siss
from .base import Removal

REMOVALS: dict[str, Removal] = {
    **pruning.REMOVALS,
    **adversarial.REMOVALS,
    **siss.REMOVALS,
    **retrack.REMOVALS,
    **distillation.REMOVALS,
    **regrowth.REMOVALS,
    **further_training.REMOVALS,
}
"""By name."""

__all__ = ["REMOVALS", "Pairs", "Removal"]
