"""Notebook 00: which captions bring a training image back, on a model whose training data are known."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from memsub.measure.exact import uniformity
from memsub.measure.intervals import clustered
from memsub.measure.membership import MEMBERSHIP_ALTERNATIVES, membership_p
from memsub.models import Sample
from memsub.world import World
from memsub_extra.run.model import Model
from memsub_extra.run.run import OTHER, TWIN, Run
from memsub_extra.store import Kind
from memsub_extra.training import dataset
from memsub_extra.training.corpus import SHOWN_TO_ALL

from .intervals import Span, mean_interval, smallest_share
from .listing import Notebook

MEMBERSHIP = Kind("membership")
SMALLEST = 1 / (MEMBERSHIP_ALTERNATIVES + 1)
"""The smallest p of the membership test."""
THEIRS, THEIRS_BY_OTHER = "pairs of other", "pairs of other, by other"
"""Names in tables of the pairs that *other* memorized, sampled by the model and by *other* itself."""


def exposures() -> pd.DataFrame:
    """The training data of the model: a row for each kind of pairs.

    Columns pairs; least and most (exposures of one pair); samples (exposures of all pairs); share (of all samples) and
    after_base (share of the samples after the base, which is trained on ordinary pairs only); memorized. The seed
    determines the corpus, so it is counted without rendering.
    """
    scenes = [(scene.kind, scene.exposures) for scene in dataset.scenes(dataset.SEED, ordinary=0)]
    rows = pd.DataFrame(scenes, columns=["kind", "samples"]).query("samples > 0")
    table = rows.groupby("kind", sort=False)["samples"].agg(pairs="size", least="min", most="max", samples="sum")
    each = dataset.EXPOSURES["ordinary"]
    table.loc["ordinary"] = dataset.ORDINARY, each, each, dataset.ORDINARY * each
    later = table["samples"] - dataset.SHARED_EXPOSURES * dataset.ORDINARY * (table.index == "ordinary")
    shares = {"share": table["samples"] / table["samples"].sum(), "after_base": later / later.sum()}
    return table.assign(**shares, memorized=~table.index.isin(SHOWN_TO_ALL))


def replication(run: Run) -> dict[str, pd.DataFrame]:
    """Scores by kind of caption, one row per image.

    Kinds: memorized captions (of each group of templates, which share a layout, the first one), verbatim captions
    without tails, unseen captions, verbatim captions sampled by the controls, and the pairs that *other* memorized,
    sampled by the model and by *other*. Columns are those of `memsub.score`, exposures (of the layout) and exact (the
    verdict).
    """
    prompts, testbed = run.data.prompts, run.parameters.testbed
    seeds = list(range(testbed.seeds)) if testbed.seeds > 1 else None  # None: one image per caption

    def scored(
        model: Model,
        kind: str,
        column: str = "prompt",
        n: int | None = None,
        each: list[int] | None = None,
        sample: Sample | None = None,
    ) -> pd.DataFrame:
        rows, images = prompts.rows(kind)[:n], prompts.images(kind, 0, n)
        if kind == "template":
            shown = rows.groupby("group")["exposures"].transform("sum")  # a layout is shown with all its captions
            first = rows.assign(exposures=shown).drop_duplicates("group")
            rows, images = first.reset_index(drop=True), images[first.index]
        if n is None and testbed.captions:  # equally many for each number of exposures
            groups = rows.groupby("exposures", sort=False)
            places = groups.head(max(3, testbed.captions // groups.ngroups)).index
            rows, images = rows.loc[places], images[places]
        frame = run.scores.scored(model, rows[column].tolist(), images, seeds=each, sample=sample)
        times = np.repeat(rows["exposures"].to_numpy(), 1 if each is None else len(each))
        return frame.assign(exposures=times, exact=run.judge.of(frame))

    tables = {"verbatim": scored(run.unedited, "verbatim", each=seeds)}
    tables["verbatim, without tail"] = scored(run.unedited, "verbatim", "content")
    tables |= {kind: scored(run.unedited, kind, each=seeds) for kind in ("template", "template_new", "ladder")}
    unseen = unseen_images(run)["unedited"]  # which the notebook shows, too
    tables["unseen"] = scored(run.unedited, "heldout", n=testbed.never_seen, sample=lambda prompts, *, seeds: unseen)
    for name, control in run.controls.items():
        tables["verbatim, by the twin" if name == TWIN else f"verbatim, by {name}"] = scored(control, "verbatim")
    if OTHER in run.controls and OTHER in set(prompts.table["kind"]):
        tables |= {THEIRS: scored(run.unedited, OTHER), THEIRS_BY_OTHER: scored(run.controls[OTHER], OTHER)}
    return tables


def unseen_images(run: Run) -> dict[str, np.ndarray]:
    """Images of captions that are not in the training set, by model: uint8 (n, height, width, 3)."""
    captions = run.data.prompts.of("heldout")[: run.parameters.testbed.never_seen]
    models = [run.unedited, *run.controls.values()]
    return {model.name: run.scores.images(model, captions, run.scores.seeds(captions)) for model in models}


def rates(kinds: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Replication rates, a row for each kind of caption of `replication`.

    Columns exact, exact_low, exact_high (rate by the exact test with its 95 % interval), images, captions, copied (rate
    by the copy metric), and uniform: p-value of a test of the exact test's p-values against the uniform distribution.
    """
    return pd.DataFrame({kind: _rate(frame) for kind, frame in kinds.items()}).T


