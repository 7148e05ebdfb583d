"""Notebook 04: set to zero, are other memorized images still replicated, and what is lost?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from memsub.measure.distances import fid, kid
from memsub.measure.evaluation import alignment_each
from memsub.measure.metrics import Metrics
from memsub.measure.noise import noise_seeds
from memsub.models import Sample
from memsub.neurons import locate
from memsub_extra.run.model import Model
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run
from memsub_extra.run.specs import Contrast, Group
from memsub_extra.store import Kind

from . import notebook01
from .listing import Notebook
from .rows import TWIN, Row, evaluated, twin_row, under_attack

CONDITIONAL = Kind("conditional")
DISTANCES = Kind("distances")
KEPT = 0.85
"""Share of the unedited model's alignment that a recommended edit keeps."""


def sweep(run: Run) -> pd.DataFrame:
    """Settings of the edit, located on the first third of the memorized prompts and evaluated on the second.

    Contrast x steps x sparsity; density-matched random weights beside the paper's contrast.
    """
    p = run.parameters
    rows = [Row({"contrast": "", "steps": 0, "sparsity": 0.0})]
    rows += twin_row(run, contrast=TWIN, steps=0, sparsity=0.0)
    contrasts: tuple[Contrast, ...] = ("empty", "ordinary")
    for contrast, steps, sparsity in product(contrasts, p.sweep.steps, p.sweep.sparsity):
        setting = {"contrast": contrast, "steps": steps, "sparsity": sparsity}
        spec = p.spec.changed(**setting)
        rows.append(Row(setting, spec))
        if contrast == "empty" and steps == p.edit.steps:
            rows.append(Row(setting | {"contrast": "random"}, spec.changed(random=0)))
    return evaluated(run, rows, "choose", "sweep")


def choose(table: pd.DataFrame, p: Parameters) -> pd.Series:
    """The row of a sweep by the rule that sets the recommended edit.

    Of the paper's contrast and the run's tau, the one that replicates least (by the exact test, where there is one)
    among those that keep `KEPT` of the unedited model's alignment, the sparsest of equals; where none does, the
    sparsest.

    Args:
        table: of `sweep`, the unedited model first.
    """
    ours = table[(table["contrast"] == "empty") & (table["steps"] == p.edit.steps)].sort_values("sparsity")
    kept = ours[ours["relative_alignment"] >= KEPT * table["relative_alignment"].iloc[0]]
    rate = "exact_rate" if "exact_rate" in ours else "replication_rate"
    return kept.sort_values(rate, kind="stable").iloc[0] if len(kept) else ours.iloc[0]


def variants(run: Run) -> pd.DataFrame:
    """The chosen edit with one thing changed at a time, reported on held-out prompts."""
    spec, smallest = run.parameters.spec, run.parameters.grid.sizes[0]
    rows = [
        Row({"variant": "unedited"}),
        Row({"variant": "as chosen"}, spec),
        *(Row({"variant": f"r = {r:g}"}, spec.changed(threshold=r)) for r in (0.25, 0.5)),
        *(Row({"variant": f"{side} layers only"}, spec.changed(layers=(f"{side}_block",))) for side in ("down", "up")),
        Row(
            {"variant": f"located on {smallest} prompts"},
            spec.changed(located_on=Group.subset("memorized", smallest, 0)),
        ),
        *twin_row(run, variant=TWIN),
    ]
    table = evaluated(run, rows, "report", "variants")
    held_out = run.data.held_out(run.data.split["locate"])
    row = {"variant": "conditional half alone"} | run.scores.evaluate(conditional(run), held_out)
    return pd.concat([table, pd.DataFrame([row])], ignore_index=True)


def conditional(run: Run) -> Model:
    """The model with the edit that activations of the conditional half of guided calls locate, those alone."""
    spec = run.parameters.spec
    captions = [run.data.captions("memorized")[i] for i in run.data.split["locate"]]
    options: dict[str, Any] = {"cfg_half": "cond", "first": spec.steps}
    stats, null = (run.grid.captured(CONDITIONAL, prompts, **options) for prompts in (captions, [""]))
    edit = locate(run.pipe, stats, null, spec.sparsity).union(spec.steps, spec.threshold)
    return Model("conditional half alone", run.pipe, edit.only(spec.layers) if spec.layers else edit)


def model_rows(run: Run) -> list[Row]:
    """One pruned model for each subset of the smallest size, some with controls; the unedited model, the twin."""
    p, spec, size = run.parameters, run.parameters.spec, run.parameters.grid.sizes[0]
    rows = [Row({"model": "unedited", "subset": -1}), *twin_row(run, model=TWIN, subset=-1)]
    for i in range(min(p.evaluation.models, p.grid.subsets)):
        located = spec.changed(located_on=Group.subset("memorized", size, i))
        rows.append(Row({"model": "pruned, located on memorized prompts", "subset": i}, located))
        if i < p.evaluation.controls:
            ordinary = spec.changed(located_on=Group.subset("ordinary", size, i), contrast="empty")
            rows.append(Row({"model": "pruned, at random", "subset": i}, located.changed(random=i)))
            rows.append(Row({"model": "pruned, located on ordinary prompts", "subset": i}, ordinary))
    return rows


