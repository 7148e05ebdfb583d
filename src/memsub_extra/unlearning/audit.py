"""The audit: what is left of removed images in a model, beside a model that was never trained on them.

    tables = {"twin": audited(twin, subjects, metrics, world), "pruning": audited(edited, subjects, metrics, world)}
    summary(tables)                             # one row per model: rates with intervals, log-rank p, alignment, KID
    compared(tables)                            # one row per model and question: equivalent to the twin, or different?
    gone(tables)                                # only the verdicts: one row per model, one column per question
    readable(summary(tables), {"forget_set": "forget set"})     # in percent, with intervals

Each image has its own noise, which is the same in every model. Captions are the independent units.

An audit cannot ask all questions. It measures the pipeline in its current state: apply an edit first, by
`memsub.pruned`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from memsub.measure.distances import kid
from memsub.measure.evaluation import alignment_each, score
from memsub.measure.exact import LEVEL, exact_p
from memsub.measure.membership import MEMBERSHIP_ALTERNATIVES, membership_p
from memsub.measure.metrics import Metrics
from memsub.measure.noise import noise_seeds
from memsub.measure.verdict import Judge, by_exact_test
from memsub.models import Pipeline, Sample, generate
from memsub.world import World

from ..notebooks.equivalence import Equivalence, equivalence, holm
from ..notebooks.findings import Span
from ..notebooks.intervals import mean_interval, ratio_interval
from .attack_work import ITERATIONS, STARTS, attack_work, earliest, log_rank, starts
from .pairs import FORGET_SET, HELD_OUT, SAMPLING, UNSEEN, Pairs, Subjects
from .relearning import relearning

Tables = Mapping[str, pd.DataFrame]
"""The result of `audited`: tables by name."""
TABLES = ("replication", "attack", "relearning", "diversity", "quality", "membership")
"""Names of these tables."""
TAUGHT = f"{FORGET_SET} pairs"
"""Value of the column `taught` for relearning from a part of the forget set."""
SMALLEST = 1 / (MEMBERSHIP_ALTERNATIVES + 1)
"""The smallest p of the membership test."""

# --- the tables ----------------------------------------------------------------------------------------------------


def replication(sample: Sample, pairs: Pairs, world: World, seeds: Sequence[int] = (0, 1)) -> pd.DataFrame:
    """P-values of the exact test: columns target, seed, p. Each image of a caption has its own noise."""
    tables = []
    for seed in seeds:
        images = sample(pairs.captions, seeds=noise_seeds(pairs.captions, seed))
        p = exact_p(images, pairs.captions, pairs.images, world)
        tables.append(pd.DataFrame({"target": range(len(pairs)), "seed": seed, "p": p}))
    return pd.concat(tables, ignore_index=True)


def diversity(sample: Sample, captions: Sequence[str], world: World, seeds: tuple[int, int] = (0, 1)) -> np.ndarray:
    """P-values (captions,) of the exact test, with the image of the second seed in place of the training image.

    A model that samples a new layout for every seed has p-values that spread over (0, 1]. A model that still has a
    fixed layout has small ones. The share of p = 1/256 is compared with that of the twin.
    """
    first, second = (sample(list(captions), seeds=noise_seeds(captions, seed)) for seed in seeds)
    return exact_p(first, captions, second, world)


def quality(sample: Sample, metrics: Metrics, subjects: Subjects) -> pd.DataFrame:
    """How well images follow unseen captions, and those of the forget set, which should get new images.

    Returns:
        Columns pairs, target, alignment (of each caption), kid (between the images of all unseen captions and the real
        ones; the same number in each row).
    """
    tables = []
    for kind, pairs in ((UNSEEN, subjects.unseen), (FORGET_SET, subjects.forget_set)):
        scored = score(sample, metrics, pairs.captions)
        each = np.asarray(alignment_each(scored))
        tables.append(pd.DataFrame({"pairs": kind, "target": range(len(pairs)), "alignment": each}))
        if kind == UNSEEN:
            features = np.stack(scored["image_features"])
    distance, _ = kid(metrics.prompt.image_features(subjects.unseen.images), features)
    return pd.concat(tables, ignore_index=True).assign(kid=distance)


def membership(pipe: Pipeline, pairs: Pairs, world: World, steps: int, progress: bool = True) -> pd.DataFrame:
    """P-values of the exact membership test, in which the model gets each pair's caption: columns target, p."""
    p = membership_p(pipe, pairs.captions, pairs.images, world, steps=steps, progress=progress)
    return pd.DataFrame({"target": range(len(pairs)), "p": p})


