"""Notebook 05: attacks (extraction, detection, the embedding attack), and the comparison with baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from memsub.io.images import rgb
from memsub.measure.distances import fid, kid
from memsub.measure.evaluation import alignment
from memsub.measure.intervals import interval
from memsub.measure.verdict import Judge, by_threshold
from memsub.models import Conditioning, as_denoiser
from memsub.world import World
from memsub_extra.attacks import check_extraction, embedding_attack, extract, sample_to_folder
from memsub_extra.attacks.extraction import image_path
from memsub_extra.hardware import hardware
from memsub_extra.mitigations import BASELINES
from memsub_extra.mitigations.detection import SCORES, first_step_scores, roc
from memsub_extra.run.data import Memorized
from memsub_extra.run.model import Model
from memsub_extra.run.run import Run
from memsub_extra.store import Kind

from . import notebook01
from .findings import hits
from .intervals import auc_interval
from .kinds import kinds_of, listed, note, note_outcomes
from .listing import Notebook
from .notebook04 import KEPT
from .published import Found, of_detection, of_prompts, of_scores, part_of, record
from .rows import PAPER, Row, baseline_rows, control_rows, evaluated, gradient_rows, under_attack

SECONDS = Kind("seconds")
EXTRACTION = Kind("extraction")
DETECTION = Kind("detection")
EMBEDDINGS = Kind("embeddings")
DISTANCES = Kind("distances")


# --- extraction and detection ----------------------------------------------------------------------------------------


def at_random(run: Run, n: int) -> list[int]:
    """Places of n memorized prompts under attack, chosen at random among those that neither located the edit nor chose
    its setting; each kind in proportion, if the list has kinds."""
    places = run.data.held_out(run.data.split["locate"])
    order = np.random.default_rng([run.parameters.seed, 5]).permutation(len(places))
    return run.data.memorized.mixed([places[i] for i in order])[:n]


def attacked(run: Run) -> pd.DataFrame:
    """Captions for extraction, memorized (`at_random`) and equally many ordinary ones: prompt, kind."""
    n = run.parameters.extraction.captions
    memorized = [run.data.captions("memorized")[i] for i in at_random(run, n)]
    ordinary = run.data.prompts.ordinary[-n:]
    kinds = ["memorized"] * len(memorized) + ["ordinary"] * len(ordinary)
    return pd.DataFrame({"prompt": memorized + ordinary, "kind": kinds})


def extraction(run: Run) -> pd.DataFrame:
    """Extraction from each model under attack: a row for each caption and model, as from `attacks.extract`.

    Column extracted: whether a claim is right. If the training data are known, the image must replicate the training
    image of its caption by the run's verdict (for ordinary captions among canaries: by the copy metric). Otherwise it
    must be similar to any known training image by the copy metric.
    """
    p, under = run.parameters, attacked(run)
    captions = under["prompt"].tolist()
    options = {"images": p.extraction.images} | p.sampling.model_dump(exclude={"batch_size"})
    tables = []
    for model in under_attack(run):
        folder = run.store.path(EXTRACTION, "", captions=captions, model=model, **options)
        with model.applied() as pipe:
            sample_to_folder(pipe, captions, folder, batch_size=p.sampling.batch_size, **options)
        claims = extract(folder, threshold=p.extraction.distance, clique=p.extraction.clique)
        right = _right(run, captions, claims, folder)
        tables.append(claims.assign(extracted=right, kind=under["kind"], model=model.name))
        outcomes = dict(
            zip(at_random(run, p.extraction.captions), right, strict=False)
        )  # memorized captions come first
        note_outcomes(run, "extraction", {"model": model.name}, outcomes, "extracted", _under_attack_listed(run))
    return pd.concat(tables, ignore_index=True)


def _right(run: Run, captions: list[str], claims: pd.DataFrame, folder: Path) -> pd.Series:
    """Which claims are right (`extraction`); memorized captions come first, then ordinary ones."""
    if not (world := run.data.world):
        return check_extraction(claims, folder, run.metrics.copy, run.scores.corpus_features)["extracted"]
    places = at_random(run, run.parameters.extraction.captions)
    images = np.stack([np.asarray(rgb(image_path(folder, i, seed))) for i, seed in enumerate(claims["seed"])])
    memorized, ordinary = slice(len(places)), slice(len(places), None)
    shown = run.data.prompts.images("ordinary", len(places) - len(captions))
    copied = run.judge(images[memorized], captions[memorized], run.data.references_of(places))
    others = _judge_of(run, world, captions[ordinary])(images[ordinary], captions[ordinary], shown)
    return claims["claimed"] & np.concatenate([copied, others])


def _judge_of(run: Run, world: World, captions: list[str]) -> Judge:
    """The run's judge; for captions without alternatives in the world, the threshold of the copy metric.

    Ordinary captions among canaries have no alternatives: only canaries have photographs that were not trained on.
    """
    try:
        for caption in captions:
            world.content(caption)
    except ValueError:
        return by_threshold(run.metrics.copy)
    return run.judge


def detected(run: Run) -> list[int]:
    """Places in the whole list of the memorized captions to score (`detection.among`), chosen at random.

    "all" excludes captions that located the edit, but not those that chose its setting, because scores do not depend on
    images or on the setting.
    """
    p = run.parameters
    if p.detection.among == "reported":
        return at_random(run, p.detection.captions)
    places = _not_located(run)
    chosen = np.random.default_rng([p.seed, 5]).permutation(len(places))[: p.detection.captions]
    return [places[i] for i in chosen]


def _not_located(run: Run) -> list[int]:
    located = set(run.data.split["locate"])
    return [place for place in range(len(run.data.prompts.memorized)) if place not in located]


def _first_steps(calls: int) -> str:
    return "first step" if calls == 1 else f"first {calls} steps"


def detection(run: Run) -> tuple[pd.DataFrame, dict[tuple[str, str], pd.DataFrame]]:
    """How well the scores of the first steps separate memorized captions from matched unseen captions.

    Returns:
        Columns model, score, area (under the ROC curve) with area_low and area_high, memorized and unseen (numbers
        of captions); and the curve of each model and score.
    """
    p = run.parameters
    places = detected(run)
    memorized = [run.data.prompts.memorized[i] for i in places]
    groups = memorized, run.data.matched("heldout")[: len(memorized)]
    of_list = part_of(len(memorized), len(run.data.prompts.memorized))
    about = {"list": f"{of_list} and {len(groups[1])} others", "setting": _first_steps(p.detection.calls)}
    options = p.detection.model_dump(include={"calls", "seeds"}) | p.sampling.model_dump(exclude={"solver"})
    rows, curves, measured = [], {}, list[Found]()
    for model in tqdm(under_attack(run), desc="detection"):

        def make(captions: list[str], model: Model = model) -> dict[str, np.ndarray]:
            with model.applied() as pipe:
                return first_step_scores(pipe, captions, **options)

        content = {"model": model, "scores": dict(SCORES), **options}
        scores = [run.store.arrays(DETECTION, partial(make, g), captions=g, **content) for g in groups]
        _note_detection(run, model.name, places, *scores)
        for score in scores[0]:
            area, curve = roc(scores[0][score], scores[1][score])
            low, high = auc_interval(area, *map(len, groups))
            row = {"model": model.name, "score": score, "area": area, "area_low": low, "area_high": high}
            rows.append(row | {"memorized": len(groups[0]), "unseen": len(groups[1])})
            curves[model.name, score] = curve
            if model.name == run.unedited.name:
                measured += of_detection(score, area, curve, len(groups[1]), (low, high), **about)
    record(run, "detection", measured)
    return pd.DataFrame(rows), curves


def _under_attack_listed(run: Run) -> list[int]:
    """Places of all memorized prompts that could be under attack (`at_random`), with and without a training image."""
    return listed(run, run.data.split["locate"])


def _note_detection(
    run: Run, model: str, places: list[int], memorized: dict[str, np.ndarray], unseen: dict[str, np.ndarray]
) -> None:
    """Notes the area under the curve of each score by kind; `memorized` has a value for each caption at `places`."""
    every, rows = Memorized(run.data.prompts.memorized_rows), []  # also captions beyond the grid
    of_part = _under_attack_listed(run) if run.parameters.detection.among == "reported" else _not_located(run)
    for kind in kinds_of(run):
        chosen = [i for i, place in enumerate(places) if every.of_kind([place], kind)]
        of_kind = every.of_kind(of_part, kind)
        known = {"references": sum(place in run.data.references for place in of_kind), "listed": len(of_kind)}
        row: dict[str, Any] = {"model": model, "kind": kind, "n": len(chosen), **known}
        for score, values in memorized.items() if chosen else ():
            area, _ = roc(values[chosen], unseen[score])
            low, high = auc_interval(area, len(chosen), len(unseen[score]))
            row |= {f"{score}, AUC": area, f"{score}, low": low, f"{score}, high": high}
        rows.append(row)
    note(run, "detection", rows)


# --- the embedding attack --------------------------------------------------------------------------------------------


TARGETS = ("training image", "never trained on")
"""Kinds of target images of the embedding attack."""


def targets(run: Run) -> dict[str, tuple[list[str], np.ndarray]]:
    """Captions and images for the embedding attack: random training images, and images that were not trained on.

    An embedding has many numbers and may encode any image. Images that no model was trained on measure this.
    """
    n = run.parameters.embedding_attack.images
    return dict(zip(TARGETS, (memorized_pairs(run, at_random(run, n)), unseen_pairs(run, n)), strict=True))


def memorized_pairs(run: Run, places: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """Memorized captions at these places, and their training images."""
    return [run.data.captions("memorized")[i] for i in places], np.stack([run.data.references[i] for i in places])


def has_real_images(run: Run) -> bool:
    """Whether the run has, or requires (for KID and FID), images that the model was not trained on."""
    p = run.parameters
    return bool(run.data.world or p.data.real or p.distance_images or "image" in run.data.prompts.table)


def unseen_pairs(run: Run, n: int) -> tuple[list[str], np.ndarray]:
    """Captions and images that the model was not trained on.

    Without a folder of such images (`data.real`), a run uses images that the unedited model samples for unseen
    captions. The attack should reproduce these more easily than photographs: a conservative control.
    """
    unseen = run.data.prompts.of("heldout")[:n]
    if not has_real_images(run):
        return unseen, run.scores.images(run.unedited, unseen, range(2000, 2000 + len(unseen)))
    real = run.data.real_images(0, n)
    return unseen[: len(real)], real


def embeddings(run: Run, iterations: int | None = None) -> dict[tuple[str, str, int], np.ndarray]:
    """Images before and after the embedding attack, with seeds that it did not use: for the pruned model and, on
    training images, for the controls and (if `embedding_attack.models` is "all") the unedited model.

    Args:
        iterations: default: those of the parameters.

    Returns:
        (Model, target (`TARGETS`), iterations (0: the caption itself)) to images.
    """
    iterations = run.parameters.embedding_attack.iterations if iterations is None else iterations
    images = {}
    unedited, *edited = under_attack(run)
    for model in [*([unedited] if run.parameters.embedding_attack.models == "all" else []), *edited]:
        for target, (captions, wanted) in targets(run).items():
            if target == "never trained on" and model.name in (*run.info.controls, unedited.name):
                continue  # a control was trained on neither; the unedited model has the pruned model's comparison
            seeds = range(1000, 1000 + len(wanted))
            moved = _attacked(run, model, captions, wanted, iterations)
            images[model.name, target, 0] = run.scores.images(model, captions, seeds)
            images[model.name, target, iterations] = run.scores.images(model, moved, seeds)
    record(run, "embedding attack", _share_generated(run, images))
    return images


def _share_generated(run: Run, attacked: Mapping[tuple[str, str, int], np.ndarray]) -> list[Found]:
    """The share of training images that the attack recovers, by model and by the copy metric, as in the literature."""
    copy, wanted, measured = run.metrics.copy, targets(run)[TARGETS[0]][1], []
    for (name, target, iterations), images in attacked.items():
        if target == TARGETS[0] and iterations:
            successes, n = hits(copy.similarity(images, wanted) > copy.threshold)
            low, high = interval(successes, n)
            about: dict[str, Any] = {"quantity": "share generated by the embedding attack", "judge": copy.identity}
            about |= {"low": low, "high": high, "n": n, "setting": f"{iterations} iterations"}
            about["list"] = part_of(n, len(run.data.prompts.memorized))
            measured.append(Found(method=name, value=successes / n, **about))
    return measured


def _attacked(run: Run, model: Model, captions: list[str], images: np.ndarray, iterations: int) -> Conditioning:
    """The final embeddings of the attack, which starts from the captions."""
    denoiser = as_denoiser(model.pipe)
    options: dict[str, Any] = {"iterations": iterations, "noises": run.parameters.embedding_attack.noises}
    begin = denoiser.embed(captions)

    def make() -> dict[str, np.ndarray]:
        rows = gradient_rows(denoiser, run.parameters.sampling.batch_size)
        with model.applied() as pipe:
            ended = embedding_attack(pipe, images, begin, batch_size=rows, **options)
        return {"embeddings": ended.embeddings.float().cpu().numpy()}

    content = {"model": model, "start": "its caption", "captions": captions, "images": images, **options}
    stored = run.store.arrays(EMBEDDINGS, make, **content)["embeddings"]
    return begin.with_embeddings(torch.from_numpy(stored).to(denoiser.device, denoiser.dtype))


def verdicts(run: Run, attacked: Mapping[tuple[str, str, int], np.ndarray]) -> pd.DataFrame:
    """Verdicts on the images of `embeddings`, one row per image: model, target, iterations, replicated."""
    wanted, tables = targets(run), []
    for (model, target, iterations), images in attacked.items():
        replicated = run.scores.replicated(images, *wanted[target])
        columns = {"target": target, "iterations": iterations, "model": model}
        if target == TARGETS[0]:
            outcomes = dict(zip(at_random(run, run.parameters.embedding_attack.images), replicated, strict=True))
            labels = {"model": model, "iterations": iterations}
            note_outcomes(run, "embedding attack", labels, outcomes, "replicated", _under_attack_listed(run))
        tables.append(pd.DataFrame({"replicated": replicated}).assign(**columns))
    return pd.concat(tables, ignore_index=True)


# --- baselines -------------------------------------------------------------------------------------------------------


PRUNING = "pruning"


def method_rows(run: Run) -> list[Row]:
    """All compared methods: none, the controls, pruning, random pruning, and every baseline, mildest first."""
    p = run.parameters
    rows = [Row({"method": "none", "strength": ""}), *control_rows(run, "method", strength="")]
    rows += [_pruning(run, s) for s in sorted({PAPER, *p.sweep.sparsity})]
    rows.append(_pruning(run, max(p.sweep.sparsity), "random pruning", random=0))
    return [*rows, *(row for name in BASELINES for row in baseline_rows(run, name))]


def _pruning(run: Run, sparsity: float, name: str = PRUNING, **changed: Any) -> Row:
    spec = run.parameters.spec.changed(sparsity=sparsity, **changed)
    return Row({"method": name, "strength": f"{100 * sparsity:g} %"}, spec)


def baselines(run: Run) -> pd.DataFrame:
    """Every method at every strength on the same captions and seeds: a table of `evaluated`.

    Further columns: chooses, the alignment of the unseen captions that choose a strength, relative to the unedited
    model; and chosen, whether the method is compared at this strength: the one with `chooses` nearest above `KEPT`.
    """
    p, rows = run.parameters.baselines, method_rows(run)
    table = evaluated(run, rows, "report", "baselines", p.captions, p.never_seen)
    kept = _kept_where_chosen(run, rows)
    measured = of_prompts(run)
    for row in rows:
        places, how = row.held_out(run, "report")[: p.captions], row.how(run)
        scored = run.scores.memorized(row.model(run), places, **how)
        measured += of_scores(run, row.labels["method"], row.labels["strength"], scored, places)
    record(run, "baselines", measured)
    return table.assign(chooses=kept, chosen=_at_level(table["method"], kept))


def _kept_where_chosen(run: Run, rows: list[Row]) -> list[float]:
    """Alignment of the unseen captions that choose a strength, relative to the unedited model."""
    n = run.parameters.baselines.never_seen
    scored = (
        run.scores.unseen(row.model(run), n, part="choose", **row.how(run)) for row in tqdm(rows, desc="what chooses")
    )
    alignments = [alignment(each) for each in scored]
    return [each / alignments[0] for each in alignments]


def _at_level(methods: pd.Series, kept: Sequence[float]) -> pd.Series:
    """Marks the row at which each method is compared: of those that keep `KEPT`, the one that keeps least, and of
    equals the strongest; if there are none, the one that keeps most."""
    chosen = pd.Series(False, methods.index)
    for _, of_method in pd.Series(kept, methods.index).groupby(methods, sort=False):
        enough = of_method[of_method >= KEPT]
        chosen[enough[::-1].idxmin() if len(enough) else of_method.idxmax()] = True
    return chosen


def timed_rows(run: Run, compared: pd.DataFrame | None = None) -> list[Row]:
    """Rows of the table of time and distance: each method at its chosen strength, and the paper's edit.

    Args:
        compared: the result of `baselines` (default: call it).
    """
    rows, chosen = method_rows(run), (baselines(run) if compared is None else compared)["chosen"]
    paper = _pruning(run, PAPER).labels
    return [row for row, taken in zip(rows, chosen, strict=True) if taken or row.labels == paper]


def seconds(run: Run, compared: pd.DataFrame | None = None) -> pd.DataFrame:
    """Seconds per image of each of `timed_rows`, including any search. Methods alternate in `baselines.turns` turns.

    Columns seconds (median over turns), least, most, on (the GPU, or the number of threads); index method, strength. It
    is measured once and stored.
    """
    p = run.parameters.baselines
    places = run.data.held_out(run.data.split["locate"])[: p.timed]
    captions = [run.data.captions("memorized")[i] for i in places]
    rows = [row for row in timed_rows(run, compared) if not row.control]
    content = {"captions": captions, "model": run.unedited, "turns": p.turns, "device": str(run.denoiser.device)}
    content |= {"methods": [[*row.labels.values(), str(row.spec)] for row in rows]}
    content |= run.parameters.sampling.model_dump()
    table = run.store.table(SECONDS, partial(_timed, run, rows, captions, p.turns), **content)
    return table.set_index(["method", "strength"])


def _timed(run: Run, rows: list[Row], captions: list[str], turns: int) -> pd.DataFrame:
    times: list[list[float]] = [[] for _ in rows]
    plain = run.scores.sample(run.unedited)
    ready = [(row.model(run), row.how(run).get("sample", plain)) for row in rows]
    for turn in tqdm(range(turns + 1), desc="timing"):
        for (model, sample), took in zip(ready, times, strict=True):
            with model.applied():
                began = time.perf_counter()
                sample(captions, seeds=range(len(captions)))
                if turn:  # the first warms up
                    took.append((time.perf_counter() - began) / len(captions))
    spread = [{"seconds": float(np.median(took)), "least": min(took), "most": max(took)} for took in times]
    labelled = [row.labels | measured for row, measured in zip(rows, spread, strict=True)]
    return pd.DataFrame(labelled).assign(on=hardware(run.denoiser.device))


def distances(run: Run, compared: pd.DataFrame | None = None) -> pd.DataFrame:
    """KID and FID (x 1000) of images that `timed_rows` sample for unseen captions, and of real images (the floor).

    All sets have equally many images and are compared with the same real images. Without enough real images, there is
    no floor. Columns kid, kid_deviation, fid, n (images of KID), fid_n; index method, strength. Values that the
    parameters do not request are NaN.
    """
    p, rows = run.parameters, timed_rows(run, compared)
    labels = [(row.labels["method"], row.labels["strength"]) for row in rows]
    nothing = pd.DataFrame(index=pd.MultiIndex.from_tuples(labels))
    kernel = _distance(run, rows, p.evaluation.real_images, ["kid", "kid_deviation"], kid)
    frechet = _distance(run, rows, p.fid_images, ["fid"], lambda real, sampled: (fid(real, sampled),))
    tables = [kernel.rename(columns={"images": "n"}), frechet.rename(columns={"images": "fid_n"})]
    order = dict.fromkeys([*kernel.index, *frechet.index, *nothing.index])
    table = pd.concat([nothing, *tables], axis=1).reindex(
        pd.MultiIndex.from_tuples(order, names=["method", "strength"])
    )
    return table.fillna({"n": 0, "fid_n": 0})[["kid", "kid_deviation", "fid", "n", "fid_n"]]


def _distance(
    run: Run, rows: Sequence[Row], count: int, names: list[str], measure: Callable[..., Sequence[float]]
) -> pd.DataFrame:
    """A distance x 1000 of `count` images of each row, and of real images: columns names and images."""
    if not count:
        return pd.DataFrame(
            columns=[*names, "images"], index=pd.MultiIndex.from_tuples([], names=["", ""]), dtype=float
        )
    real, sets, measured = run.scores.real_features, {}, {}
    if len(real) >= 2 * count:
        sets["real images", ""], real = real[:count], real[count:]
    for row in rows:  # KID and FID share the images that both take
        unseen = run.scores.unseen(row.model(run), run.parameters.distance_images, **row.how(run))
        sets[row.labels["method"], row.labels["strength"]] = np.stack(unseen["image_features"])[:count]
    for label, features in tqdm(sets.items(), desc=names[0].upper()):

        def make(features: np.ndarray = features) -> pd.DataFrame:
            return 1000 * pd.DataFrame([[*measure(real, features)]], columns=names)

        stored = run.store.table(DISTANCES, make, names=names, reference=real, features=features)
        measured[label] = stored.iloc[0].to_dict() | {"images": len(features)}
    return pd.DataFrame(measured).T


NOTEBOOK = Notebook(
    "05_attack_evaluation",
    experiments={
        "extraction": extraction,
        "embedding attack": embeddings,
        "detection": detection,
        "baselines": baselines,
        "timing": seconds,
        "KID and FID": distances,
    },
    needs=(notebook01.NAME,),
)