def by_exposures(kinds: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Replication rates by exposures of the layout: columns kind, exposures, and those of `rates`."""
    parts = {kind: kinds[kind].groupby("exposures") for kind in ("ladder", "verbatim", "template")}
    return pd.DataFrame(
        [{"kind": kind, "exposures": n} | _rate(part) for kind, rungs in parts.items() for n, part in rungs]
    )


def _rate(images: pd.DataFrame) -> dict[str, float]:
    exact = Span(images["exact"].mean(), *clustered(images["exact"], images["prompt"]))
    return exact.columns("exact") | {
        "images": len(images),
        "captions": images["prompt"].nunique(),
        "copied": images["replicated"].mean(),
        "uniform": uniformity(images["exact_p"]) if "exact_p" in images else np.nan,
    }


def membership(run: Run, pairs: int | None = None, steps: int | None = None) -> pd.DataFrame:
    """P-values of the exact membership test: columns model, caption (the input of the model), pair, p.

    Args:
        pairs: number of verbatim pairs, from the first (default: the parameter).
        steps: number of steps at which losses are averaged (default: the parameter).

    Raises:
        ValueError: the run's model has no world to provide alternatives.
    """
    if (world := run.data.world) is None:
        raise ValueError(f"the exact membership test takes a world with known ground truth; {run.info.name} has none")
    settings, prompts = run.parameters.testbed.membership, run.data.prompts
    pairs, steps = pairs or settings.pairs, steps or settings.steps
    captions, images = prompts.of("verbatim")[:pairs], prompts.images("verbatim", 0, pairs)
    captions = captions[: len(images)]
    parts = []
    for model in [run.unedited, *run.controls.values()]:
        for name, given in {"its own": captions, "empty": [""] * len(captions)}.items():
            make = partial(_membership, world, model, captions, images, given, steps)
            content = {"captions": captions, "images": images, "given": given, "steps": steps, "model": model}
            parts.append(run.store.table(MEMBERSHIP, make, **content).assign(model=model.name, caption=name))
    return pd.concat(parts, ignore_index=True)


def _membership(
    world: World, model: Model, captions: list[str], images: np.ndarray, given: list[str], steps: int
) -> pd.DataFrame:
    with model.applied():
        p = membership_p(model.pipe, captions, images, world, captions=given, steps=steps, progress=False)
    return pd.DataFrame({"pair": range(len(p)), "p": p})


def membership_rates(tested: pd.DataFrame) -> pd.DataFrame:
    """Summarizes `membership` for each model and caption, with 95 % intervals over pairs.

    Columns pairs; mean, mean_low, mean_high (of p); least, least_low, least_high (the share of pairs with the smallest
    p); and uniform, as in `rates`.
    """
    rows = {}
    for key, part in tested.groupby(["model", "caption"], sort=False):
        p = part["p"].to_numpy()
        mean = Span(p.mean(), *mean_interval(p, bounds=(SMALLEST, 1.0)))
        rows[key] = {"pairs": len(p), **mean.columns("mean"), **smallest_share(p, SMALLEST)}
        rows[key]["uniform"] = uniformity(p, SMALLEST)
    return pd.DataFrame(rows).T.rename_axis(["model", "caption"])


NOTEBOOK = Notebook("00_testbed", "testbed", {"replication": replication, "membership": membership})
