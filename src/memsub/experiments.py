"""What notebooks 04 and 05 compute: each is a table, made once in the life of a run folder.

    sweep(run), models(run)                    # 04: which edit, and is it as good from any ten prompts?
    fids(run)                                  # 04: are held-out captions still drawn as real pictures look?
    rivals(run), seconds(run)                  # 05: pruning against what can be done at inference time
    extraction(run), detection(run)            # 05: attacks, see memsub.attacks
    embeddings(run)                            # 05: ... and the one that comes through

`precompute(run)` makes all of them, by all processes of an `accelerate launch` together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from . import attacks, mitigations
from .evaluation import Draw, evaluate, summary
from .metrics import fid
from .pruning import Edit, pruned
from .runs import CHUNK, Run

CONTROLS = 3
"""Subsets for which the controls of `models` are made too."""


def located(run: Run) -> tuple[str, list[int]]:
    """The group of the grid that locates the edit of both notebooks, and the places of its prompts: the first of the largest."""
    size = run.parameters.sizes[-1]
    return f"memorized {size}/0", run.members(size)[0]


def conditions(run: Run) -> dict[str, Edit | None]:
    """The models under attack."""
    edit = run.edit(located(run)[0])
    return {"unedited": None, "pruned": edit, "pruned at random": edit.random()}


def rows_with_gradients(run: Run) -> int:
    """Rows of a UNet call that keeps its activations for a gradient: four at 64 x 64 latents, about 10 GB; more of smaller ones."""
    return max(4, 4 * 64**2 // run.pipe.unet.config.sample_size**2)


# --- notebook 04 -------------------------------------------------------------------------------------------------


def settings(run: Run) -> list[tuple[str, int, float]]:
    """Contrast, steps and sparsity of every edit in the sweep."""
    p = run.parameters
    return list(product(("empty", "ordinary"), p.sweep_steps, p.sweep_sparsity))


def sweep(run: Run) -> pd.DataFrame:
    """Sparsity x steps x contrast, located on half of the prompts, judged on the others; and as many weights at random."""
    group, located_on = located(run)
    rows = []
    for contrast, steps, sparsity in tqdm(settings(run), desc="sweep"):
        edit = run.edit(group, contrast=contrast, steps=steps, sparsity=sparsity)
        setting = {"contrast": contrast, "steps": steps, "sparsity": sparsity}
        rows.append(setting | run.judge(edit, located_on))
        if contrast == "empty" and steps == run.parameters.edit_steps:
            rows.append(setting | {"contrast": "random"} | run.judge(edit.random(), located_on))
    return pd.DataFrame(rows)


def models(run: Run) -> pd.DataFrame:
    """One pruned model for each subset of the smallest size; with controls pruned at random and by ordinary prompts."""
    size = run.parameters.sizes[0]
    rows = []
    for i, members in enumerate(tqdm(run.members(size), desc="pruned models")):
        edit = run.edit(f"memorized {size}/{i}")
        edits = {"located on memorized prompts": edit}
        if i < CONTROLS:
            edits["at random, equal density"] = edit.random(i)
            edits["located on ordinary prompts"] = run.edit(f"ordinary {size}/{i}", contrast="empty")
        if i == 0:
            rows.append({"model": "unedited", "subset": i, **run.judge(None, members)})
        rows += [{"model": f"pruned, {name}", "subset": i, **run.judge(e, members)} for name, e in edits.items()]
    return pd.DataFrame(rows)


def fids(run: Run) -> pd.Series:
    """FID x 1000 of what is drawn for held-out captions; its floor is that of half of the real pictures against the other."""
    size, p = run.parameters.sizes[0], run.parameters
    edit = run.edit(f"memorized {size}/0")
    captions, real = run.prompts.of("heldout")[: p.fid_images], run.real_features
    options = {"steps": p.judge_steps, "guidance_scale": p.guidance_scale, "judge": p.prompt_judge}
    found = {"half of the real pictures": fid(real[::2], real[1::2][: p.fid_images])}
    for name, e in {"unedited": None, "pruned": edit, "pruned at random": edit.random()}.items():
        with pruned(run.pipe, e):
            make = partial(_features, run, captions, name)
            features = run.tensors("drawn", make, captions=len(captions), **options)["features"]
        found[name] = fid(real, features.numpy())
    return 1000 * pd.Series(found, name="FID × 1000")


def _features(run: Run, captions: Sequence[str], name: str) -> dict[str, torch.Tensor]:
    """The prompt judge's features of what is drawn for captions, a few images in memory at a time."""
    parts = []
    for i in tqdm(range(0, len(captions), CHUNK), desc=f"drawing for the FID, {name}", mininterval=2):
        seeds = range(i, min(i + CHUNK, len(captions)))
        parts.append(run.judges.prompt.image_features(run.draw(captions[i : i + CHUNK], seeds=seeds)))
    return {"features": torch.from_numpy(np.concatenate(parts))}


