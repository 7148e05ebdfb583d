"""Exact tests of canaries: their p-values, and the rates of small p-values.

    p = p_values(pipe, world)                     # a row for each canary: by generated image and by loss
    rates(p["membership_p"], world.alternatives_each)
    print("\n".join(calibration(report("runs/canaries"))))
    replicated(p["memorization_p"], world.alternatives_each)        # single canaries, if k allows it

Both p-values are ranks of the planted photograph among all photographs that might have been planted: by the similarity
with a generated image of the caption (memorization), and by the model's denoising loss (membership).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from memsub.io.files import load_json
from memsub.measure.exact import ALTERNATIVES, LEVEL, exact_p, uniformity
from memsub.measure.membership import MEMBERSHIP_ALTERNATIVES, STEPS, membership_p
from memsub.measure.noise import noise_seeds
from memsub.models import Pipeline, find_model, generate, load_pipeline, sampler_fingerprint, world_of
from memsub_extra.notebooks.intervals import smallest_share
from memsub_extra.store import Kind, Store

from .photographs import load
from .planting import FILE
from .world import Canaries

TESTED = Kind("p-values")
SAMPLING: dict[str, Any] = {"steps": 50, "guidance_scale": 7.5, "batch_size": 8}
"""How images of the canaries' captions are generated."""
MEASURES = ("memorization", "membership")
LEVEL_OF_ALL = 0.05
"""Probability that calibrated tests are reported as uncalibrated, over all rows of a table (Bonferroni)."""


