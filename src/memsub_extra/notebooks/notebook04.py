"""Notebook 04: after pruning, are held-out memorized images still replicated, and what else changes?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from memsub.measure.metrics import Metrics
from memsub.measure.noise import noise_seeds
from memsub.models import Sample
from memsub_extra.run.model import Model
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run
from memsub_extra.run.specs import Contrast, Group

from . import notebook01
from .intervals import Span, mean_interval, ratio_interval
from .kinds import kinds_of, listed, note, references
from .listing import Notebook
from .rows import (
    PAPER,
    Row,
    baseline_rows,
    control_rows,
    evaluated,
    of_captions,
    per_caption,
    share_interval,
    under_attack,
)

KEPT = 0.85
"""Share of the unedited model's alignment that a recommended edit keeps."""
WEN = "embedding optimization"
"""The baseline that the paper compares with (Wen et al., ICLR 2024)."""
CONTRASTS: tuple[Contrast, ...] = ("empty", "ordinary")


def sweep(
    run: Run, sparsities: Sequence[float] | None = None, contrasts: Sequence[Contrast] = CONTRASTS
) -> pd.DataFrame:
    """A sweep of settings of the edit, located on the first third of the memorized prompts, evaluated on the second.

    It combines contrast, steps (`sweep.steps`) and sparsity, and adds density-matched random weights (for the paper's
    contrast at the largest sparsity), the unedited model and the controls.

    Args:
        sparsities: default `sweep.sparsity`; the paper's sparsity is always included.
    """
    p = run.parameters
    shares = sorted({PAPER, *(p.sweep.sparsity if sparsities is None else sparsities)})
    rows = [Row({"contrast": "unedited", "steps": 0, "sparsity": 0.0})]
    rows += control_rows(run, "contrast", steps=0, sparsity=0.0)
    for contrast, steps, sparsity in product(contrasts, p.sweep.steps, shares):
        setting = {"contrast": contrast, "steps": steps, "sparsity": sparsity}
        rows.append(Row(setting, p.spec.changed(**setting)))
    largest = {"steps": p.edit.steps, "sparsity": shares[-1]}
    rows.append(Row({"contrast": "random"} | largest, p.spec.changed(**largest, contrast="empty", random=0)))
    return evaluated(run, rows, "choose", "sweep")


def choose(table: pd.DataFrame, p: Parameters) -> pd.Series:
    """Chooses the recommended edit: a row of a sweep.

    Candidates have the paper's contrast and the run's tau, and keep at least `KEPT` of the unedited model's alignment.
    The rule takes the one with the lowest replication rate (by the exact test, if there is one); of equal ones, the
    sparsest. Without candidates it takes the sparsest edit.

    Args:
        table: result of `sweep`, the unedited model first.
    """
    ours = table[(table["contrast"] == "empty") & (table["steps"] == p.edit.steps)].sort_values("sparsity")
    kept = ours[ours["relative_alignment"] >= KEPT * table["relative_alignment"].iloc[0]]
    rate = "exact_rate" if "exact_rate" in ours else "replication_rate"
    return kept.sort_values(rate, kind="stable").iloc[0] if len(kept) else ours.iloc[0]


TEN, THIRD, AT_PAPER = "pruned, ten prompts each", "pruned, a third of the prompts", "pruned, the paper's 1 %"
RANDOM, ORDINARY = "pruned at random", "pruned, located on ordinary prompts"
"""Names of the models of `model_rows` in tables."""


def model_rows(run: Run, models: int, controls: int) -> list[Row]:
    """The unedited model, the controls, edits that single subsets of the smallest size locate, and edits for
    comparison.

    Args:
        models: number of subsets that locate an edit at the run's sparsity; the first also locates one at the paper's.
        controls: number of these edits that are compared with density-matched random weights, and with an edit that
            equally many ordinary prompts locate.
    """
    p, spec, size = run.parameters, run.parameters.spec, run.parameters.grid.sizes[0]
    ten = [spec.changed(located_on=Group.subset("memorized", size, i)) for i in range(min(models, p.grid.subsets))]
    ordinary = [Group.subset("ordinary", size, i) for i in range(controls)]
    rows = [Row({"model": "unedited"}), *control_rows(run, "model")]
    rows += [Row({"model": TEN}, each) for each in ten]
    rows += [Row({"model": THIRD}, spec), Row({"model": AT_PAPER}, ten[0].changed(sparsity=PAPER))]
    rows += [Row({"model": RANDOM}, each.changed(random=i)) for i, each in enumerate(ten[:controls])]
    rows += [Row({"model": ORDINARY}, spec.changed(located_on=group, contrast="empty")) for group in ordinary]
    return rows