# --- notebook 05: the rivals -------------------------------------------------------------------------------------


@dataclass
class Contestant:
    """Pruning, or a rival, at one setting of its knob: how it draws, and the edit that the model has meanwhile."""

    name: str
    knob: str
    draw: Draw
    edit: Edit | None = None


def contestants(run: Run) -> list[Contestant]:
    """Pruning and its rivals, the knob of each swept; the first of a name is at its mildest, but for value neurons, as published."""
    p, pipe, draw = run.parameters, run.pipe, run.draw
    group = located(run)[0]
    statistics = mitigations.value_statistics(pipe, run.captions("ordinary"), p.batch_size)

    def optimized(prompts: Sequence[str], *, seeds: Sequence[int], target: float) -> np.ndarray:
        options = {"steps": p.judge_steps, "batch_size": rows_with_gradients(run)}
        return draw(mitigations.optimized_embeddings(pipe, prompts, target=target, seeds=seeds, **options), seeds=seeds)

    def with_tokens(prompts: Sequence[str], *, seeds: Sequence[int], k: int) -> np.ndarray:
        return draw(mitigations.add_random_tokens(pipe.tokenizer, prompts, k), seeds=seeds)

    def without_neurons(prompts: Sequence[str], *, seeds: Sequence[int], **knobs: float) -> np.ndarray:
        options = {"seeds": seeds, "batch_size": min(p.batch_size, 32)}
        return mitigations.draw_without_value_neurons(draw, pipe, prompts, statistics, **options, **knobs)

    edits = {s: run.edit(group, sparsity=s) for s in p.sweep_sparsity}
    densest = max(edits)
    return [
        Contestant("none", "", draw),
        *(Contestant("pruning", f"{100 * s:g} %", draw, edit) for s, edit in edits.items()),
        Contestant("random pruning", f"{100 * densest:g} %", draw, edits[densest].random()),
        *(
            Contestant("embedding optimization", f"{target:g}", partial(optimized, target=target))
            for target in p.rival_targets
        ),
        *(Contestant("random tokens", str(k), partial(with_tokens, k=k)) for k in p.rival_tokens),
        *([Contestant("value neurons", "as published", without_neurons)] if p.rival_deviations else []),
        *(
            # A threshold that nearly every prompt exceeds: silenced is what lies that many deviations out.
            Contestant("value neurons", f"{z:g} deviations", partial(without_neurons, spread=-2.0, z_min=z))
            for z in p.rival_deviations
        ),
    ]


def rivals(run: Run) -> pd.DataFrame:
    """`summary` of each contestant on the same captions and seeds, and `kept`, the alignment relative to no mitigation."""
    p, judged = run.parameters, run.unused(located(run)[1])[: run.parameters.rival_captions]
    captions = [run.captions("memorized")[i] for i in judged]
    images = np.stack([run.references[i] for i in judged])
    never_seen, real = run.prompts.of("heldout")[: p.rival_never_seen], run.real_features
    options = {"captions": captions, "never_seen": never_seen, "steps": p.judge_steps, "guidance": p.guidance_scale}
    rows = []
    for c in tqdm(contestants(run), desc="rivals"):
        of = {"rival": c.name, "knob": c.knob}
        with pruned(run.pipe, c.edit):
            make = partial(evaluate, c.draw, run.judges, captions, images, never_seen, real=real)
            rows.append(of | summary(run.table("rival", make, **of, **options)))
    table = pd.DataFrame(rows)
    return table.assign(kept=table["alignment"] / table["alignment"][0])


def seconds(run: Run, images: int = 8) -> pd.Series:
    """Seconds an image for the first contestant of each name, side by side in turns; medians, the search included."""
    captions = [run.captions("memorized")[i] for i in run.unused(located(run)[1])[:images]]
    first = {c.name: c for c in reversed(contestants(run))}
    times: dict[str, list[float]] = {name: [] for name in first}
    for turn in tqdm(range(run.parameters.rival_turns + 1), desc="timing"):
        for name, c in first.items():
            if name == "value neurons" and turn > 1:  # takes many times as long: once is enough
                continue
            with pruned(run.pipe, c.edit):
                began = time.perf_counter()
                c.draw(captions, seeds=[0] * len(captions))
                times[name].append((time.perf_counter() - began) / len(captions))
    return pd.Series({name: np.median(of[1:]) for name, of in times.items()})  # the first turn warms up


# --- notebook 05: the attacks ------------------------------------------------------------------------------------


