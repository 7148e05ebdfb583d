"""Attack work: how many iterations of the embedding attack until the model samples an image again?

    work = attack_work(pipe, pairs, starts(pipe, pairs.captions)["its caption"], judge)
    attack_curve(work)                          # share sampled by 0, 5, 10, ... iterations, with intervals
    log_rank(work_of_edited, work_of_twin)      # do the two curves differ?

An embedding might encode any image. Compare the number with that of a model which was not trained on the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from memsub.measure.intervals import clustered
from memsub.measure.noise import noise_seeds
from memsub.measure.verdict import Judge
from memsub.models import Conditioning, Pipeline, as_denoiser, generate
from memsub_extra.attacks import EmbeddingAttack

from .pairs import SAMPLING, Pairs

ITERATIONS = (0, 5, 10, 25, 50, 100, 200, 500)
"""Numbers of iterations of the attack after which the images are judged."""
SEEDS = (1000, 1001)
"""Numbers of the judged images, for `noise_seeds`. The attack uses other noise."""
STARTS = ("its caption", "another caption", "the empty prompt", "noise")
"""Names of the initial embeddings of the attack."""


def starts(pipe: Pipeline, captions: Sequence[str], seed: int = 0) -> dict[str, Conditioning]:
    """Initial conditionings for the attack by the names in `STARTS`, each with one row per caption."""
    denoiser = as_denoiser(pipe)
    by_caption, empty = denoiser.embed(captions), denoiser.embed([""])
    embeddings = by_caption.embeddings
    noise = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(seed)).to(embeddings)
    beginnings = (
        by_caption,
        by_caption[torch.arange(len(captions)).roll(1)],
        empty.expand(len(captions)),
        by_caption.with_embeddings(noise * embeddings.std() + embeddings.mean()),
    )
    return dict(zip(STARTS, beginnings, strict=True))


def attack_work(
    pipe: Pipeline,
    targets: Pairs,
    start: Conditioning,
    judge: Judge,
    *,
    iterations: Sequence[int] = ITERATIONS,
    seeds: Sequence[int] = SEEDS,
    sampling: Mapping[str, Any] = SAMPLING,
    noises: int = 4,
    batch_size: int = 64,
    progress: bool = True,
) -> pd.DataFrame:
    """Measures the iterations of the embedding attack until the model samples each target; then its attack stops.

    A target counts as sampled if the images of all `seeds`, whose noise the attack did not use, replicate it. A single
    lucky image does not count.

    Args:
        start: initial conditioning, one row per target (`starts`).
        judge: decides which images replicate their target.
        iterations: ascending numbers of iterations after which the images are judged.
        sampling: options of `generate` for the judged images.

    Returns:
        One row per target: target (its index), iterations (infinite if it was never sampled), last (of `iterations`).
    """
    attack = EmbeddingAttack(pipe, targets.images, start, noises=noises, batch_size=batch_size)
    needed, left, done = np.full(len(targets), np.inf), list(range(len(targets))), 0
    options = {**sampling, "progress": False}
    with tqdm(total=len(left) * iterations[-1], desc="attack work", disable=not progress, mininterval=2) as bar:
        for look in iterations:
            attack.advance(look - done, left, bar)
            done, attacked = look, targets.only(left)
            hits = np.ones(len(left), bool)
            for seed in seeds:
                of_images = noise_seeds(attacked.captions, seed)
                images = generate(pipe, attack.embeddings(left), seeds=of_images, **options)
                hits &= judge(images, attacked.captions, attacked.images)
            needed[[left[i] for i in np.flatnonzero(hits)]] = look
            bar.update(int(hits.sum()) * (iterations[-1] - look))
            left = [i for i, hit in zip(left, hits, strict=True) if not hit]
            if not left:
                break
    return pd.DataFrame({"target": range(len(targets)), "iterations": needed, "last": iterations[-1]})


def attack_curve(work: pd.DataFrame, iterations: Sequence[int] = ITERATIONS) -> pd.DataFrame:
    """Share of attacks that succeed within each number of iterations: columns iterations, share, low, high, n.

    The interval (95 %) is over the n targets, because rows of one target, such as those of several starts, are not
    independent. All attacks have the same limit, so the share is one minus the Kaplan-Meier estimate of survival.
    """
    rows = []
    for look in [i for i in iterations if i <= work["last"].min()]:
        rows.append({"iterations": look} | share(work["iterations"] <= look, work["target"]))
    return pd.DataFrame(rows)


def share(hits: pd.Series, units: pd.Series) -> dict[str, float]:
    """A rate with its 95 % interval over units, such as targets: share, low, high, n (units)."""
    low, high = clustered(hits, units)
    return {"share": float(hits.mean()), "low": low, "high": high, "n": units.nunique()}


def earliest(work: pd.DataFrame) -> pd.DataFrame:
    """One row per target, with the least work of its attacks (one for each start). Tests need such independent rows."""
    return work.groupby("target", as_index=False, sort=False).agg(
        iterations=("iterations", "min"), last=("last", "max")
    )


def log_rank(ours: pd.DataFrame, theirs: pd.DataFrame) -> float:
    """P-value of the log-rank test (Mantel 1966): do two attacks need equal work? 1 if neither samples any target.

    The test takes rows as independent: for several attacks on one target, pass only the `earliest`.
    """
    from scipy.stats import CensoredData, logrank

    if not np.isfinite(pd.concat([ours, theirs])["iterations"]).any():
        return 1.0
    sides = []
    for work in (ours, theirs):
        sampled = np.isfinite(work["iterations"])
        # The test uses only the order of iterations, so they need no logarithm.
        sides.append(CensoredData(work["iterations"][sampled].to_numpy(), right=work["last"][~sampled].to_numpy(float)))
    return float(logrank(*sides).pvalue)