def p_values(
    pipe: Pipeline,
    world: Canaries,
    *,
    unseen: bool = False,
    first: int | None = None,
    alternatives: int = MEMBERSHIP_ALTERNATIVES,
    steps: int = STEPS,
    sampling: dict[str, Any] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """P-values of canaries, each under the hypothesis that the model has no information on the planted photograph.

    Args:
        unseen: test the canaries that no model was trained on.
        first: test only this many canaries.
        alternatives: number of alternatives in the membership test: the first ones of the manifest, whose order is
            random. The test takes (alternatives + 1) x steps rows of network calls for each canary.
        steps: as in `memsub.measure.membership.membership_p`.
        sampling: options of `memsub.generate`; default `SAMPLING`.

    Returns:
        Columns caption, memorization_p (at least 1 / (k + 1), with the manifest's k) and membership_p (with at most
        `alternatives`).
    """
    manifest = world.manifest
    chosen = (manifest.unseen if unseen else manifest.canaries)[:first]
    captions = [canary.caption for canary in chosen]
    planted = load(world.candidates_folder, [canary.planted for canary in chosen], manifest.side)
    images = generate(pipe, captions, seeds=noise_seeds(captions, 0), progress=progress, **(sampling or SAMPLING))
    options: dict[str, Any] = {"alternatives": alternatives, "steps": steps, "progress": progress}
    return pd.DataFrame(
        {
            "caption": captions,
            "memorization_p": exact_p(images, captions, planted, world),
            "membership_p": membership_p(pipe, captions, planted, world, **options),
        }
    )


def rates(p: Sequence[float] | np.ndarray | pd.Series, alternatives: int) -> dict[str, float]:
    """The share of canaries with the smallest p-value, with tests of whether it is larger than by chance.

    Returns:
        n; least (the share with p <= 1 / (k + 1)) with its 95 % interval least_low, least_high; chance, 1 / (k + 1);
        binomial_p (exact: the probability of as many or more of n by chance); mean p; uniform_p (Kolmogorov-Smirnov:
        near zero if the p-values are not uniform).
    """
    from scipy.stats import binomtest  # takes a second to import

    chance, values = 1 / (alternatives + 1), np.asarray(p, float)
    share = smallest_share(values, chance)
    hits = round(share["least"] * len(values))
    return {
        "n": len(values),
        **share,
        "chance": chance,
        "binomial_p": float(binomtest(hits, len(values), chance, alternative="greater").pvalue),
        "mean": float(values.mean()),
        "uniform_p": uniformity(values, chance),
    }


def replicated(p: Sequence[float] | np.ndarray | pd.Series, alternatives: int) -> np.ndarray:
    """Which single canaries are memorized: bool (n,).

    Raises:
        ValueError: there are too few alternatives for verdicts on single canaries.
    """
    if alternatives < ALTERNATIVES:
        raise ValueError(
            f"with {alternatives} alternatives one canary in {alternatives + 1} that a model never saw has the "
            f"smallest p: no verdict on single ones (that requires {ALTERNATIVES}). Report `rates` over all canaries."
        )
    return np.asarray(p, float) <= LEVEL


def tested(
    folder: str | Path,
    *,
    first: int | None = None,
    device: str | torch.device | None = None,
    sampling: dict[str, Any] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """`p_values` of planted and unseen canaries, in the model that `canaries.training` wrote and in its twin.

    They are stored in `folder/tested`; another call computes only what is missing there.

    Args:
        first: test only this many canaries of each kind.
        options: options of `p_values`.

    Returns:
        Columns model ("model", "twin"), canaries ("planted", "unseen"), and those of `p_values`.

    Raises:
        ValueError: the model was trained by another manifest.
    """
    from .training import ABOUT  # imports diffusers

    folder = Path(folder)
    info, world = find_model(folder), _canaries_of(folder)
    trained_by = load_json(folder / ABOUT)["content"]["manifest"] if (folder / ABOUT).is_file() else None
    if trained_by not in (None, world.manifest.fingerprint):
        raise ValueError(f"{folder} was trained by another manifest than lies there now: put its own {FILE} back.")
    store, tables = Store(folder / "tested"), []
    for name, source in {"model": info.source, "twin": info.twin}.items():
        if not source:
            continue
        pipe = load_pipeline(source, device)
        for kind in ("planted", "unseen") if world.manifest.unseen else ("planted",):
            content = {"model": sampler_fingerprint(pipe), "world": world, "kind": kind, "first": first}
            content |= {"sampling": sampling or SAMPLING, **options}
            make = partial(p_values, pipe, world, unseen=kind == "unseen", first=first, sampling=sampling, **options)
            tables.append(store.table(TESTED, make, **content).assign(model=name, canaries=kind))
    table = pd.concat(tables, ignore_index=True)
    return table[["model", "canaries", *table.columns.drop(["model", "canaries"])]]


def _canaries_of(folder: Path) -> Canaries:
    world = world_of(find_model(folder))
    if not isinstance(world, Canaries):
        raise ValueError(f"{folder} was not trained on canaries: `python -m memsub_extra.canaries train` makes such.")
    return world


def report(folder: str | Path, **options: Any) -> pd.DataFrame:
    """`rates` of the result of `tested` with the same arguments.

    Returns:
        Columns model, canaries, measure ("memorization", "membership"), those of `rates`, and replicated (number
        of canaries that are memorized by their own verdict; None with fewer than 255 alternatives).
    """
    table, rows = tested(folder, **options), []
    every = _canaries_of(Path(folder)).alternatives_each
    asked = {"memorization": every, "membership": min(every, options.get("alternatives", MEMBERSHIP_ALTERNATIVES))}
    for (model, kind), part in table.groupby(["model", "canaries"], sort=False):
        for measure in MEASURES:
            values, k = part[f"{measure}_p"], asked[measure]
            single = int(replicated(values, k).sum()) if k >= ALTERNATIVES else None
            row = {"model": model, "canaries": kind, "measure": measure}
            rows.append(row | rates(values, k) | {"replicated": single})
    return pd.DataFrame(rows)


def calibration(table: pd.DataFrame) -> list[str]:
    """Sentences on a table of `report`: are the tests calibrated on photographs that the model was not trained on?

    These are the unseen canaries, and all canaries of the twin. None of them is memorized, so their p-values should be
    uniform; if they are not, the table is no evidence of memorization.
    """
    controls = (table["model"] == "twin") | (table["canaries"] == "unseen")
    departs = controls & (table["uniform_p"] < LEVEL_OF_ALL / max(1, controls.sum()))
    sentences = []
    for place, row in table.iterrows():
        if controls[place]:
            verdict = "uniform p-values are rejected" if departs[place] else "nothing speaks against uniform p-values"
            verdict += f", Kolmogorov-Smirnov p = {row['uniform_p']:.2g}"
        else:
            verdict = f"binomial p = {row['binomial_p']:.2g}"
        sentences.append(
            f"{row['model']}, {row['canaries']} canaries, {row['measure']}: "
            f"{row['least'] * row['n']:.0f} of {row['n']} have the smallest p "
            f"({row['least_low']:.0%} to {row['least_high']:.0%}; by chance {row['chance']:.1%}); {verdict}"
        )
    if controls.any():
        sentences.append(
            f"calibration: {departs.sum()} of {controls.sum()} rows that can know nothing depart from uniform p-values "
            f"(at {LEVEL_OF_ALL:.0%} for all together)"
        )
    else:
        sentences.append("calibration: not tested, for want of a twin and of unseen canaries")
    return sentences
