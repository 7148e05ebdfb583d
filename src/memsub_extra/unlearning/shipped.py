"""What ships of the removals: audits and images of all of them, and the edit of one that takes no minutes to make.

    audits()["unedited"]["attack"]          # tables of `audit.audited`, by model
    images()["twin, attacked"]              # a model's images for the first captions of the forget set
    edits()                                 # name to file, for `Edit.load`
    costs(), training_minutes()             # CPU-core minutes of the removals, and of training the UNet
    membership()                            # the exact membership test of some models, one row per model and caption
    membership_p()                          # ... and its p-values, one row per pair

`python -m tools.removals --ship` writes them; `python -m tools.membership --ship` writes the last two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

_KIND, _IMAGES = "Images", "images.safetensors"
_MEMBERSHIP, _MEMBERSHIP_P = "membership_test.json", "membership_test.parquet"
"""Files that differ from the audits' table membership, which tests only the forget set, with fewer steps."""
GIVEN = {"its own": "its own caption", "other wording": "its caption without the tail", "empty": "the empty caption"}
"""Captions that models get in the membership test: values of its column caption, and their titles in figures."""


def folder() -> Path:
    """The folder of all shipped files of the removals."""
    return weights_folder() / "removals"


def belongs_to(model: ModelInfo) -> bool:
    """Whether the shipped files belong to this model."""
    return Path(model.source) == weights_folder()


@cache
def audits() -> dict[str, dict[str, pd.DataFrame]]:
    """The tables of each model, in the order in which they were audited.

    Raises:
        FileNotFoundError: nothing ships.
    """
    tables = {name: load_table(path) for name in TABLES if (path := folder() / f"{name}.parquet").is_file()}
    models = tables["replication"]["model"].unique()
    return {
        model: {name: table[table["model"] == model].reset_index(drop=True) for name, table in tables.items()}
        for model in models
    }


@cache
def long_attack() -> pd.DataFrame:
    """Work of a longer attack on some models: `attack_work`, with columns model, start, pairs. Empty if none ships."""
    path = folder() / "long_attack.parquet"
    return load_table(path) if path.is_file() else pd.DataFrame(columns=["model"])


@cache
def membership() -> pd.DataFrame:
    """The exact membership test at twelve steps of the schedule, with more pairs and captions than in an audit.

    Returns:
        One row per caption that the models got, and model, controls first: model, caption (a key of `GIVEN`), n
        (pairs), mean (of p), low, high, least (share of pairs with the smallest p, with its interval), ks and holm
        (p-value of a test of uniformity, unadjusted and adjusted for all rows), against_twin (paired difference of
        mean p, with its interval), verdict, power and needed (of `equivalence`). For the twin itself, against_twin and
        verdict are None. Empty if none ships.
    """
    path = folder() / _MEMBERSHIP
    return pd.DataFrame(load_json(path) if path.is_file() else [])


@cache
def membership_p() -> pd.DataFrame:
    """P-values of the test in `membership`: columns model, caption, target (the pair's index), p."""
    return load_table(folder() / _MEMBERSHIP_P)


def ship_membership(rows: Sequence[Mapping[str, Any]], p_values: pd.DataFrame) -> None:
    """Writes the files that `membership` and `membership_p` read."""
    save_json([dict(row) for row in rows], folder() / _MEMBERSHIP)
    save_table(p_values, folder() / _MEMBERSHIP_P)


@cache
def costs() -> dict[str, dict[str, Any]]:
    """The cost of each removal: minutes (None if its making was interrupted), threads, bytes (of the edit)."""
    return load_json(folder() / "costs.json")


@cache
def training_minutes() -> float:
    """CPU-core minutes of training the model's UNet; NaN if it was not trained on a CPU."""
    log = load_json(weights_folder() / "training.json")["stages"]
    stages = [stage for name, stage in log.items() if name.startswith("unet") or name in ("base", "words", "model")]
    if not stages or not all("thread" in stage["on"] for stage in stages):
        return float("nan")
    return sum(stage["seconds"] * int(stage["on"].split()[0]) for stage in stages) / 60


def whole(names: Iterable[str]) -> list[str]:
    """The names without variants, which have a comma: "regrowth, the located weights" and "regrowth, seed 1"."""
    return [name for name in names if "," not in name]


def images() -> dict[str, np.ndarray]:
    """Images by description, "training images" first: uint8 (captions, height, width, 3) each."""
    tensors, about = load_tensors(folder() / _IMAGES, _KIND)
    return {name: tensors[name].numpy() for name in about["order"]}


def edits() -> dict[str, Path]:
    """Files of the shipped edits, by name of the removal; empty before `ship`."""
    listed = folder() / "edits.json"
    return {name: folder() / file for name, file in load_json(listed).items()} if listed.is_file() else {}


def ship(
    audited: Mapping[str, Mapping[str, pd.DataFrame]],
    long: Mapping[str, pd.DataFrame],
    costs: Mapping[str, Mapping[str, Any]],
    images: Mapping[str, np.ndarray],
    edits: Mapping[str, str],
) -> None:
    """Writes all files except the edits, which the caller saves: `edits` are their file names by removal."""
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
