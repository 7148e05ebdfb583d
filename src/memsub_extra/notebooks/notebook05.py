"""Notebook 05: deleted, or hidden? Baselines at inference time, extraction, detection, the embedding attack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from memsub.measure.evaluation import summary
from memsub.models import Conditioning, Sample, as_denoiser
from memsub_extra.attacks import check_extraction, embedding_attack, extract, sample_to_folder
from memsub_extra.hardware import hardware
from memsub_extra.mitigations import BASELINES, Context
from memsub_extra.mitigations.detection import SCORES, first_step_scores, roc
from memsub_extra.run.model import Model
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run
from memsub_extra.store import Kind

from . import notebook01
from .listing import Notebook
from .notebook04 import kid_of
from .rows import TWIN, gradient_rows, under_attack

SECONDS = Kind("seconds")
EXTRACTION = Kind("extraction")
DETECTION = Kind("detection")
EMBEDDINGS = Kind("embeddings")


# --- baselines -----------------------------------------------------------------------------------------------------


@dataclass
class Method:
    """One way to keep the model from replicating, at one strength.

    Attributes:
        sample: how it generates, while its `model` is in place.
        content: what `sample` is a function of, if it is not plain sampling.
    """

    name: str
    strength: str
    model: Model
    sample: Sample
    content: dict[str, Any] = field(default_factory=dict)


def method_names(p: Parameters, has_twin: bool) -> list[tuple[str, Any]]:
    """Name and strength of every method that is compared: nothing, pruning, random pruning, baselines; the twin."""
    names: list[tuple[str, Any]] = [("none", None), *(("pruning", s) for s in p.sweep.sparsity)]
    names += [(TWIN, None)] if has_twin else []
    names.append(("random pruning", max(p.sweep.sparsity)))
    for name, baseline in BASELINES.items():
        names += [(name, strength) for strength in p.baselines.strengths.get(name, baseline.strengths)]
    return names


def methods(run: Run) -> list[Method]:
    """The methods of `method_names`."""
    p = run.parameters
    options = {"steps": p.capture.steps, "batch_size": p.sampling.batch_size}
    plain, ordinary = run.scores.sample(run.unedited), run.data.captions("ordinary")
    context = Context(run.pipe, plain, ordinary, gradient_rows=gradient_rows(run.denoiser), **options)
    compared = []
    for name, strength in method_names(p, bool(run.info.twin)):
        if name == "none":
            compared.append(Method(name, "", run.unedited, plain))
        elif name == TWIN:
            model = Model(TWIN, run.twin_pipe)
            compared.append(Method(name, "", model, run.scores.sample(model)))
        elif name in BASELINES:
            baseline = BASELINES[name]
            label = baseline.label(strength)
            content = {"method": name, "strength": label, "version": getattr(baseline, "version", 1)}
            compared.append(Method(name, label, run.unedited, baseline.make(context, strength), content))
        else:
            random = 0 if name == "random pruning" else None
            model = run.model(p.spec.changed(sparsity=strength, random=random), name)
            compared.append(Method(name, f"{100 * strength:g} %", model, plain))
    return compared


def baselines(run: Run) -> pd.DataFrame:
    """`summary` of each method on the same captions and seeds, relative_alignment, and KID of unseen captions."""
    p = run.parameters.baselines
    places = run.data.held_out(run.data.split["locate"])[: p.captions]
    real, rows = run.scores.real_features[p.never_seen :], []
    for method in tqdm(methods(run), desc="baselines"):
        how = {"sample": method.sample, **method.content} if method.content else {}
        unseen = run.scores.unseen(method.model, p.never_seen, **how)
        entries = summary(run.scores.memorized(method.model, places, **how), unseen)
        distance = kid_of(run, real, np.stack(unseen["image_features"]))
        rows.append({"method": method.name, "strength": method.strength} | entries | distance)
    table = pd.DataFrame(rows)
    reference = table.set_index("method")["alignment"].get(TWIN, table["alignment"][0])
    return table.assign(relative_alignment=table["alignment"] / reference)


def seconds(run: Run) -> pd.DataFrame:
    """Seconds an image of each method at its first strength, side by side in turns; medians, any search included.

    Columns seconds, on (the GPU, or how many threads); index method, strength. Timed once: a later run shows the same.
    """
    p = run.parameters.baselines
    places = run.data.held_out(run.data.split["locate"])[: p.timed]
    captions = [run.data.captions("memorized")[i] for i in places]
    first = {m.name: m for m in reversed(methods(run)) if m.name != TWIN}
    content = {"captions": captions, "model": run.unedited, "turns": p.turns, "device": str(run.denoiser.device)}
    content |= {"methods": [[m.name, m.strength, m.content] for m in first.values()]}
    content |= run.parameters.sampling.model_dump()
    table = run.store.table(SECONDS, partial(_timed, run, list(first.values()), captions, p.turns), **content)
    return table.set_index(["method", "strength"])


def _timed(run: Run, compared: list[Method], captions: list[str], turns: int) -> pd.DataFrame:
    times: dict[tuple[str, str], list[float]] = {(m.name, m.strength): [] for m in compared}
    for turn in tqdm(range(turns + 1), desc="timing"):
        for method in compared:
            with method.model.applied():
                began = time.perf_counter()
                method.sample(captions, seeds=[0] * len(captions))
                if turn:  # the first warms up
                    times[method.name, method.strength].append((time.perf_counter() - began) / len(captions))
    rows = [{"method": m, "strength": s, "seconds": float(np.median(took))} for (m, s), took in times.items()]
    return pd.DataFrame(rows).assign(on=hardware(run.denoiser.device))


# --- extraction and detection ----------------------------------------------------------------------------------------


def attacked(run: Run) -> pd.DataFrame:
    """Captions under extraction: columns prompt, kind, exposures (where known). None of them located the edit."""
    n, prompts = run.parameters.extraction.captions, run.data.prompts
    held_out = run.data.held_out(run.data.split["locate"])[:n]
    table, kinds = prompts.table, set(prompts.table["kind"])
    parts = [prompts.memorized_rows.iloc[held_out], table[table["kind"] == "ordinary"][-n:]]
    if "template" in kinds:
        parts.append(prompts.rows("template").groupby("group").head(1)[:n])
    if "ladder" in kinds:
        parts.append(prompts.rows("ladder").groupby("exposures").head(max(2, n // 5)))
    return pd.concat(parts, ignore_index=True).reindex(columns=["prompt", "kind", "exposures"])


def extraction(run: Run) -> pd.DataFrame:
    """Extraction from each model under attack: a row a caption and model, as `attacks.check_extraction` gives them."""
    p, under = run.parameters, attacked(run)
    captions = under["prompt"].tolist()
    options = {"images": p.extraction.images, "own_noise": p.evaluation.own_noise} | p.sampling.model_dump(
        exclude={"batch_size"}
    )
    tables = []
    for model in under_attack(run):
        folder = run.store.path(EXTRACTION, "", captions=captions, model=model, **options)
        with model.applied() as pipe:
            sample_to_folder(pipe, captions, folder, batch_size=p.sampling.batch_size, **options)
        claims = extract(folder, threshold=p.extraction.distance, clique=p.extraction.clique)
        checked = check_extraction(claims, folder, run.metrics.copy, run.scores.corpus_features)
        tables.append(checked.assign(kind=under["kind"], exposures=under["exposures"], model=model.name))
    return pd.concat(tables, ignore_index=True)


def detection(run: Run) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Area under the ROC curve for each model under attack (rows) and score (columns), and the curves."""
    p = run.parameters
    memorized = [run.data.captions("memorized")[i] for i in run.data.held_out(run.data.split["locate"])]
    groups = memorized[: p.detection.captions], run.data.prompts.of("heldout")[: p.detection.captions]
    options = p.detection.model_dump(include={"calls", "seeds"}) | p.sampling.model_dump(exclude={"solver"})
    areas: dict[str, dict[str, float]] = {}
    curves: dict[str, pd.DataFrame] = {}
    for model in under_attack(run):

        def make(captions: list[str], model: Model = model) -> dict[str, np.ndarray]:
            with model.applied() as pipe:
                return first_step_scores(pipe, captions, **options)

        content = {"model": model, "scores": dict(SCORES), **options}
        scores = [run.store.arrays(DETECTION, partial(make, g), captions=g, **content) for g in groups]
        rocs = {score: roc(scores[0][score], scores[1][score]) for score in scores[0]}
        areas[model.name] = {score: area for score, (area, _) in rocs.items()}
        curves |= {f"{model.name}, {score}: AUC {area:.2f}": curve for score, (area, curve) in rocs.items()}
    return pd.DataFrame(areas).T, curves


