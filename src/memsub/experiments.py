"""What the notebooks compute: each experiment is a table (or pictures), made once in the life of a run folder.

    EXPERIMENTS["sweep"].result(run)           # what notebook 04 shows
    EXPERIMENTS["sweep"].cost(parameters)      # what that samples, before anything is loaded: `memsub run --dry-run`
    precompute(run)                            # all of them, by all processes of an `accelerate launch` together

An experiment lists its conditions from the parameters alone; its result and its cost are both made from that list.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from . import attacks, audit
from .baselines import BASELINES, Context
from .controls import random_edit
from .denoiser import Denoiser, sampler_fingerprint
from .detection import SCORES, first_step_scores, roc
from .distributed import hardware
from .evaluation import seed_similarity, summary
from .exact import LEVEL
from .generation import Sample
from .metrics import fid, kid
from .models import find_model
from .neurons import locate
from .parameters import Parameters
from .prompts import other_wording
from .pruning import Edit, pruned
from .runs import Run
from .store import code_version
from .testbed import deletion as shipped
from .testbed import widths
from .testbed.dataset import LADDER, PAIRS_PER_RUNG, TEMPLATE_GROUPS

LOCATE = "memorized locate"
"""The group of the grid whose edit is reported."""
KEPT = 0.85
"""Share of the unedited model's alignment that a recommended edit keeps."""
TWIN = "twin"
"""What tables call the model that never saw a memorized pair."""


@dataclass(frozen=True)
class Condition:
    """A model of an experiment: what the table calls it, and how its edit is made (no group: unedited).

    Attributes:
        changed: parameters `edit` that differ.
        random: as many weights of each layer at random, with this seed.
        twin: the twin instead.
        file: of an edit that was made elsewhere.
    """

    labels: dict[str, Any]
    group: str | None = None
    changed: dict[str, Any] = field(default_factory=dict)
    random: int | None = None
    twin: bool = False
    file: str | Path = ""

    def edit(self, run: Run) -> Edit | None:
        if self.file:
            return Edit.load(self.file)
        if self.group is None:
            return None
        edit = run.edit(self.group, **self.changed)
        return edit if self.random is None else random_edit(edit, self.random)

    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        """Within it, the run's pipeline is this model."""
        with run.as_twin() if self.twin else pruned(run.pipe, self.edit(run)):
            yield


@dataclass(frozen=True)
class Work:
    """Images to sample, denoising steps of each; `weight` is the cost of a step in guided steps of one image."""

    images: int
    steps: int
    weight: float = 1.0


@dataclass(frozen=True)
class Experiment:
    """What a notebook shows: how it is made, and what that costs."""

    notebook: str
    title: str
    result: Callable[[Run], Any]
    cost: Callable[[Parameters], list[Work]]

    def steps(self, p: Parameters) -> int:
        """Guided steps of one image that it costs."""
        return round(sum(w.images * w.steps * w.weight for w in self.cost(p)))