def pruned_models(run: Run, models: int | None = None) -> pd.DataFrame:
    """`model_rows` (default: `evaluation.models`), on prompts that neither located nor chose them."""
    p = run.parameters.evaluation
    rows = model_rows(run, p.models if models is None else models, p.controls)
    return evaluated(run, rows, "report", "pruned models").assign(strength="")


def wen(run: Run, strengths: Sequence[float] | None = None) -> pd.DataFrame:
    """The baseline of Wen et al. at several strengths (default: of the parameters), on the same captions."""
    rows = baseline_rows(run, WEN, strengths, column="model")
    return evaluated(run, rows, "report", WEN) if rows else pd.DataFrame()


def averaged(run: Run) -> pd.DataFrame:
    """`model_rows`, averaged over models with the same name, with intervals over their common captions.

    Returns:
        A row for each name: models; verdict, copied and kept (alignment relative to the unedited model), each with
        `_low` and `_high`; and captions (their number).
    """
    p = run.parameters.evaluation
    rows, table = model_rows(run, p.models, p.controls), {}
    each = per_caption(run, rows, "report")
    verdict, copied, aligned = (of_captions(each, column) for column in ("verdict", "copied", "alignment"))
    for name in verdict:
        entries: dict[str, Any] = {"models": sum(row.labels["model"] == name for row in rows)}
        for column, values in {"verdict": verdict[name], "copied": copied[name]}.items():
            entries |= Span(values.mean(), *share_interval(values)).columns(column)
        whole = aligned["unedited"]
        kept = Span(aligned[name].mean() / whole.mean(), *ratio_interval(aligned[name], whole, paired=True))
        entries |= kept.columns("kept") | {"captions": len(verdict)}
        table[name] = entries
    return pd.DataFrame(table).T


def seeds(run: Run) -> pd.DataFrame:
    """Copy similarity between two seeds of a held-out memorized caption, with its interval.

    All models sample the same captions. The controls show the value for captions that a model was not trained on.
    """
    places = run.data.held_out(run.data.split["locate"])[: run.parameters.evaluation.seed_captions]
    captions = [run.data.captions("memorized")[i] for i in places]
    rows = []
    for model in tqdm(under_attack(run), desc="two seeds"):

        def sample(prompts: Sequence[str], *, seeds: Sequence[int], model: Model = model) -> np.ndarray:
            return run.scores.images(model, prompts, seeds)

        similar = seed_similarity(sample, run.metrics, captions, seeds=2).mean(1)
        _note_seeds(run, model.name, similar, places)
        row = {"model": model.name, "captions": len(similar)}
        rows.append(row | Span(similar.mean(), *mean_interval(similar)).columns("similarity"))
    return pd.DataFrame(rows)


def _note_seeds(run: Run, model: str, similar: np.ndarray, places: list[int]) -> None:
    """Notes the mean similarity of seeds by kind; `similar` has a value for each of the captions at `places`."""
    of_part, rows = listed(run, run.data.split["locate"]), []
    for kind in kinds_of(run):
        values = [
            value for value, place in zip(similar, places, strict=True) if run.data.memorized.of_kind([place], kind)
        ]
        row = {"model": model, "kind": kind, "n": len(values), **references(run, of_part, kind)}
        rows.append(row | ({"copy similarity of two seeds": float(np.mean(values))} if values else {}))
    note(run, "similarity between seeds", rows)


def seed_similarity(sample: Sample, metrics: Metrics, captions: Sequence[str], seeds: int = 4) -> np.ndarray:
    """Copy similarity of the images of every two seeds of each caption, shape (captions, pairs).

    It is high if a caption gives nearly the same image for every seed.
    """
    prompts, numbers = np.repeat(captions, seeds).tolist(), np.tile(range(seeds), len(captions)).tolist()
    images = sample(prompts, seeds=noise_seeds(prompts, numbers))
    features = metrics.copy.features(images).reshape(len(captions), seeds, -1)
    i, j = np.triu_indices(seeds, 1)
    return (features[:, i] * features[:, j]).sum(-1)


NOTEBOOK = Notebook(
    "04_pruning",
    experiments={
        "sweep": sweep,
        "pruned models": pruned_models,
        "Wen et al.": wen,
        "similarity between seeds": seeds,
    },
    needs=(notebook01.NAME,),
)