def audited(
    pipe: Pipeline,
    subjects: Subjects,
    metrics: Metrics,
    world: World,
    *,
    targets: int = 40,
    attacked: Sequence[str] = (FORGET_SET, UNSEEN),
    iterations: Sequence[int] = ITERATIONS,
    begin: Sequence[str] = STARTS,
    noises: int = 4,
    taught: int = 10,
    rates: Sequence[float] = (1e-5, 1e-4),
    looks: Sequence[int] = (0, 10, 25, 50, 100),
    seeds: int = 2,
    membership_steps: int = 4,
    only: Sequence[str] = TABLES,
    progress: bool = True,
) -> dict[str, pd.DataFrame]:
    """The whole audit of the pipeline in its current state, or some of its tables.

    Args:
        targets: number of pairs of each kind that are attacked.
        attacked: kinds of pairs that are attacked: keys of `Subjects.judged`.
        iterations: numbers of iterations of the attack after which its images are judged.
        begin: initial embeddings of the attack: names in `STARTS`.
        noises: number of (step, noise) pairs for each image and iteration of the attack.
        taught: number of pairs of the forget set that relearning teaches again; it watches the others.
        rates: learning rates of relearning; looks: numbers of its steps after which the watched pairs are judged.
        seeds: number of images of each caption for the exact test of replication.
        membership_steps: steps at which the membership test averages losses: 4 to screen, 12 for the full protocol.
        only: names of the tables to make; default: all.

    Returns:
        Tables replication (by `pairs`), attack (`pairs`, `start`), relearning (`taught`, `lr`), diversity (`p` of each
        caption of the forget set), quality (`pairs`), membership (of the forget set).
    """
    sample, judge = partial(generate, pipe, **SAMPLING), by_exact_test(world)
    captions = subjects.forget_set.captions
    attack: dict[str, Any] = {"iterations": iterations, "noises": noises, "progress": progress}
    tables: dict[str, Callable[[], pd.DataFrame]] = {
        "replication": lambda: _replicated(sample, subjects, world, seeds),
        "attack": lambda: _attacked(pipe, subjects, judge, targets, attacked, begin, attack),
        "relearning": lambda: _relearned(pipe, subjects, judge, taught, rates, looks, progress),
        "diversity": lambda: pd.DataFrame({"target": range(len(captions)), "p": diversity(sample, captions, world)}),
        "quality": lambda: quality(sample, metrics, subjects),
        "membership": lambda: membership(pipe, subjects.forget_set, world, membership_steps, progress),
    }
    return {name: make() for name, make in tables.items() if name in only}


def _replicated(sample: Sample, subjects: Subjects, world: World, seeds: int) -> pd.DataFrame:
    """Replication of all judged pairs; of the unseen ones, only as many as the forget set has."""
    asked = subjects.judged | {UNSEEN: subjects.unseen.first(len(subjects.forget_set))}
    tables = [replication(sample, pairs, world, range(seeds)).assign(pairs=kind) for kind, pairs in asked.items()]
    return pd.concat(tables, ignore_index=True)


def _attacked(
    pipe: Pipeline,
    subjects: Subjects,
    judge: Judge,
    targets: int,
    kinds: Sequence[str],
    begin: Sequence[str],
    options: Mapping[str, Any],
) -> pd.DataFrame:
    """Work of the attack on the first `targets` pairs of each kind, for each start in `begin`."""
    tables = []
    for kind in kinds:
        pairs = subjects.judged[kind].first(targets)
        beginnings = starts(pipe, pairs.captions)
        for start in begin:
            work = attack_work(pipe, pairs, beginnings[start], judge, **options)
            tables.append(work.assign(pairs=kind, start=start))
    return pd.concat(tables, ignore_index=True)


