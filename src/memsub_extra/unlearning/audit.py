"""The audit: what is left of removed images in a model, beside a model that was never trained on them.

    tables = {"twin": audited(twin, subjects, metrics, world), "pruning": audited(edited, subjects, metrics, world)}
    summary(tables)                             # a row a model: rates with intervals, log-rank p, alignment, KID
    gone(summary(tables))                       # by which criteria a model equals the twin

The criteria are attack work, replication, relearning, alignment, KID and diversity. They are not all questions that one
could ask: an exact membership test tells models apart that pass every one of them.

The audit takes the pipeline as it is: put an edit in place by `memsub.pruned`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from memsub.measure.distances import kid
from memsub.measure.evaluation import alignment_each, score
from memsub.measure.exact import LEVEL, exact_p
from memsub.measure.metrics import Metrics
from memsub.measure.verdict import Judge, by_exact_test
from memsub.models import Pipeline, Sample, generate
from memsub.world import World

from .attack_work import ITERATIONS, STARTS, attack_work, log_rank, share, starts
from .pairs import SAMPLING, Pairs, Subjects
from .relearning import relearning

# --- the tables ----------------------------------------------------------------------------------------------------


def replication(sample: Sample, pairs: Pairs, world: World, seeds: Sequence[int] = (0, 1)) -> pd.DataFrame:
    """Exact p of each caption's images: columns target, seed, p."""
    tables = []
    for seed in seeds:
        images = sample(pairs.captions, seeds=[seed] * len(pairs))
        p = exact_p(images, pairs.captions, pairs.images, world)
        tables.append(pd.DataFrame({"target": range(len(pairs)), "seed": seed, "p": p}))
    return pd.concat(tables, ignore_index=True)


def diversity(sample: Sample, captions: Sequence[str], world: World, seeds: tuple[int, int] = (0, 1)) -> np.ndarray:
    """Exact p of one seed's image, as if the other seed's were its training image; shape (captions,).

    A model that samples a layout of its own for every seed gives p that are spread. One whose arrangement is still
    fixed gives small ones. The share at 1/256 is compared with the twin's.
    """
    first, second = (sample(list(captions), seeds=[seed] * len(captions)) for seed in seeds)
    return exact_p(first, captions, second, world)


def quality(sample: Sample, metrics: Metrics, unseen: Pairs) -> pd.DataFrame:
    """How well captions are sampled that no model was trained on.

    Returns:
        Columns target, alignment (of each caption), kid (of all their images against the real ones, the same in each
        row).
    """
    scored = score(sample, metrics, unseen.captions)
    distance, _ = kid(metrics.prompt.image_features(unseen.images), np.stack(scored["image_features"]))
    each = np.asarray(alignment_each(scored))
    return pd.DataFrame({"target": range(len(unseen)), "alignment": each, "kid": distance})