def _held_out_captions(p: Parameters, wanted: int) -> int:
    """Memorized captions of one part of the split that are scored, if all have training images."""
    return min(wanted, p.grid.memorized // 3)


def twin(p: Parameters, **labels: Any) -> list[Condition]:
    """The twin as a row of a table, where the model has one."""
    return [Condition(labels, twin=True)] if find_model(p.model).twin else []


def conditions(p: Parameters) -> list[Condition]:
    """The models under attack."""
    return [
        Condition({"model": "unedited"}),
        Condition({"model": "pruned"}, LOCATE),
        Condition({"model": "pruned at random"}, LOCATE, random=0),
        *twin(p, model=TWIN),
    ]


def _under(run: Run, wanted: Sequence[Condition]) -> Iterator[str]:
    """The name of each condition, while the pipeline is that model."""
    for condition in wanted:
        with condition.applied(run):
            yield condition.labels["model"]


def _evaluated(run: Run, wanted: Sequence[Condition], part: str, description: str) -> pd.DataFrame:
    rows = []
    for condition in tqdm(wanted, desc=description):
        located_on = run.located_on(condition.group) if condition.group else []
        with run.as_twin() if condition.twin else nullcontext():
            rows.append(condition.labels | run.evaluate(condition.edit(run), run.held_out(located_on, part)))
    return pd.DataFrame(rows)


def _evaluation_cost(p: Parameters, wanted: Sequence[Condition]) -> list[Work]:
    memorized = _held_out_captions(p, p.evaluation.captions)
    return [Work(len(wanted) * (memorized + p.evaluation.captions), p.sampling.steps)]


# --- notebook 01: capture ----------------------------------------------------------------------------------------


def capture_cost(p: Parameters) -> list[Work]:
    return [Work(2 * p.grid.memorized + 1, p.capture.steps)]  # memorized, ordinary, and the empty prompt


# --- notebook 04: pruning ----------------------------------------------------------------------------------------


def sweep_conditions(p: Parameters) -> list[Condition]:
    """Contrast x steps x sparsity; as many weights at random beside the paper's contrast."""
    found = [Condition({"contrast": "", "steps": 0, "sparsity": 0.0})]
    found += twin(p, contrast=TWIN, steps=0, sparsity=0.0)
    for contrast, steps, sparsity in product(("empty", "ordinary"), p.sweep.steps, p.sweep.sparsity):
        setting = {"contrast": contrast, "steps": steps, "sparsity": sparsity}
        found.append(Condition(setting, LOCATE, setting))
        if contrast == "empty" and steps == p.edit.steps:
            found.append(Condition(setting | {"contrast": "random"}, LOCATE, setting, random=0))
    return found


def sweep(run: Run) -> pd.DataFrame:
    """Settings of the edit, located on the first third of the memorized prompts and evaluated on the second."""
    return _evaluated(run, sweep_conditions(run.parameters), "choose", "sweep")


def choose(table: pd.DataFrame, p: Parameters) -> pd.Series:
    """The row of a sweep by the rule that sets the recommended edit.

    Of the paper's contrast and the run's tau, the one that replicates least (by the exact test, where the world can be
    drawn) among those that keep `KEPT` of the unedited model's alignment, the sparsest of equals; where none does, the
    sparsest.

    Args:
        table: of `sweep`, the unedited model first.
    """
    own = table[(table["contrast"] == "empty") & (table["steps"] == p.edit.steps)].sort_values("sparsity")
    kept = own[own["relative_alignment"] >= KEPT * table["relative_alignment"].iloc[0]]
    rate = "exact_rate" if "exact_rate" in own else "replication_rate"
    return kept.sort_values(rate, kind="stable").iloc[0] if len(kept) else own.iloc[0]


def variant_conditions(p: Parameters) -> list[Condition]:
    """One thing changed at a time."""
    smallest = p.grid.sizes[0]
    return [
        Condition({"variant": "unedited"}),
        Condition({"variant": "as chosen"}, LOCATE),
        *(Condition({"variant": f"r = {r:g}"}, LOCATE, {"threshold": r}) for r in (0.25, 0.5)),
        *(
            Condition({"variant": f"{name} layers only"}, LOCATE, {"layers": [f"{name}_block"]})
            for name in ("down", "up")
        ),
        Condition({"variant": f"located on {smallest} prompts"}, f"memorized {smallest}/0"),
        *twin(p, variant=TWIN),
    ]


def variants(run: Run) -> pd.DataFrame:
    """The chosen edit with one thing changed, reported on held-out prompts; and one from the conditional half alone."""
    p = run.parameters
    table = _evaluated(run, variant_conditions(p), "report", "variants")
    captions = [run.captions("memorized")[i] for i in run.split["locate"]]
    how: dict[str, Any] = {"cfg_half": "cond", "first": p.edit.steps}
    stats, null = (run.captured("conditional", some, **how) for some in (captions, [""]))
    edit = locate(run.pipe, stats, null, p.edit_sparsity).union(p.edit.steps, p.edit.threshold)
    edit = edit.only(p.edit.layers) if p.edit.layers else edit
    row = {"variant": "conditional half alone"} | run.evaluate(edit, run.held_out(run.split["locate"]))
    return pd.concat([table, pd.DataFrame([row])], ignore_index=True)


def variants_cost(p: Parameters) -> list[Work]:
    own = [Condition({"variant": "conditional half alone"}, LOCATE)]
    capture = Work(-(-p.grid.memorized // 3) + 1, p.edit.steps)
    return [capture, *_evaluation_cost(p, variant_conditions(p) + own)]


def model_conditions(p: Parameters) -> list[Condition]:
    """One pruned model for each subset of the smallest size; some with controls."""
    size, found = p.grid.sizes[0], [Condition({"model": "unedited", "subset": -1}), *twin(p, model=TWIN, subset=-1)]
    for i in range(min(p.evaluation.models, p.grid.subsets)):
        of = {"subset": i}
        found.append(Condition({"model": "pruned, located on memorized prompts"} | of, f"memorized {size}/{i}"))
        if i < p.evaluation.controls:
            found.append(Condition({"model": "pruned, at random"} | of, f"memorized {size}/{i}", random=i))
            ordinary = {"contrast": "empty"}
            found.append(
                Condition({"model": "pruned, located on ordinary prompts"} | of, f"ordinary {size}/{i}", ordinary)
            )
    return found


def models(run: Run) -> pd.DataFrame:
    """The pruned models of the paper's Fig. 3, reported on prompts that neither located them nor chose the setting."""
    return _evaluated(run, model_conditions(run.parameters), "report", "pruned models")


def seeds(run: Run) -> pd.DataFrame:
    """Copy similarity between two seeds of one caption: rows are models, columns kinds of captions."""
    p = run.parameters
    memorized = [run.captions("memorized")[i] for i in run.held_out(run.split["locate"])]
    captions = {"memorized": memorized, "never seen": run.prompts.of("heldout")}
    rows = {}
    for name in _under(run, conditions(p)):
        rows[name] = {
            kind: seed_similarity(run.drawn, run.metrics, some[: p.evaluation.seed_captions], seeds=3).mean()
            for kind, some in captions.items()
        }
    return pd.DataFrame(rows).T


def seeds_cost(p: Parameters) -> list[Work]:
    n = p.evaluation.seed_captions
    return [Work(3 * len(conditions(p)) * (n + _held_out_captions(p, n)), p.sampling.steps)]


def distances(run: Run) -> pd.DataFrame:
    """KID and FID (x 1000) of what is sampled for never-seen captions, and of as many real pictures: the floor.

    All rows have equally many pictures and are compared with the same others. Without enough real pictures for both,
    there is no floor.
    """
    n, real = run.parameters.evaluation.real_images, run.real_features
    enough = len(real) >= 2 * n
    reference = real[n:] if enough else real
    sets = {"real pictures": real[:n]} if enough else {}
    for name in _under(run, conditions(run.parameters)):
        sets[name] = np.stack(run.scored_never_seen(n)["image_features"])
    rows: list[dict[str, Any]] = []
    for name, features in sets.items():
        rows.append(
            {"pictures": name, **_kid(run, reference, features), **_fid(run, reference, features), "n": len(features)}
        )
    return pd.DataFrame(rows)


def _kid(run: Run, reference: np.ndarray, features: np.ndarray) -> dict[str, float]:
    """KID and its deviation over subsets (x 1000) of image features; computed once."""
    return _distance(run, ["kid", "kid_deviation"], lambda: kid(reference, features), reference, features)


def _fid(run: Run, reference: np.ndarray, features: np.ndarray) -> dict[str, float]:
    """FID (x 1000) of image features; computed once."""
    return _distance(run, ["fid"], lambda: (fid(reference, features),), reference, features)


def _distance(
    run: Run, names: list[str], measured: Callable[[], Sequence[float]], reference: np.ndarray, features: np.ndarray
) -> dict[str, float]:
    def make() -> pd.DataFrame:
        return 1000 * pd.DataFrame([measured()], columns=names)

    table = run.store.table("distances", make, names=names, reference=reference, features=features)
    return table.iloc[0].to_dict()


def distances_cost(p: Parameters) -> list[Work]:
    return [Work(len(conditions(p)) * p.evaluation.real_images, p.sampling.steps)]


def width_law(run: Run, rows: Sequence[int]) -> pd.DataFrame:
    """`testbed.widths.law` of the shipped table for rows of other models; its bootstrap is drawn once."""
    table = widths.measured()

    def make() -> dict[str, np.ndarray]:
        return {"law": widths.law(table, rows).to_numpy()}

    found = run.store.arrays("width-law", make, table=table.to_numpy(float), rows=list(rows))["law"]
    return pd.DataFrame(found, index=["slope", *rows], columns=["value", "low", "high"])


# --- notebook 05: baselines --------------------------------------------------------------------------------------


def gradient_rows(denoiser: Denoiser) -> int:
    """Rows of a network call that keeps its activations for a gradient: four at 64 x 64 latents, about 10 GB."""
    return max(4, 4 * 64**2 // denoiser.latent_shape[1] ** 2)


@dataclass
class Method:
    """One way to keep the model from replicating, at one strength: how it samples, and the edit meanwhile."""

    name: str
    strength: str
    sample: Sample
    condition: Condition = Condition({})
    code: str = ""


def method_names(p: Parameters) -> list[tuple[str, Any]]:
    """Name and strength of every method that is compared: nothing, pruning, random pruning, baselines; the twin."""
    found: list[tuple[str, Any]] = [("none", None), *(("pruning", s) for s in p.sweep.sparsity)]
    found += [(TWIN, None)] if find_model(p.model).twin else []
    found.append(("random pruning", max(p.sweep.sparsity)))
    for name, baseline in BASELINES.items():
        found += [(name, strength) for strength in p.baselines.strengths.get(name, baseline.strengths)]
    return found


def methods(run: Run) -> list[Method]:
    """The methods of `method_names`.

    Raises:
        ValueError: a strength for a baseline that there is not.
    """
    p = run.parameters
    if unknown := [name for name in p.baselines.strengths if name not in BASELINES]:
        raise ValueError(f"baselines.strengths: unknown {unknown[0]!r}; expected some of {', '.join(BASELINES)}.")
    options = {
        "steps": p.capture.steps,
        "batch_size": p.sampling.batch_size,
        "gradient_rows": gradient_rows(run.denoiser),
    }
    context = Context(run.pipe, run.sample, run.captions("ordinary"), **options)
    found = []
    for name, strength in method_names(p):
        if name in ("none", TWIN):
            found.append(Method(name, "", run.sample, Condition({}, twin=name == TWIN)))
        elif name in BASELINES:
            baseline = BASELINES[name]
            code = code_version(baseline.make)
            found.append(Method(name, baseline.label(strength), baseline.make(context, strength), code=code))
        else:
            random = 0 if name == "random pruning" else None
            edited = Condition({}, LOCATE, {"sparsity": strength}, random)
            found.append(Method(name, f"{100 * strength:g} %", run.sample, edited))
    return found


def baselines(run: Run) -> pd.DataFrame:
    """`summary` of each method on the same captions and seeds, relative_alignment, and KID of never-seen captions."""
    p = run.parameters.baselines
    chosen = run.held_out(run.split["locate"])[: p.captions]
    reference, rows = run.real_features[p.never_seen :], []
    for m in tqdm(methods(run), desc="baselines"):
        of = {"sample": m.sample, "method": m.name, "strength": m.strength, "made_by": m.code} if m.code else {}
        with m.condition.applied(run):
            never_seen = run.scored_never_seen(p.never_seen, **of)
            found = summary(run.scored_memorized(chosen, **of), never_seen)
        measured = _kid(run, reference, np.stack(never_seen["image_features"]))
        rows.append({"method": m.name, "strength": m.strength} | found | measured)
    table = pd.DataFrame(rows)
    reference = table.set_index("method")["alignment"].get(TWIN, table["alignment"][0])
    return table.assign(relative_alignment=table["alignment"] / reference)


def baselines_cost(p: Parameters) -> list[Work]:
    captions = _held_out_captions(p, p.baselines.captions) + p.baselines.never_seen
    return [Work(len(method_names(p)) * captions, p.sampling.steps)]


def seconds(run: Run) -> pd.DataFrame:
    """Seconds an image of each method at its first strength, side by side in turns; medians, any search included.

    Columns seconds, on (the GPU, or how many threads); index method, strength. Timed once: a later run shows the same.
    """
    p = run.parameters.baselines
    captions = [run.captions("memorized")[i] for i in run.held_out(run.split["locate"])[: p.timed]]
    first = {m.name: m for m in reversed(methods(run)) if m.name != TWIN}
    of = {"captions": captions, "model": sampler_fingerprint(run.pipe), "turns": p.turns}
    of |= {"methods": [[m.name, m.strength, m.code] for m in first.values()], "device": str(run.denoiser.device)}
    of |= run.parameters.sampling.model_dump()
    found = run.store.table("seconds", partial(_timed, run, list(first.values()), captions, p.turns), **of)
    return found.set_index(["method", "strength"])


def _timed(run: Run, compared: list[Method], captions: list[str], turns: int) -> pd.DataFrame:
    times: dict[tuple[str, str], list[float]] = {(m.name, m.strength): [] for m in compared}
    for turn in tqdm(range(turns + 1), desc="timing"):
        for m in compared:
            with m.condition.applied(run):
                began = time.perf_counter()
                m.sample(captions, seeds=[0] * len(captions))
                if turn:  # the first warms up
                    times[m.name, m.strength].append((time.perf_counter() - began) / len(captions))
    rows = [{"method": m, "strength": s, "seconds": float(np.median(took))} for (m, s), took in times.items()]
    return pd.DataFrame(rows).assign(on=hardware(run.denoiser.device))


def seconds_cost(p: Parameters) -> list[Work]:
    timed = {name for name, _ in method_names(p)} - {TWIN}
    captions = _held_out_captions(p, p.baselines.timed)
    return [Work((p.baselines.turns + 1) * len(timed) * captions, p.sampling.steps)]


# --- notebook 05: attacks ----------------------------------------------------------------------------------------


def attacked(run: Run) -> pd.DataFrame:
    """Captions under extraction: columns prompt, kind, exposures (where known). None of them located the edit."""
    n = run.parameters.extraction.captions
    table = run.prompts.table
    parts = [
        run.prompts.memorized_rows.iloc[run.held_out(run.split["locate"])[:n]],
        table[table["kind"] == "ordinary"][-n:],
    ]
    if run.model.drawn:  # whose list has more kinds
        parts.append(run.prompts.rows("template").groupby("group").head(1)[:n])
        parts.append(run.prompts.rows("ladder").groupby("exposures").head(max(2, n // 5)))
    return pd.concat(parts, ignore_index=True).reindex(columns=["prompt", "kind", "exposures"])


def extraction(run: Run) -> pd.DataFrame:
    """Extraction from each of the `conditions`: a row a caption and model, as `attacks.check_extraction` gives them."""
    p, under_attack = run.parameters, attacked(run)
    captions = under_attack["prompt"].tolist()
    options = {"images": p.extraction.images} | p.sampling.model_dump(exclude={"batch_size"})
    tables = []
    for name in _under(run, conditions(p)):
        of = {"captions": captions, "model": sampler_fingerprint(run.pipe), **options}
        folder = run.store.path("extraction", "", attacks.sample_to_folder, **of)
        attacks.sample_to_folder(run.pipe, captions, folder, batch_size=p.sampling.batch_size, **options)
        found = attacks.extract(folder, threshold=p.extraction.distance, clique=p.extraction.clique)
        checked = attacks.check_extraction(found, folder, run.metrics.copy, run.corpus_features)
        tables.append(checked.assign(kind=under_attack["kind"], exposures=under_attack["exposures"], model=name))
    return pd.concat(tables, ignore_index=True)


def extraction_cost(p: Parameters) -> list[Work]:
    captions = _held_out_captions(p, p.extraction.captions) + p.extraction.captions
    if find_model(p.model).drawn:
        captions += min(TEMPLATE_GROUPS, p.extraction.captions)
        captions += len(LADDER) * min(PAIRS_PER_RUNG, max(2, p.extraction.captions // 5))
    return [Work(len(conditions(p)) * captions * p.extraction.images, p.sampling.steps)]


def detection(run: Run) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Area under the ROC curve for each of the `conditions` (rows) and scores (columns), and the curves."""
    p = run.parameters
    memorized = [run.captions("memorized")[i] for i in run.held_out(run.split["locate"])]
    groups = memorized[: p.detection.captions], run.prompts.of("heldout")[: p.detection.captions]
    options = p.detection.model_dump(include={"calls", "seeds"}) | p.sampling.model_dump(exclude={"solver"})
    code = {score: code_version(function) for score, function in SCORES.items()}
    areas: dict[str, dict[str, float]] = {}
    curves: dict[str, pd.DataFrame] = {}
    for name in _under(run, conditions(p)):
        scores = []
        for group in groups:
            make = partial(first_step_scores, run.pipe, group, **options)
            of = {"captions": group, "model": sampler_fingerprint(run.pipe), "scores": code, **options}
            scores.append(run.store.arrays("detection", make, **of))
        rocs = {score: roc(scores[0][score], scores[1][score]) for score in scores[0]}
        areas[name] = {score: area for score, (area, _) in rocs.items()}
        curves |= {f"{name}, {score}: AUC {area:.2f}": curve for score, (area, curve) in rocs.items()}
    return pd.DataFrame(areas).T, curves


def detection_cost(p: Parameters) -> list[Work]:
    captions = _held_out_captions(p, p.detection.captions) + p.detection.captions
    return [Work(len(conditions(p)) * captions * p.detection.seeds, p.detection.calls)]


TARGETS = {
    "training image": ("no attack", "its caption", "a random embedding"),
    "never trained on": ("no attack", "its caption"),
}
"""Pictures under the embedding attack, and what it begins with."""
HIDDEN_FROM = (1, 2, 3)
"""Seeds with which a picture that an edit hides is not replicated."""


def targets(run: Run) -> dict[str, tuple[list[str], np.ndarray]]:
    """Captions and pictures under the embedding attack: training images, and pictures the model never saw.

    Of the training images those come first that the pruned model replicates from their captions with the fewest seeds.
    """
    n = run.parameters.embedding_attack.images
    chosen = run.held_out(run.split["locate"])[: run.parameters.evaluation.captions]
    with pruned(run.pipe, run.edit(LOCATE)):
        scored = run.scored_memorized(chosen, seeds=HIDDEN_FROM)
    replicated = scored["exact_p"] <= LEVEL if "exact_p" in scored else scored["replicated"]
    rates = replicated.to_numpy().reshape(len(chosen), -1).mean(1)
    hidden = [chosen[i] for i in np.argsort(rates, kind="stable")]
    pairs = _memorized(run, hidden[:n]), _never_seen(run, n)
    return {name: (of.captions, of.images) for name, of in zip(TARGETS, pairs, strict=True)}


def _memorized(run: Run, chosen: Sequence[int]) -> audit.Pairs:
    """Memorized captions, by their places, and their training images."""
    return audit.Pairs([run.captions("memorized")[i] for i in chosen], np.stack([run.references[i] for i in chosen]))


def _never_seen(run: Run, n: int) -> audit.Pairs:
    """Captions and pictures that the model was never trained on."""
    real = run.real_images(0, n)
    return audit.Pairs(run.prompts.of("heldout")[: len(real)], real)


def _attacked_models(p: Parameters) -> list[Condition]:
    """Random weights leave the pictures where they are: there is nothing to bring back."""
    return [c for c in conditions(p) if c.random is None]


def embeddings(run: Run) -> dict[tuple[str, str, str], np.ndarray]:
    """What the embedding attack brings up: (model, target, start) to images, with seeds that it did not use."""
    images, of = {}, targets(run)
    for name in _under(run, _attacked_models(run.parameters)):
        for target, (captions, wanted) in of.items():
            seeds = range(1000, 1000 + len(wanted))
            for start in TARGETS[target]:
                prompts = captions if start == "no attack" else _embedding(run, captions, wanted, start)
                images[name, target, start] = run.drawn(prompts, seeds)
    return images


def _embedding(run: Run, captions: list[str], wanted: np.ndarray, start: str) -> torch.Tensor:
    p, begin = run.parameters.embedding_attack, run.denoiser.embed(captions)
    if start == "a random embedding":
        noise = torch.randn(begin.shape, generator=torch.Generator().manual_seed(0)).to(begin)
        begin = noise * begin.std() + begin.mean()
    options = {"iterations": p.iterations, "noises": p.noises}

    def make() -> dict[str, np.ndarray]:
        more: dict[str, Any] = options | {"batch_size": gradient_rows(run.denoiser), "progress": False}
        found = attacks.embedding_attack(run.pipe, wanted, begin, **more)
        return {"embeddings": found.float().cpu().numpy()}

    of = {"model": sampler_fingerprint(run.pipe), "start": start, "captions": captions, "images": wanted, **options}
    found = run.store.arrays("embeddings", make, **of)["embeddings"]
    return torch.from_numpy(found).to(run.denoiser.device, run.denoiser.dtype)


def embeddings_cost(p: Parameters) -> list[Work]:
    n = len(_attacked_models(p)) * p.embedding_attack.images
    looks = sum(map(len, TARGETS.values()))
    backward = 1.5 * p.embedding_attack.noises  # in guided steps: forward and backward, three times a row of two
    attack = Work(n * (looks - len(TARGETS)), p.embedding_attack.iterations, backward)
    looked_at = len(HIDDEN_FROM) * _held_out_captions(p, p.evaluation.captions)
    return [Work(n * looks + looked_at, p.sampling.steps), attack]


# --- notebook 06: deletion ---------------------------------------------------------------------------------------


def deletion_conditions(p: Parameters) -> list[Condition]:
    """The unedited model, edits (those that ship are of the weights in float32), and the twin."""
    ship = find_model(p.model).twin and p.dtype in (None, "float32")
    files: dict[str, Any] = p.deletion.edits or (shipped.edits() if ship else {})
    edited = [Condition({"model": name}, file=file) for name, file in files.items()]
    return [
        Condition({"model": "unedited"}),
        *(edited or [Condition({"model": "pruned"}, LOCATE)]),
        *twin(p, model=TWIN),
    ]


def deletion(run: Run) -> pd.DataFrame:
    """Work of the embedding attack until a picture is drawn: `audit.attack_work`, columns model and pairs more.

    Of memorized pictures ("removed") and of pictures the model was never trained on ("fresh"), from their captions.
    """
    p, removed = run.parameters, _memorized(run, list(run.references)[: run.parameters.deletion.targets])
    subjects = {"removed": removed, "fresh": _never_seen(run, len(removed))}
    options: dict[str, Any] = {"iterations": p.deletion.iterations, "noises": p.deletion.noises}
    options["sampling"] = p.sampling.model_dump(exclude={"batch_size"})
    rows = []
    for name in _under(run, deletion_conditions(p)):
        for kind, pairs in subjects.items():
            start = run.denoiser.embed(pairs.captions)
            make = partial(audit.attack_work, run.pipe, pairs, start, **options)
            of = {"model": sampler_fingerprint(run.pipe), "captions": pairs.captions, "images": pairs.images, **options}
            found = run.store.table(
                "attack-work",
                partial(make, replicated=verdict(run), batch_size=gradient_rows(run.denoiser)),
                judge=run.metrics.copy.identity,
                **of,
            )
            rows.append(found.assign(model=name, pairs=kind))
    return pd.concat(rows, ignore_index=True)


def recognition(run: Run) -> pd.DataFrame:
    """How well memorized pictures are denoised (`audit.denoising_error`): columns model, given, t, error.

    Given their captions, the same content in other words, and that for the mirrored picture, which no model has seen.
    """
    pairs, rows = _memorized(run, list(run.references)[: run.parameters.deletion.targets]), []
    others = other_wording(pairs.captions)
    asked = (
        ("its caption", pairs.captions, False),
        ("other wording", others, False),
        ("other wording, mirrored", others, True),
    )
    for name in _under(run, deletion_conditions(run.parameters)):
        for given, told, mirrored in asked:
            make = partial(audit.denoising_error, run.pipe, pairs.images, run.denoiser.embed(told), mirrored=mirrored)
            of = {"model": sampler_fingerprint(run.pipe), "told": told, "images": pairs.images, "mirrored": mirrored}
            rows.append(run.store.table("recognition", make, **of).assign(model=name, given=given))
    return pd.concat(rows, ignore_index=True)


REVIVED = ("imputed", "revived")
"""What is put in the place of zeros: completed values, or their trusted signs with the largest magnitudes."""


def revival(run: Run) -> pd.DataFrame:
    """METHOD's edit, and the same with other values where it has zeros (`audit.imputed`): what comes back?

    One row a model, as `Run.evaluate` gives it.
    """
    chosen, edit = run.held_out(run.split["locate"]), run.edit(LOCATE)
    told = {"model": sampler_fingerprint(run.pipe), "edit": edit.positions}
    imputed = run.store.get("imputed", Edit, partial(audit.imputed, run.pipe, edit), **told)
    models: dict[str, Edit | None] = {"unedited": None, "pruned": edit}
    filled = imputed, audit.revived(run.pipe, imputed)
    models |= {f"pruned, zeros {name}": of for name, of in zip(REVIVED, filled, strict=True)}
    return pd.DataFrame([{"model": name} | run.evaluate(of, chosen) for name, of in models.items()])


def revival_cost(p: Parameters) -> list[Work]:
    models, twins = 2 + len(REVIVED), bool(find_model(p.model).twin)  # the twin's alignment is what 1 means
    never_seen = (models + twins) * p.evaluation.captions
    return [Work(models * _held_out_captions(p, p.evaluation.captions) + never_seen, p.sampling.steps)]


def verdict(run: Run) -> audit.Replicated:
    """The exact test where the world can be drawn, else the copy metric's threshold."""
    if run.model.drawn:
        return audit.by_exact_test
    return lambda images, _, references: run.metrics.copy.similarity(images, references) > run.metrics.copy.threshold


def deletion_cost(p: Parameters) -> list[Work]:
    n = 2 * len(deletion_conditions(p)) * p.deletion.targets
    backward = 1.5 * p.deletion.noises  # as of the embedding attack; at most, if no picture is drawn before the end
    looks = Work(n * len(audit.SEEDS) * len(p.deletion.iterations), p.sampling.steps)
    return [looks, Work(n, p.deletion.iterations[-1], backward)]


EXPERIMENTS = {
    "capture": Experiment("01", "capture of the grid", lambda run: (run.grid, run.null()), capture_cost),
    "sweep": Experiment("04", "sweep", sweep, lambda p: _evaluation_cost(p, sweep_conditions(p))),
    "variants": Experiment("04", "variants", variants, variants_cost),
    "models": Experiment(
        "04", "pruned models and controls", models, lambda p: _evaluation_cost(p, model_conditions(p))
    ),
    "seeds": Experiment("04", "similarity between seeds", seeds, seeds_cost),
    "distances": Experiment("04", "KID and FID", distances, distances_cost),
    "baselines": Experiment("05", "baselines", baselines, baselines_cost),
    "seconds": Experiment("05", "timing", seconds, seconds_cost),
    "extraction": Experiment("05", "extraction", extraction, extraction_cost),
    "detection": Experiment("05", "detection", detection, detection_cost),
    "embeddings": Experiment("05", "embedding attack", embeddings, embeddings_cost),
    "deletion": Experiment("06", "attack work", deletion, deletion_cost),
    "revival": Experiment("06", "revival of zeros", revival, revival_cost),
}


def precompute(run: Run) -> None:
    """All that the notebooks take from a GPU."""
    for experiment in EXPERIMENTS.values():
        experiment.result(run)