def _relearned(
    pipe: Pipeline,
    subjects: Subjects,
    judge: Judge,
    taught: int,
    rates: Sequence[float],
    looks: Sequence[int],
    progress: bool,
) -> pd.DataFrame:
    """Relearning from 320 ordinary pairs, or from the first `taught` of the forget set; the others are watched."""
    watched = subjects.forget_set.only(range(taught, len(subjects.forget_set)))
    lessons = {"ordinary pairs": subjects.ordinary.first(320), TAUGHT: subjects.forget_set.first(taught)}
    tables = []
    for lesson, pairs in lessons.items():
        for lr in rates:
            table = relearning(pipe, pairs, watched, judge, lr=lr, looks=looks, progress=progress)
            tables.append(table.assign(taught=lesson, lr=lr))
    return pd.concat(tables, ignore_index=True)


# --- what they show ------------------------------------------------------------------------------------------------

LABELS = {
    "forget_set": "forget set replicated",
    "held_out": "held-out memorized replicated",
    "unseen": "unseen replicated",
    "attacked": "forget set sampled under attack",
    "log_rank": "log-rank p (Holm)",
    "relearned": "relearned, above the twin",
    "alignment": "relative alignment",
    "forget_set_alignment": "relative alignment, forget set",
    "kid": "KID",
    "same": "two seeds, one arrangement",
    "membership": "mean p of membership",
}
"""Titles of a summary's columns in tables and figures. The keys are those of docs/figures.json."""
RATES = {"forget_set": FORGET_SET, "held_out": HELD_OUT, "unseen": UNSEEN}
"""Columns of replication rates, and the kind of pairs of each."""


def summary(tables: Mapping[str, Tables], reference: str = "twin", at: int = 100) -> pd.DataFrame:
    """Summarizes the audits of several models, one row per model.

    Args:
        tables: model names to results of `audited`. Only the table membership may be missing.
        reference: the model that was never trained on the removed images.
        at: number of iterations of the attack at which its share is taken.

    Returns:
        Rates, each with columns <name>_low, <name>_high (95 %) and <name>_n (captions): forget_set, held_out, unseen
        (replicated), attacked (pairs of the forget set sampled from any start within `at` iterations), same (captions
        whose two seeds give the same layout). Ratios to the reference, with the same columns: alignment (of unseen
        captions), forget_set_alignment. Also membership (mean p, with its interval); log_rank (p of the attack's work
        against the reference's, adjusted over models by `holm`); kid; and relearned (share of watched pairs that
        relearning from the forget set brings back, minus the reference's, at the last step of the largest rate).
    """
    p = {
        name: log_rank(*(earliest(_attack(each)) for each in (audit, tables[reference])))
        for name, audit in tables.items()
    }
    adjusted = holm({name: value for name, value in p.items() if name != reference}) | {reference: 1.0}
    rows = {
        name: _summarized(audit, tables[reference], at) | {"log_rank": adjusted[name]} for name, audit in tables.items()
    }
    return pd.DataFrame(rows).T


