"""What ships of the removals: audits of all of them, images, and the edits of some.

    audits()["unedited"]["attack"]          # tables of `audit.audited`, by model
    images()["twin, attacked"]              # of the first captions of the forget set, by model
    edits()                                 # name to file, for `Edit.load`

`python -m tools.removals --ship` writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from memsub.io.files import load_json, load_tensors, save_artifact, save_json
from memsub.models import ModelInfo
from memsub.testbed.dataset import weights_folder
from memsub_extra.files import load_table, save_table

from .audit import TABLES
from .pairs import FORGET_SET, HELD_OUT, UNSEEN

_SECOND_EDITION = {"removed": FORGET_SET, "unseen": HELD_OUT, "fresh": UNSEEN, "removed pairs": f"{FORGET_SET} pairs"}
"""What tables of the second edition call the kinds of pairs."""
_NAMES = (FORGET_SET, f"{FORGET_SET} pairs")
"""One of them stands in every table of today."""
_KIND, _IMAGES = "Pictures", "pictures.safetensors"  # of the file that ships, which stays as it is


def folder() -> Path:
    """Where all of it lies."""
    return weights_folder() / "removals"


def belongs_to(model: ModelInfo) -> bool:
    """Whether all of it was made of this model."""
    return Path(model.source) == weights_folder()


@cache
def audits() -> dict[str, dict[str, pd.DataFrame]]:
    """The tables of each model, in the order in which they were audited.

    Raises:
        FileNotFoundError: nothing ships.
    """
    tables = {name: _named(load_table(path)) for name in TABLES if (path := folder() / f"{name}.parquet").is_file()}
    models = tables["replication"]["model"].unique()
    return {
        model: {name: table[table["model"] == model].reset_index(drop=True) for name, table in tables.items()}
        for model in models
    }


@cache
def long_attack() -> pd.DataFrame:
    """Work of a longer attack on some models: `attack_work`, columns model, start and pairs more."""
    return _named(load_table(folder() / "long_attack.parquet"))


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """A table with the kinds of pairs by their names of today. It is of the second edition if it has one of its own."""
    columns = [name for name in ("pairs", "taught") if name in table and not table[name].isin(_NAMES).any()]
    return table.replace(dict.fromkeys(columns, _SECOND_EDITION)) if columns else table


@cache
def costs() -> dict[str, dict[str, Any]]:
    """What each removal took: minutes, threads, bytes."""
    return load_json(folder() / "costs.json")


def whole(names: Iterable[str]) -> list[str]:
    """Without the variants among them, whose names have a comma: "regrowth, located" is one of "regrowth"."""
    return [name for name in names if "," not in name]


def images() -> dict[str, np.ndarray]:
    """Images by what they are, "training images" first; uint8 (captions, height, width, 3) each."""
    tensors, about = load_tensors(folder() / _IMAGES, _KIND)
    return {name: tensors[name].numpy() for name in about["order"]}


def edits() -> dict[str, Path]:
    """Files of the edits that ship, by name of their removal; none before `ship`."""
    listed = folder() / "edits.json"
    return {name: folder() / file for name, file in load_json(listed).items()} if listed.is_file() else {}


def ship(
    audited: Mapping[str, Mapping[str, pd.DataFrame]],
    long: Mapping[str, pd.DataFrame],
    costs: Mapping[str, Mapping[str, Any]],
    images: Mapping[str, np.ndarray],
    edits: Mapping[str, str],
) -> None:
    """Writes the folder, but for the edits themselves: `edits` are their files' names."""
    for name in TABLES:
        parts = [tables[name].assign(model=model) for model, tables in audited.items() if name in tables]
        if not parts:
            continue
        save_table(pd.concat(parts, ignore_index=True), folder() / f"{name}.parquet")
    if long:
        attacked = pd.concat([work.assign(model=model) for model, work in long.items()], ignore_index=True)
        save_table(attacked, folder() / "long_attack.parquet")
    save_json(dict(costs), folder() / "costs.json")
    save_json(dict(edits), folder() / "edits.json")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in images.items()}
    save_artifact(tensors, folder() / _IMAGES, _KIND, {"order": list(images)})
