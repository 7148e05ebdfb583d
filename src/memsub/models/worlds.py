"""The world that a model was trained on, from its row or from a file in its folder.

    world_of(find_model("tiny"))                # None for a model whose training data are not known in full
    find_model("runs/canaries").world           # "canaries", from runs/canaries/world.json

The file `world.json` names the world. Other files beside it describe the model to that world, whose `of(folder)` reads
them. The subfolders `twin` and `other` hold the control models, and may contain such files as well.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..io.files import load_json
from .known import WORLDS, ModelInfo

FILE = "world.json"
CONTROLS = ("twin", "other")
"""Subfolders with control models (`ModelInfo.controls`)."""


def world_of(row: ModelInfo) -> Any:
    """The `memsub.world.World` of a model; None if its training data are not known in full.

    Raises:
        ValueError: no world has this name.
    """
    if not row.world:
        return None
    world = WORLDS.find(row.world)
    return world.of(Path(row.source)) if hasattr(world, "of") else world


def of_folder(row: ModelInfo) -> ModelInfo:
    """The row of a model whose folder holds a world.json, with its world and its controls.

    Raises:
        ValueError: the file names no world that is registered.
    """
    folder = Path(row.source)
    about = load_json(folder / FILE)
    name = about.get("world") if isinstance(about, dict) else None
    if not isinstance(name, str) or name not in WORLDS:
        raise ValueError(f"{folder / FILE} names no world that is known; expected one of {', '.join(WORLDS)}.")
    controls = {c: str(folder / c) for c in CONTROLS if (folder / c / "model_index.json").is_file()}
    return replace(row, world=name, controls=controls)