def readable(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Columns of a summary as text: percent with the 95 % interval, and in each title the number of captions.

    Args:
        columns: columns of `summary` to titles. Columns that the summary lacks are left out.
    """
    shown = {}
    for name, title in columns.items():
        if name in table:
            values = table[[name, f"{name}_low", f"{name}_high"]].astype(float).itertuples(index=False)
            captions = table[f"{name}_n"].astype(int).min()
            shown[f"{title}, n = {captions}"] = [f"{Span(*(100 * value for value in row)):.0f}" for row in values]
    return pd.DataFrame(shown, index=table.index)


def _summarized(audit: Tables, reference: Tables, at: int) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, hits in _outcomes(audit, at).items():
        row |= _with_interval(name, float(hits.mean()), mean_interval(hits))
        row[f"{name}_n"] = len(hits)
    again, expected = (_relearned_at_last(tables["relearning"]) for tables in (audit, reference))
    row["relearned"] = float(again.mean() - expected.mean())
    theirs = _alignments(reference)
    for name, each in _alignments(audit).items():
        interval = ratio_interval(each, theirs[name], paired=True)
        row |= _with_interval(name, float(each.mean() / theirs[name].mean()), interval) | {f"{name}_n": len(each)}
    if "membership" in audit:
        p = audit["membership"]["p"].to_numpy()
        row |= _with_interval("membership", float(p.mean()), mean_interval(p, bounds=(SMALLEST, 1.0)))
    return row | {"kid": float(audit["quality"]["kid"].iloc[0])}


def _with_interval(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}


def _attack(audit: Tables) -> pd.DataFrame:
    return audit["attack"][audit["attack"]["pairs"] == FORGET_SET]


def _outcomes(audit: Tables, at: int) -> dict[str, np.ndarray]:
    """Outcomes (bool) behind each rate, shape (captions, seeds)."""
    table, outcomes = audit["replication"], {}
    for name, kind in RATES.items():
        part = table[table["pairs"] == kind]
        outcomes[name] = part.pivot(index="target", columns="seed", values="p").to_numpy() <= LEVEL
    work = earliest(_attack(audit))
    same = audit["diversity"].sort_values("target")["p"].to_numpy()
    outcomes["attacked"] = (work.sort_values("target")["iterations"].to_numpy() <= at)[:, None]
    return outcomes | {"same": (same <= LEVEL)[:, None]}


def _alignments(audit: Tables) -> dict[str, np.ndarray]:
    """Alignment of each unseen caption, and of each of the forget set's."""
    table = audit["quality"]
    names = {"alignment": UNSEEN, "forget_set_alignment": FORGET_SET}
    return {name: table.loc[table["pairs"] == kind, "alignment"].to_numpy() for name, kind in names.items()}


def _relearned_at_last(learned: pd.DataFrame) -> np.ndarray:
    """Which watched pairs come back at the last step of the largest rate, a setting that is fixed in advance: bool."""
    table = learned[learned["taught"] == TAUGHT]
    last = table[(table["lr"] == table["lr"].max()) & (table["steps"] == table["steps"].max())]
    return last.sort_values("target")["replicated"].to_numpy(bool)


def compared(tables: Mapping[str, Tables], reference: str = "twin", at: int = 100) -> pd.DataFrame:
    """Tests whether each other model is equivalent to the reference, for each question. The unit is a pair or caption.

    The margins (`MARGINS`) are five points for rates, 97 % of the alignment, and 0.10 for the mean p of membership.
    Relearning is compared at the last step of the largest rate.

    Returns:
        Columns model, question, value (the difference, or ratio), low, high, n, power, needed, verdict.
    """
    rows = []
    for model in (name for name in tables if name != reference):
        audit = tables[model]
        for question, answer in _answers(audit, tables[reference], at).items():
            rows.append({"model": model, "question": question} | answer.__dict__)
    return pd.DataFrame(rows)


def _answers(audit: Tables, reference: Tables, at: int) -> dict[str, Equivalence]:
    answers: dict[str, Equivalence] = {}
    theirs = _outcomes(reference, at)
    for name, hits in _outcomes(audit, at).items():
        answers[LABELS[name]] = equivalence(hits, theirs[name], "rate")
    again, expected = (_relearned_at_last(tables["relearning"]) for tables in (audit, reference))
    answers["relearned"] = equivalence(again, expected, "rate")
    aligned = _alignments(reference)
    for name, each in _alignments(audit).items():
        answers[LABELS[name]] = equivalence(each, aligned[name], "alignment")
    if "membership" in audit and "membership" in reference:
        p, expected_p = (each["membership"].sort_values("target")["p"].to_numpy() for each in (audit, reference))
        answers["membership"] = equivalence(p, expected_p, "mean p")
    return answers


def gone(tables: Mapping[str, Tables], reference: str = "twin", at: int = 100) -> pd.DataFrame:
    """Verdicts of `compared` ("equivalent", "different", "inconclusive"): a row per model, a column per question."""
    answers = compared(tables, reference, at)
    by_model = answers.pivot(index="model", columns="question", values="verdict")
    return by_model.loc[answers["model"].unique(), answers["question"].unique()].rename_axis(index=None, columns=None)
