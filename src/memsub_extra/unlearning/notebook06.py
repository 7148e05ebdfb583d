"""Notebook 06: is the memory gone, and against whom?

work(run)                                   # iterations of the attack until an image is sampled, by model
attack_table(work(run), "twin")             # ... shares of images that it brings back, compared with the twin
revival(run)                                # what comes back if zeros are filled?
ordinary_pairs(run, 64)                     # what regrowth learns from
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from memsub.measure.evaluation import alignment_each
from memsub.models import as_denoiser, fingerprint
from memsub.pruning import Edit
from memsub_extra.run.model import Model
from memsub_extra.run.run import Run
from memsub_extra.store import Kind

from ..notebooks import notebook01
from ..notebooks.equivalence import MARGINS, equivalence, holm
from ..notebooks.findings import Span, spanned
from ..notebooks.intervals import ratio_interval
from ..notebooks.kinds import listed, note_evaluated, note_outcomes
from ..notebooks.listing import Notebook
from ..notebooks.notebook05 import memorized_pairs, unseen_pairs
from ..notebooks.rows import TWIN, gradient_rows
from . import shipped
from .attack_work import STARTS, attack_curve, attack_work, earliest, log_rank
from .pairs import FORGET_SET, UNSEEN, Pairs
from .revival import imputed, revived

ATTACK_WORK = Kind("attack-work")
IMPUTED = Kind("imputed")
FILLED = ("imputed", "revived")
"""Values that replace the zeros: completed ones, or their trusted signs with the largest magnitudes."""


def models(run: Run) -> list[Model]:
    """The unedited model, edited models, and the model's controls, if it has any.

    The edits are those of the parameter `deletion.edits`; without them, those that ship with the model, if it runs in
    float32; otherwise that of notebook 04.
    """
    files: dict[str, Any] = dict(run.parameters.deletion.edits)
    if not files and shipped.belongs_to(run.info) and run.parameters.dtype in (None, "float32"):
        files = dict(shipped.edits())
    edited = [Model(name, run.pipe, _edit(run, file, place)) for place, (name, file) in enumerate(files.items())]
    return [run.unedited, *(edited or [run.model()]), *run.controls.values()]


def _edit(run: Run, file: str | Path, place: int) -> Edit:
    """The edit in a file. A model that only counts its calls (`notebooks.cost`) gets a made-up edit of one weight."""
    if not hasattr(run.denoiser, "declare"):
        return Edit.load(file)
    name, layer = next(iter(run.denoiser.layers().items()))
    return Edit({name: torch.tensor([place])}, {name: tuple(layer.weight.shape)}, {"model": fingerprint(run.pipe)})


def removed(run: Run) -> Pairs:
    """The memorized pairs that are attacked; the parameter `deletion.targets` is their number."""
    places = _attacked_places(run)
    return Pairs(*memorized_pairs(run, places), [run.data.memorized.wordings[place] for place in places])


def _attacked_places(run: Run) -> list[int]:
    return run.data.memorized.mixed(run.data.references)[: run.parameters.deletion.targets]


def work(run: Run) -> pd.DataFrame:
    """Work of the embedding attack until an image is sampled: `attack_work`, with columns model and pairs.

    The attack starts from the captions of memorized pairs (`pairs` is `FORGET_SET`) and of unseen ones (`UNSEEN`, see
    `notebook05.unseen_pairs`).
    """
    p, memorized = run.parameters, removed(run)
    subjects = {FORGET_SET: memorized, UNSEEN: Pairs(*unseen_pairs(run, len(memorized)))}
    options: dict[str, Any] = {"iterations": p.deletion.iterations, "noises": p.deletion.noises}
    options["sampling"] = p.sampling.model_dump(exclude={"batch_size"})
    tables = []
    for model in models(run):
        for kind, pairs in subjects.items():
            make = partial(_attacked, run, model, pairs, options)
            content = {"model": model, "captions": pairs.captions, "images": pairs.images, "judge": run.judge}
            table = run.store.table(ATTACK_WORK, make, **content, **options)
            tables.append(table.assign(model=model.name, pairs=kind))
            if kind == FORGET_SET:
                sampled = dict(zip(_attacked_places(run), table["iterations"] < np.inf, strict=True))
                note_outcomes(run, "attack work", {"model": model.name}, sampled, "sampled", list(sampled))
    return pd.concat(tables, ignore_index=True)


def _attacked(run: Run, model: Model, pairs: Pairs, options: dict[str, Any]) -> pd.DataFrame:
    denoiser = as_denoiser(model.pipe)
    start = denoiser.embed(pairs.captions)
    rows = gradient_rows(denoiser, run.parameters.sampling.batch_size)
    with model.applied() as pipe:
        return attack_work(pipe, pairs, start, run.judge, batch_size=rows, **options)


def attack_table(work: pd.DataFrame, reference: str | None) -> pd.DataFrame:
    """Shares of images that the attack has brought back from captions after its last iteration, one row per model.

    Args:
        work: the result of `work` or of `shipped.long_attack`.
        reference: the model that was never trained on the memorized images; None if there is none.

    Returns:
        Columns memorized and unseen (shares, with their 95 % intervals) and n (number of memorized pairs). With a
        reference also difference (of memorized, paired, with its interval) and verdict (`equivalence`). log_rank is
        the p-value, adjusted over models by Holm, that compares the least work over all starts with that of the
        reference; without a reference, with that on unseen images.
    """
    rows, p = {}, {}
    parts = {key: part.sort_values("target") for key, part in work.groupby(["model", "pairs"], sort=False)}
    for model in work["model"].unique():
        memorized, unseen = parts[model, FORGET_SET], parts[model, UNSEEN]
        theirs = parts[reference, FORGET_SET] if reference else unseen
        row: dict[str, Any] = _interval("memorized", spanned(_generated(memorized)))
        row |= _interval("unseen", spanned(_generated(unseen))) | {"n": len(_generated(memorized))}
        if model != reference:
            p[model] = log_rank(earliest(memorized), earliest(theirs))
        if reference not in (None, model):
            beside = equivalence(_generated(memorized), _generated(theirs), "rate")
            row |= _interval("difference", (beside.value, beside.low, beside.high)) | {"verdict": beside.verdict}
        rows[model] = row
    return pd.DataFrame(rows).T.astype({"n": int}).assign(log_rank=pd.Series(holm(p)))


def _interval(name: str, values: Sequence[float]) -> dict[str, Any]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _generated(work: pd.DataFrame) -> np.ndarray:
    """Which targets the attack from their captions has brought back at all: bool (targets,)."""
    begun = work[work["start"] == STARTS[0]] if "start" in work else work
    return np.isfinite(begun["iterations"].to_numpy(float))


def at_last(work: pd.DataFrame) -> dict[str, float]:
    """Share of images that the attack on one or several models has brought back from captions in the end, for
    documents: value, low and high (95 % over targets), n (targets)."""
    last = attack_curve(work[work["start"] == STARTS[0]]).iloc[-1]
    return {"value": last["share"], "low": last["low"], "high": last["high"], "n": int(last["n"])}


def membership_table(table: pd.DataFrame) -> pd.DataFrame:
    """`shipped.membership` as text with 95 % intervals: one row per caption that the model got, and model."""
    by_test = table.set_index(["caption", "model"])
    columns = {"mean": "mean p", "least": "pairs with the smallest p (%)", "against_twin": "mean p less the twin's"}
    ends = {"mean": ("low", "high")} | {name: (f"{name}_low", f"{name}_high") for name in ("least", "against_twin")}
    shown = {}
    for name, title in columns.items():
        scale, form = (100, ".0f") if name == "least" else (1, ".3f")
        values = scale * by_test[[name, *ends[name]]].astype(float)
        shown[title] = [f"{Span(*row):{form}}" if np.isfinite(row[0]) else "" for row in values.to_numpy()]
    shown |= {f"within {MARGINS['mean p'].high:g}?": by_test["verdict"].fillna("")}
    shown |= {"uniform? (KS, Holm)": by_test["holm"].map("{:.2g}".format), "pairs": by_test["n"]}
    return pd.DataFrame(shown, index=by_test.index)


def priced(summary: pd.DataFrame) -> pd.DataFrame:
    """Adds to a summary of audits columns minutes (of a CPU core), compute (percent of training the UNet) and megabytes
    (of the edit). The twin has the minutes of training the UNet. Rows without measured minutes are left out.
    """
    costs, training = pd.DataFrame(shipped.costs()).T.reindex(summary.index), shipped.training_minutes()
    minutes = costs["minutes"].astype(float) * costs["threads"].astype(float)
    if TWIN in minutes.index:
        minutes[TWIN] = training
    table = summary.assign(minutes=minutes, compute=100 * minutes / training, megabytes=costs["bytes"] / 1e6)
    return table.dropna(subset=["compute"])


def ordinary_pairs(run: Run, n: int) -> Pairs:
    """Ordinary captions with their training images or, if these are unknown, images that the unedited model samples."""
    captions = run.data.prompts.of("ordinary")[:n]
    if "image" in run.data.prompts.table:
        return Pairs(captions, run.data.prompts.images("ordinary", 0, len(captions)))
    return Pairs(captions, run.scores.images(run.unedited, captions, run.scores.seeds(captions)))


def revival(run: Run) -> pd.DataFrame:
    """Evaluates the unedited model, METHOD's edit, and the edit with other values in place of its zeros (`FILLED`).

    One row per model: the result of `Scores.evaluate`, with the interval of the relative alignment.
    """
    located_on, pruned = run.data.split["locate"], run.model()
    places = run.data.held_out(located_on)[: run.parameters.evaluation.captions]
    assert pruned.edit is not None  # for the type checker: a model with a spec has an edit
    make = partial(imputed, run.pipe, pruned.edit)
    completed = run.store.get(IMPUTED, Edit, make, model=run.unedited, edit=pruned.edit.positions)
    filled = dict(zip(FILLED, (completed, revived(run.pipe, completed)), strict=True))
    compared = [run.unedited, pruned]
    compared += [Model(f"pruned, zeros {name}", run.pipe, edit) for name, edit in filled.items()]
    rows = []
    for model in compared:
        note_evaluated(run, "revival", {"model": model.name}, model, places, listed(run, located_on))
        row = {"model": model.name} | run.scores.evaluate(model, places)
        captions = run.parameters.evaluation.captions  # of these, `evaluate` has stored the samples
        ours, theirs = (alignment_each(run.scores.unseen(which, captions)) for which in (model, run.scores.reference))
        low, high = ratio_interval(ours, theirs, paired=True)
        rows.append(row | {"relative_low": low, "relative_high": high})
    return pd.DataFrame(rows)


NOTEBOOK = Notebook(
    "06_deletion",
    experiments={"attack work": work, "revival of zeros": revival},
    needs=(notebook01.NAME,),
)