def audited(
    pipe: Pipeline,
    subjects: Subjects,
    metrics: Metrics,
    world: World,
    *,
    targets: int = 40,
    attacked: Sequence[str] = ("removed", "fresh"),
    iterations: Sequence[int] = ITERATIONS,
    begin: Sequence[str] = STARTS,
    noises: int = 4,
    taught: int = 10,
    rates: Sequence[float] = (1e-5, 1e-4),
    looks: Sequence[int] = (0, 10, 25, 50, 100),
    seeds: int = 2,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """The whole audit of the pipeline as it is.

    Args:
        targets: pairs of each kind under the embedding attack.
        attacked: kinds of pairs that are attacked (`pairs.LABELS`).
        iterations: of the attack.
        begin: where the attack begins, names of `starts`.
        noises: steps and noises an image and iteration of the attack.
        taught: pairs of the forget set that are taught again, while the others are watched.
        rates: learning rates of relearning; looks: its steps.
        seeds: images of each caption for the exact test of replication.

    Returns:
        Tables replication (`pairs`: "removed", "unseen", "fresh"), attack (`pairs`, `start`), relearning (`taught`,
        `lr`), diversity (`p` of each caption of the forget set), quality.
    """
    sample, judge = partial(generate, pipe, **SAMPLING), by_exact_test(world)
    judged = subjects.judged | {"fresh": subjects.unseen.first(len(subjects.forget_set))}
    replicated = {
        kind: replication(sample, judged[kind], world, range(seeds)) for kind in ("removed", "unseen", "fresh")
    }
    attacks = []
    for kind in attacked:
        pairs = subjects.judged[kind].first(targets)
        beginnings = starts(pipe, pairs.captions)
        for start in begin:
            options: dict[str, Any] = {"iterations": iterations, "noises": noises, "progress": progress}
            work = attack_work(pipe, pairs, beginnings[start], judge, **options)
            attacks.append(work.assign(pairs=kind, start=start))
    p = diversity(sample, subjects.forget_set.captions, world)
    return {
        "replication": pd.concat([table.assign(pairs=kind) for kind, table in replicated.items()], ignore_index=True),
        "attack": pd.concat(attacks, ignore_index=True),
        "relearning": _relearned(pipe, subjects, judge, taught, rates, looks, progress),
        "diversity": pd.DataFrame({"target": range(len(p)), "p": p}),
        "quality": quality(sample, metrics, subjects.unseen),
    }


def _relearned(
    pipe: Pipeline,
    subjects: Subjects,
    judge: Judge,
    taught: int,
    rates: Sequence[float],
    looks: Sequence[int],
    progress: bool,
) -> pd.DataFrame:
    """Relearning from ordinary pairs and from the first `taught` of the forget set, while the others are watched."""
    watched = subjects.forget_set.only(range(taught, len(subjects.forget_set)))
    lessons = {"ordinary pairs": subjects.ordinary.first(320), "removed pairs": subjects.forget_set.first(taught)}
    tables = []
    for lesson, pairs in lessons.items():
        for lr in rates:
            table = relearning(pipe, pairs, watched, judge, lr=lr, looks=looks, progress=progress)
            tables.append(table.assign(taught=lesson, lr=lr))
    return pd.concat(tables, ignore_index=True)


# --- what they say -------------------------------------------------------------------------------------------------

LABELS = {
    "removed": "forget set replicated",
    "unseen": "held-out memorized replicated",
    "attacked": "forget set sampled under attack",
    "log_rank": "log-rank p",
    "relearned": "relearned, above the twin",
    "alignment": "relative alignment",
    "kid": "KID",
    "same": "two seeds, one arrangement",
}
"""What the columns of a summary are called where they are shown. The keys stand in docs/figures.json."""


def summary(tables: Mapping[str, Mapping[str, pd.DataFrame]], reference: str = "twin", at: int = 100) -> pd.DataFrame:
    """What the audits of several models say, a row a model.

    Args:
        tables: of `audited`, by model.
        reference: the model that was never trained on the removed images.
        at: iterations of the attack after which its share is taken.

    Returns:
        By model: share, low and high (95 %) and n of removed (the forget set), unseen (held-out memorized pairs),
        attacked (pairs of the forget set sampled from any start by `at`) and same (captions whose two seeds give one
        arrangement), all with Wilson's intervals; log_rank (p of the attack's work against the reference's, starts
        together); relearned (share after ten pairs were taught, the largest excess over the reference at any step and
        rate); alignment in that of the reference with alignment_low and alignment_high (bootstrap over captions), kid.
    """
    return pd.DataFrame({name: _summarized(audit, tables[reference], at) for name, audit in tables.items()}).T


def _summarized(audit: Mapping[str, pd.DataFrame], reference: Mapping[str, pd.DataFrame], at: int) -> dict[str, float]:
    p, row = audit["replication"].groupby("pairs")["p"], dict[str, float]()
    work, theirs = (tables["attack"].query("pairs == 'removed'") for tables in (audit, reference))
    hits = {
        "removed": p.get_group("removed") <= LEVEL,
        "unseen": p.get_group("unseen") <= LEVEL,
        "attacked": work["iterations"] <= at,
        "same": audit["diversity"]["p"] <= LEVEL,
    }
    for name, hit in hits.items():
        rate = share(int(hit.sum()), len(hit))
        row |= {name: rate["share"], f"{name}_low": rate["low"], f"{name}_high": rate["high"], f"{name}_n": rate["n"]}
    row["log_rank"] = log_rank(work, theirs)
    again, expected = (
        tables["relearning"].query("taught == 'removed pairs'").set_index(["lr", "steps"])["share"]
        for tables in (audit, reference)
    )
    row["relearned"] = float((again - expected).max())
    row |= _relative(audit["quality"]["alignment"].to_numpy(), reference["quality"]["alignment"].to_numpy())
    return row | {"kid": float(audit["quality"]["kid"].iloc[0])}


def _relative(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Ratio of two mean alignments over the same captions, with its 95 % interval by the bootstrap over captions."""
    from scipy.stats import bootstrap

    def ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return a.mean(axis) / b.mean(axis)

    # Where model and reference are one, there is nothing to resample.
    low = high = 1.0
    if not np.array_equal(ours, theirs):
        resampled = bootstrap((ours, theirs), ratio, paired=True, n_resamples=2000, method="percentile", rng=0)
        low, high = resampled.confidence_interval
    return {"alignment": float(ratio(ours, theirs)), "alignment_low": float(low), "alignment_high": float(high)}


def gone(table: pd.DataFrame, reference: str = "twin", unedited: str = "unedited") -> pd.DataFrame:
    """By which criteria a model equals the reference: a row a model, a column a criterion, True or False.

    Args:
        table: as `summary`.

    Returns:
        Columns attack work (log-rank p > 0.05, and at most 5 points more is sampled), replication (of held-out
        memorized pairs, at most 2 points more), relearning (at most 10 points more at every step), alignment (97 % or
        more), KID (at most a tenth above the unedited model's, or not above zero) and diversity (within 5 points).
    """
    numbers, theirs = table.astype(float), table.loc[reference].astype(float)
    return pd.DataFrame(
        {
            "attack work": (numbers["log_rank"] > 0.05) & (numbers["attacked"] <= theirs["attacked"] + 0.05),
            "replication": numbers["unseen"] <= theirs["unseen"] + 0.02,
            "relearning": numbers["relearned"] <= 0.1,
            "alignment": numbers["alignment"] >= 0.97,
            "KID": numbers["kid"] <= max(1.1 * numbers.loc[unedited, "kid"], 0.0),  # unbiased: it can be negative
            "diversity": (numbers["same"] - theirs["same"]).abs() <= 0.05,
        }
    )