def attacked(run: Run) -> pd.DataFrame:
    """Captions under extraction: columns prompt, kind, exposures (where known). None of them located the edit."""
    n = run.parameters.extraction_captions
    rows, table = run.prompts.memorized_rows, run.prompts.table
    parts = [rows.iloc[run.unused(located(run)[1])[:n]], table[table["kind"] == "ordinary"][-n:]]
    if "exposures" in table:  # the embedded model, which has more kinds
        parts.append(run.prompts.rows("template").groupby("group").head(1)[:n])
        parts.append(run.prompts.rows("ladder").groupby("exposures").head(max(2, n // 5)))
    return pd.concat(parts, ignore_index=True).reindex(columns=["prompt", "kind", "exposures"])


def extraction(run: Run) -> pd.DataFrame:
    """Extraction from each of the `conditions`: a row a caption and model, as `attacks.check_extraction` gives them."""
    p, under_attack = run.parameters, attacked(run)
    captions = under_attack["prompt"].tolist()
    of = {"prompts": captions, "images": p.extraction_images, "steps": p.judge_steps, "guidance": p.guidance_scale}
    options = {"images": p.extraction_images, "steps": p.judge_steps, "guidance_scale": p.guidance_scale}
    corpus = run.judges.copy.features(run.corpus)
    tables = []
    for name, edit in conditions(run).items():
        with pruned(run.pipe, edit):
            folder = run.path("extraction", "", **of)
            attacks.draw(run.pipe, captions, folder, batch_size=p.batch_size, **options)
        found = attacks.extract(folder, threshold=p.extraction_distance, clique=p.extraction_clique)
        checked = attacks.check_extraction(found, folder, run.judges.copy, corpus)
        tables.append(checked.assign(kind=under_attack["kind"], exposures=under_attack["exposures"], model=name))
    return pd.concat(tables, ignore_index=True)


def detection(run: Run) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Area under the ROC curve for each of the `conditions` (rows) and scores (columns), and the curves."""
    p = run.parameters
    captions = [run.captions("memorized")[i] for i in run.unused(located(run)[1])]
    groups = captions, run.prompts.of("heldout")[:100]
    options = {"steps": p.judge_steps, "guidance_scale": p.guidance_scale, "batch_size": p.batch_size}
    areas, curves = {}, {}
    for name, edit in conditions(run).items():
        with pruned(run.pipe, edit):
            scores = [attacks.first_step_scores(run.pipe, g, calls=p.detection_calls, **options) for g in groups]
        rocs = {score: attacks.detection_roc(scores[0][score], scores[1][score]) for score in scores[0]}
        areas[name] = {score: area for score, (area, _) in rocs.items()}
        curves |= {f"{name}, {score}: AUC {area:.2f}": curve for score, (area, curve) in rocs.items()}
    return pd.DataFrame(areas).T, curves


def targets(run: Run) -> dict[str, tuple[list[str], np.ndarray]]:
    """Captions and pictures under the embedding attack: training images, and pictures the model was never trained on."""
    n = run.parameters.embedding_images
    judged = run.unused(located(run)[1])[:n]
    training = [run.captions("memorized")[i] for i in judged], np.stack([run.references[i] for i in judged])
    held = run.real_images(0, n)
    return {"training image": training, "never trained on": (run.prompts.of("heldout")[: len(held)], held)}


def embeddings(run: Run) -> dict[tuple[str, str, str], np.ndarray]:
    """What the embedding attack brings up: (model, target, start) to images, drawn with seeds that it did not use.

    `start` is "no attack" (the caption as it is), "its caption" or "a random embedding".
    """
    p, draw = run.parameters, run.draw
    images = {}
    for model, edit in conditions(run).items():
        with pruned(run.pipe, edit):
            for target, (captions, wanted) in targets(run).items():
                seeds = range(1000, 1000 + len(wanted))
                images[model, target, "no attack"] = draw(captions, seeds=seeds)
                for start, begin in _starts(run, captions).items():
                    options = {"iterations": p.embedding_iterations, "draws": 4}
                    make = partial(_attack, run, wanted, begin, options)
                    of = {"target": target, "start": start, "captions": captions, **options}
                    images[model, target, start] = draw(run.tensors("embedding", make, **of)["embeddings"], seeds=seeds)
    return images


def _starts(run: Run, captions: list[str]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        own = run.pipe.encode_prompt(captions, run.pipe.device, 1, False)[0]
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(0)).to(own)
    return {"its caption": own, "a random embedding": noise * own.std() + own.mean()}


def _attack(run: Run, wanted: np.ndarray, begin: torch.Tensor, options: dict) -> dict[str, torch.Tensor]:
    options = {**options, "batch_size": rows_with_gradients(run), "progress": False}
    return {"embeddings": attacks.embedding_attack(run.pipe, wanted, begin, **options)}


def precompute(run: Run) -> None:
    """All that notebooks 01 to 05 take from a GPU."""
    sweep(run)
    models(run)
    fids(run)
    rivals(run)
    extraction(run)
    embeddings(run)