# --- the embedding attack --------------------------------------------------------------------------------------------


TARGETS = {
    "training image": ("no attack", "its caption", "a random embedding"),
    "never trained on": ("no attack", "its caption"),
}
"""Images under the embedding attack, and what it begins with."""
HIDDEN_FROM = (1, 2, 3)
"""Seeds with which an image that an edit hides is not replicated."""


def targets(run: Run) -> dict[str, tuple[list[str], np.ndarray]]:
    """Captions and images under the embedding attack: training images, and images the model never saw.

    Of the training images those come first that the pruned model replicates from their captions with the fewest seeds.
    """
    n = run.parameters.embedding_attack.images
    places = run.data.held_out(run.data.split["locate"])[: run.parameters.evaluation.captions]
    scored = run.scores.memorized(run.model(), places, seeds=HIDDEN_FROM)
    rates = run.judge.of(scored).to_numpy().reshape(len(places), -1).mean(1)
    hidden = [places[i] for i in np.argsort(rates, kind="stable")]
    return dict(zip(TARGETS, (memorized_pairs(run, hidden[:n]), unseen_pairs(run, n)), strict=True))


def memorized_pairs(run: Run, places: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """Memorized captions, by their places, and their training images."""
    return [run.data.captions("memorized")[i] for i in places], np.stack([run.data.references[i] for i in places])


def unseen_pairs(run: Run, n: int) -> tuple[list[str], np.ndarray]:
    """Captions and images that the model was never trained on."""
    real = run.data.real_images(0, n)
    return run.data.prompts.of("heldout")[: len(real)], real


def embeddings(run: Run) -> dict[tuple[str, str, str], np.ndarray]:
    """What the embedding attack brings up: (model, target, start) to images, with seeds that it did not use."""
    images, wanted = {}, targets(run)
    for model in under_attack(run, with_random=False):
        for target, (captions, target_images) in wanted.items():
            seeds = run.scores.seeds(captions, 1000)
            for start in TARGETS[target]:
                embedded = start != "no attack" and _embedding(run, model, captions, target_images, start)
                images[model.name, target, start] = run.scores.images(model, embedded or captions, seeds)
    return images


def _embedding(run: Run, model: Model, captions: list[str], images: np.ndarray, start: str) -> Conditioning:
    """The embeddings that the attack ends with."""
    p, denoiser = run.parameters.embedding_attack, as_denoiser(model.pipe)
    begin = denoiser.embed(captions)
    if start == "a random embedding":
        plain = begin.embeddings
        noise = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0)).to(plain)
        begin = begin.with_embeddings(noise * plain.std() + plain.mean())
    options = {"iterations": p.iterations, "noises": p.noises}

    def make() -> dict[str, np.ndarray]:
        more: dict[str, Any] = options | {"batch_size": gradient_rows(denoiser), "progress": False}
        with model.applied() as pipe:
            ended = embedding_attack(pipe, images, begin, **more)
        return {"embeddings": ended.embeddings.float().cpu().numpy()}

    content = {"model": model, "start": start, "captions": captions, "images": images, **options}
    stored = run.store.arrays(EMBEDDINGS, make, **content)["embeddings"]
    return begin.with_embeddings(torch.from_numpy(stored).to(denoiser.device, denoiser.dtype))


NOTEBOOK = Notebook(
    "05_attack_evaluation",
    experiments={
        "baselines": baselines,
        "timing": seconds,
        "extraction": extraction,
        "detection": detection,
        "embedding attack": embeddings,
    },
    needs=(notebook01.NAME,),
)
