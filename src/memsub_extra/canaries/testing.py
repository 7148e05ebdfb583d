"""What a model knows of its canaries, exactly: their p-values, and rates of them with exact tests.

    p = p_values(pipe, world)                     # a row a canary: of the generated image, and of the denoising loss
    rates(p["membership_p"], world.alternatives_each)
    replicated(p["memorization_p"], world.alternatives_each)        # of single canaries, where k allows it

Both p-values are ranks of the planted photograph among all that the lot might have chosen: by the similarity with an
image that the model generates of the caption (memorization), and by the model's denoising loss (membership).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from memsub.measure.exact import ALTERNATIVES, LEVEL, exact_p, uniformity
from memsub.measure.intervals import interval
from memsub.measure.membership import MEMBERSHIP_ALTERNATIVES, STEPS, membership_p
from memsub.measure.noise import noise_seeds
from memsub.models import Pipeline, find_model, generate, load_pipeline, sampler_fingerprint, world_of
from memsub_extra.store import Kind, Store

from .photographs import load
from .world import Canaries

TESTED = Kind("p-values")
SAMPLING: dict[str, Any] = {"steps": 50, "guidance_scale": 7.5, "batch_size": 8}
"""How images are generated of the canaries' captions."""


def p_values(
    pipe: Pipeline,
    world: Canaries,
    *,
    unseen: bool = False,
    first: int | None = None,
    alternatives: int = MEMBERSHIP_ALTERNATIVES,
    steps: int = STEPS,
    noises: int = 1,
    seed: int = 0,
    sampling: dict[str, Any] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """P-values of canaries, each under the hypothesis that nothing tells the model which photograph was planted.

    Args:
        unseen: of the canaries that no model was shown.
        first: only so many of them.
        alternatives: of the membership test, which takes (alternatives + 1) x steps x noises rows of network calls a
            canary: all others of the manifest, or the first so many of them, whose order is random.
        steps, noises, seed: of `memsub.measure.membership.membership_p`; each image has a noise of its own.
        sampling: options of `memsub.generate`; default `SAMPLING`.

    Returns:
        Columns caption, memorization_p (at least 1 / (k + 1) of the manifest's k), membership_p (of `alternatives`, if
        these are fewer).
    """
    manifest = world.manifest
    chosen = (manifest.unseen if unseen else manifest.canaries)[:first]
    captions = [canary.caption for canary in chosen]
    planted = load(world.candidates_folder, [canary.planted for canary in chosen], manifest.side)
    images = generate(pipe, captions, seeds=noise_seeds(captions, seed), progress=progress, **(sampling or SAMPLING))
    options: dict[str, Any] = {"alternatives": alternatives, "steps": steps, "noises": noises, "seed": seed}
    return pd.DataFrame(
        {
            "caption": captions,
            "memorization_p": exact_p(images, captions, planted, world),
            "membership_p": membership_p(pipe, captions, planted, world, progress=progress, **options),
        }
    )


def rates(p: Sequence[float] | np.ndarray | pd.Series, alternatives: int) -> dict[str, float]:
    """How many canaries have the smallest p, and whether more than by chance.

    Returns:
        n; least (the share with p <= 1 / (k + 1)) with its 95 % interval least_low and least_high; chance, which is
        1 / (k + 1); binomial_p (exact: as many or more of n, each with probability 1 / (k + 1)); mean p; uniform_p
        (Kolmogorov-Smirnov: near zero if the p-values are not uniform).
    """
    from scipy.stats import binomtest  # takes a second to import

    chance, values = 1 / (alternatives + 1), np.asarray(p, float)
    hits = int((values <= chance + 1e-9).sum())
    low, high = interval(hits, len(values))
    return {
        "n": len(values),
        "least": hits / len(values),
        "least_low": low,
        "least_high": high,
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


def report(
    folder: str | Path,
    *,
    first: int | None = None,
    device: str | torch.device | None = None,
    sampling: dict[str, Any] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """`rates` of the canaries and of the unseen ones, in the model that `canaries.training` wrote and in its twin.

    P-values are kept in `folder/tested`: a second call, or one after a stop, computes what is missing.

    Args:
        first: only so many canaries of each kind.
        options: of `p_values`.

    Returns:
        Columns model, canaries ("planted" or "unseen"), measure ("memorization", "membership"), those of `rates`, and
        replicated (how many single canaries are called memorized; None with fewer than 255 alternatives).
    """
    folder, info = Path(folder), find_model(folder)
    world = world_of(info)
    if not isinstance(world, Canaries):
        raise ValueError(f"{folder} was not trained on canaries: `python -m memsub_extra.canaries train` makes such.")
    store, rows = Store(folder / "tested"), []
    for name, source in {"model": info.source, "twin": info.twin}.items():
        if not source:
            continue
        pipe = load_pipeline(source, device)
        for kind in ("planted", "unseen"):
            if kind == "unseen" and not world.manifest.unseen:
                continue
            content = {"model": sampler_fingerprint(pipe), "world": world, "kind": kind, "first": first}
            content |= {"sampling": sampling or SAMPLING, **options}
            make = partial(p_values, pipe, world, unseen=kind == "unseen", first=first, sampling=sampling, **options)
            p = store.table(TESTED, make, **content)
            rows += [{"model": name, "canaries": kind, **row} for row in _measured(p, world, options)]
    return pd.DataFrame(rows)


def _measured(p: pd.DataFrame, world: Canaries, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of both measures; the membership test may have had fewer alternatives than there are."""
    every = world.alternatives_each
    asked = min(every, options.get("alternatives", MEMBERSHIP_ALTERNATIVES))
    rows = []
    for measure, k in {"memorization": every, "membership": asked}.items():
        values = p[f"{measure}_p"]
        single = int(replicated(values, k).sum()) if k >= ALTERNATIVES else None
        rows.append({"measure": measure, **rates(values, k), "replicated": single})
    return rows
