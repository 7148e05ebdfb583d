"""Attack work: how many iterations of the embedding attack until the model samples an image again?

    work = attack_work(pipe, pairs, starts(pipe, pairs.captions)["its caption"], judge)
    attack_curve(work)                          # share sampled by 0, 5, 10, ... iterations, with intervals
    log_rank(work_of_edited, work_of_twin)      # do the two curves differ?

Any embedding might carry any image, so the number means something only beside that of a model which never saw it.
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
"""Of the attack, after which the images are judged."""
SEEDS = (1000, 1001)
"""Numbers of the images that are judged. The attack has noise of its own."""
STARTS = ("its caption", "another caption", "the empty prompt", "noise")
"""What the attack begins with."""


def starts(pipe: Pipeline, captions: Sequence[str], seed: int = 0) -> dict[str, Conditioning]:
    """What the attack can begin with, by the names in `STARTS`: a row a caption each."""
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
    """Iterations of the embedding attack until each target is sampled; one that was sampled is attacked no further.

    A target counts as sampled if the images of all `seeds`, which the attack did not use, replicate it: a single lucky
    image does not count.

    Args:
        start: what to begin with, a row a target (`starts`).
        judge: says which images replicate their target.
        iterations: ascending, after which the images are judged.
        sampling: of the images that are judged, for `generate`.

    Returns:
        One row a target: target (its place), iterations (infinite if it was not sampled by the last look), last.
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
    """Share of attacks that succeed by so many iterations: columns iterations, share, low, high (95 %), n (targets).

    Several rows of one target, such as those of several starts, are not independent. All targets are attacked equally
    long, so this is one minus the Kaplan-Meier estimate of survival.
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
    """One row a target, with the least work of all its attacks, as of several starts: what a test may count."""
    return work.groupby("target", as_index=False, sort=False).agg(
        iterations=("iterations", "min"), last=("last", "max")
    )


def log_rank(ours: pd.DataFrame, theirs: pd.DataFrame) -> float:
    """P-value of the log-rank test (Mantel 1966) that two attacks need equal work; 1 if neither samples anything.

    Each row counts as independent: of several attacks on one target give the `earliest`.
    """
    from scipy.stats import CensoredData, logrank

    if not np.isfinite(pd.concat([ours, theirs])["iterations"]).any():
        return 1.0
    sides = []
    for work in (ours, theirs):
        sampled = np.isfinite(work["iterations"])
        # Logarithms of iterations would order them alike: the test uses ranks only.
        sides.append(CensoredData(work["iterations"][sampled].to_numpy(), right=work["last"][~sampled].to_numpy(float)))
    return float(logrank(*sides).pvalue)
