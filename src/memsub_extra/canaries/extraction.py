"""The paper's attack: training-data extraction from a model fine-tuned on repeated images, before and after pruning.

    table = attack(run)                         # a row a caption and model; `run` is of a folder of `canaries.training`
    summary(table)                              # claims, and how many are right, with intervals, a row a model

An attacker samples many images of a caption and claims those that repeat (Carlini et al. 2023). Which claims are right
is known here: a claim is right if the photograph that stands for it is that of the planted one, by the exact test.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from memsub.io.images import rgb
from memsub.measure.exact import exact_p
from memsub.measure.intervals import rate
from memsub_extra.attacks import extract, sample_to_folder
from memsub_extra.attacks.extraction import image_path
from memsub_extra.notebooks.rows import under_attack
from memsub_extra.run.run import Run
from memsub_extra.store import Kind

EXTRACTION = Kind("canary-extraction")


def attack(run: Run) -> pd.DataFrame:
    """Extraction from the unedited model, the pruned one, one pruned at random, and the twin.

    Of as many canaries as the parameter `extraction.captions` says, which did not locate the edit, and as many ordinary
    captions.

    Returns:
        Columns model, prompt, kind, size (of the largest clique), claimed, similarity (of the copy metric, with the
        caption's own image), exact_p (of canaries), right (claimed, and a copy of it: by the exact test where it judges
        single images, else by the copy metric).

    Raises:
        ValueError: the model is not of a world.
    """
    world, p = run.data.world, run.parameters
    if world is None:
        raise ValueError(f"{p.model} was not trained on canaries: name a folder of memsub_extra.canaries.")
    n = p.extraction.captions
    places = run.data.held_out(run.data.split["locate"])[:n]
    captions = [run.data.captions("memorized")[i] for i in places]
    ordinary = run.data.prompts.of("ordinary")[:n]
    planted = np.stack([run.data.references[i] for i in places])
    shown = np.concatenate([planted, run.data.prompts.images("ordinary", 0, n)])
    options = {"images": p.extraction.images} | p.sampling.model_dump(exclude={"batch_size"})
    every, tables = captions + ordinary, []
    for model in under_attack(run):
        folder = run.store.path(EXTRACTION, "", captions=every, model=model, **options)
        with model.applied() as pipe:
            sample_to_folder(pipe, every, folder, batch_size=p.sampling.batch_size, **options)
        claims = extract(folder, threshold=p.extraction.distance, clique=p.extraction.clique)
        images = np.stack([np.asarray(rgb(image_path(folder, i, seed))) for i, seed in enumerate(claims["seed"])])
        similarity, of_canary = run.metrics.copy.similarity(images, shown), slice(len(captions))
        exact, copied = np.full(len(every), np.nan), similarity > run.metrics.copy.threshold
        exact[of_canary] = exact_p(images[of_canary], captions, planted, world)
        copied[of_canary] = run.judge(images[of_canary], captions, planted)
        kinds = ["canary"] * len(captions) + ["ordinary"] * len(ordinary)
        table = claims.drop(columns="seed").rename(columns={"caption": "prompt"})
        table = table.assign(model=model.name, kind=kinds, similarity=similarity, exact_p=exact)
        tables.append(table.assign(right=table["claimed"] & copied))
    return pd.concat(tables, ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Of each model and kind of caption: n, the rate of claims and of right ones, with 95 % intervals."""
    rows = []
    for (model, kind), part in table.groupby(["model", "kind"], sort=False):
        rows.append({"model": model, "kind": kind, "n": len(part)} | rate("claimed", part["claimed"]))
        rows[-1] |= rate("right", part["right"])
    return pd.DataFrame(rows)
