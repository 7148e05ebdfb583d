"""Removals: edits that should leave a model as if it had never seen some pictures, by name.

    edit = REMOVALS["adversarial fine-tuning"].edit(pipe, memorized, ordinary, folder="runs/removal")
    with pruned(pipe, edit): ...                # audit it (`memsub.audit`), or draw
    edit.save("edit.safetensors")

A new one is a function in a file of this folder and an entry in the registry of that file.
"""

from __future__ import annotations

from ..audit import Pairs
from . import pruning, training
from .base import Removal

REMOVALS: dict[str, Removal] = {**pruning.REMOVALS, **training.REMOVALS}
"""By name."""

__all__ = ["REMOVALS", "Pairs", "Removal"]