def models(run: Run) -> pd.DataFrame:
    """The pruned models of the paper's Fig. 3, reported on prompts that neither located them nor chose the setting."""
    return evaluated(run, model_rows(run), "report", "pruned models")


def by_caption(run: Run) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What `models` summarizes, a row a caption and a column a kind of model: captions are the independent units.

    Returns:
        Shares of a kind's models that replicate each memorized caption by the run's verdict, the same by the copy
        metric, and mean alignment of each unseen caption.
    """
    n, tables = run.parameters.evaluation.captions, []
    for row in model_rows(run):
        located_on = run.data.located_on(row.spec.located_on) if row.spec else []
        model, places = row.model(run), run.data.held_out(located_on)[:n]
        scored, unseen = run.scores.memorized(model, places), run.scores.unseen(model, n)
        verdicts = pd.DataFrame({"prompt": scored["prompt"], "verdict": run.judge.of(scored) * 1.0})
        verdicts["copied"] = scored["replicated"] * 1.0
        aligned = pd.DataFrame({"prompt": unseen["prompt"], "alignment": alignment_each(unseen)})
        tables.append(pd.concat([verdicts, aligned]).assign(model=row.labels["model"]))
    table = pd.concat(tables)
    kept = (table.dropna(subset=[column]) for column in ("verdict", "copied", "alignment"))
    verdict, copied, aligned = (
        part.pivot_table(index="prompt", columns="model", values=column).dropna()  # captions that all models have
        for part, column in zip(kept, ("verdict", "copied", "alignment"), strict=True)
    )
    return verdict, copied, aligned


def seeds(run: Run) -> pd.DataFrame:
    """Copy similarity between two seeds of one caption: rows are models, columns kinds of captions."""
    held_out, n = run.data.held_out(run.data.split["locate"]), run.parameters.evaluation.seed_captions
    memorized = [run.data.captions("memorized")[i] for i in held_out]
    captions = {"memorized": memorized[:n], "never seen": run.data.prompts.of("heldout")[:n]}
    table = {}
    for model in under_attack(run):

        def sample(prompts: Sequence[str], *, seeds: Sequence[int], model: Model = model) -> np.ndarray:
            return run.scores.images(model, prompts, seeds)

        options = {"seeds": 3, "own_noise": run.parameters.evaluation.own_noise}
        similar = {kind: seed_similarity(sample, run.metrics, part, **options) for kind, part in captions.items()}
        table[model.name] = {kind: values.mean() for kind, values in similar.items()}
    return pd.DataFrame(table).T


def seed_similarity(
    sample: Sample, metrics: Metrics, captions: Sequence[str], seeds: int = 4, own_noise: bool = True
) -> np.ndarray:
    """Copy similarity of the images of every two seeds of each caption, shape (captions, pairs).

    It is high where a caption gives nearly the same image for every seed. Each image has a noise of its own, or
    (`own_noise` false) that of its seed.
    """
    prompts, numbers = np.repeat(captions, seeds).tolist(), np.tile(range(seeds), len(captions)).tolist()
    images = sample(prompts, seeds=noise_seeds(prompts, numbers) if own_noise else numbers)
    features = metrics.copy.features(images).reshape(len(captions), seeds, -1)
    i, j = np.triu_indices(seeds, 1)
    return (features[:, i] * features[:, j]).sum(-1)


def distances(run: Run) -> pd.DataFrame:
    """KID and FID (x 1000) of what is sampled for unseen captions, and of as many real images: the floor.

    All rows have equally many images and are compared with the same others. Without enough real images for both, there
    is no floor.
    """
    n, real = run.parameters.evaluation.real_images, run.scores.real_features
    enough = len(real) >= 2 * n
    reference = real[n:] if enough else real
    sets = {"real pictures": real[:n]} if enough else {}
    for model in under_attack(run):
        sets[model.name] = np.stack(run.scores.unseen(model, n)["image_features"])
    rows: list[dict[str, Any]] = []
    for name, features in sets.items():
        kernel, frechet = kid_of(run, reference, features), fid_of(run, reference, features)
        rows.append({"pictures": name, **kernel, **frechet, "n": len(features)})
    return pd.DataFrame(rows)


def kid_of(run: Run, reference: np.ndarray, features: np.ndarray) -> dict[str, float]:
    """KID and its deviation over subsets (x 1000) of image features; computed once."""
    return _distance(run, ["kid", "kid_deviation"], lambda: kid(reference, features), reference, features)


def fid_of(run: Run, reference: np.ndarray, features: np.ndarray) -> dict[str, float]:
    """FID (x 1000) of image features; computed once."""
    return _distance(run, ["fid"], lambda: (fid(reference, features),), reference, features)


def _distance(
    run: Run, names: list[str], measured: Callable[[], Sequence[float]], reference: np.ndarray, features: np.ndarray
) -> dict[str, float]:
    def make() -> pd.DataFrame:
        return 1000 * pd.DataFrame([measured()], columns=names)

    table = run.store.table(DISTANCES, make, names=names, reference=reference, features=features)
    return table.iloc[0].to_dict()


NOTEBOOK = Notebook(
    "04_pruning",
    experiments={
        "sweep": sweep,
        "variants": variants,
        "pruned models and controls": models,
        "similarity between seeds": seeds,
        "KID and FID": distances,
    },
    needs=(notebook01.NAME,),
)
