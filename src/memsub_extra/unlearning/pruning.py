"""Removal by setting located weights to zero: METHOD's edit, other contrasts, chosen layers, repeated under attack."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memsub.activations import capture
from memsub.models import Pipeline, as_denoiser, sampler_fingerprint
from memsub.neurons import locate
from memsub.overlap import pairwise_iou, subsets
from memsub.pruning import Edit, pruned
from memsub_extra.attacks import embedding_attack
from memsub_extra.store import Store

from .pairs import Pairs
from .removal import UNFINISHED, Removal

CAPTURE: dict[str, Any] = {"steps": 50, "guidance_scale": 3.0}
NOISES = 4
"""(Step, noise) pairs for each image and iteration of the attack in adversarial pruning."""
TOGETHER = 16
"""Images that adversarial pruning attacks at once."""
PAPER = "Chavhan et al. 2024, Memorized Images in Diffusion Models share a Subspace that can be Located and Deleted"


def prune(
    pipe: Pipeline,
    memorized: Pairs,
    ordinary: Pairs,
    *,
    contrast: str = "empty",
    sparsity: float | None = None,
    steps: int = 10,
    layers: float | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """METHOD's edit: sets the weights to zero that are memorized at any of the first `steps`.

    Args:
        contrast: captions that memorized ones are compared with: "empty" (as in the paper), "ordinary" (equally many),
            or "other wording" (the same content in other words, which leaves only the effect of the wording).
        layers: share of edited layers: those in which sets of memorized prompts overlap most. Default: all.

    Raises:
        ValueError: the contrast is unknown, it needs other wordings and a caption has none, or there are fewer ordinary
            captions than memorized ones.
    """
    contrasts: dict[str, Callable[[], list[str]]] = {
        "empty": lambda: [""],
        "ordinary": lambda: ordinary.captions[: len(memorized)],
        "other wording": lambda: memorized.other_wording("pruning against other wording"),
    }
    if contrast not in contrasts:
        raise ValueError(f"unknown contrast {contrast!r}; expected one of {', '.join(contrasts)}.")
    if contrast == "ordinary" and len(ordinary) < len(memorized):
        raise ValueError(
            f"{len(memorized)} ordinary captions are needed, as many as memorized ones; got {len(ordinary)}."
        )
    against = contrasts[contrast]()
    groups = {str(i): part for i, part in enumerate(subsets(len(memorized), max(1, len(memorized) // 4), 4, seed))}
    groups["all"] = list(range(len(memorized)))
    options = CAPTURE | {"progress": progress, "first": steps if layers is None else None}
    stats = capture(pipe, memorized.captions, groups=groups, **options)
    null = capture(pipe, against, **options)
    edit = locate(pipe, stats, null, sparsity, "all").union(steps)
    if layers is None:
        return edit
    masks = [locate(pipe, stats, null, sparsity, str(i)) for i in range(4)]
    overlap = pairwise_iou(masks).mean((0, 1))
    names = list(edit.positions)
    return edit.only([names[i] for i in np.argsort(-np.asarray(overlap))[: max(1, round(layers * len(names)))]])


def prune_under_attack(
    pipe: Pipeline,
    memorized: Pairs,
    ordinary: Pairs,
    *,
    folder: str | Path,
    rounds: int,
    iterations: int,
    sparsity: float | None = None,
    steps: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """Adversarial pruning: `rounds` times, attack the pruned model, locate on the attacked embeddings, add to the edit.

    Args:
        folder: folder for the edit after each round and for the attacked embeddings, `TOGETHER` images in a file. A
            killed call resumes after the last of them.
    """
    options = CAPTURE | {"progress": progress, "first": steps}
    start, null = as_denoiser(pipe).embed(memorized.captions), cache(lambda: capture(pipe, [""], **options))
    store, about = Store(folder), {"method": "adversarial pruning", "model": sampler_fingerprint(pipe), "seed": seed}
    about |= {"captions": memorized.captions, "sampling": CAPTURE, "sparsity": sparsity, "steps": steps}

    def located() -> Edit:
        return prune(pipe, memorized, ordinary, sparsity=sparsity, steps=steps, seed=seed, progress=progress)

    def attacked(edit: Edit, k: int, first: int) -> dict[str, np.ndarray]:
        """Attacked embeddings of up to `TOGETHER` images. Each image has its own noise, so batches do not matter."""
        images, begin = memorized.images[first : first + TOGETHER], start[first : first + TOGETHER]
        attack: dict[str, Any] = {"iterations": iterations, "noises": NOISES, "batch_size": TOGETHER * NOISES}
        with pruned(pipe, edit):
            moved = embedding_attack(pipe, images, begin, seed=seed + 1000 * k + first, progress=progress, **attack)
        embeddings = moved.embeddings.cpu()  # numpy has no bfloat16
        return {"embeddings": (embeddings.float() if embeddings.dtype == torch.bfloat16 else embeddings).numpy()}

    def extended(edit: Edit, k: int) -> Edit:
        """The edit together with the weights that are located on embeddings attacked in spite of it."""
        moved = []
        for first in range(0, len(memorized), TOGETHER):
            key = {"edit": edit, "images": memorized.images, "iterations": iterations, "round": k, "first": first}
            made = store.arrays(UNFINISHED, partial(attacked, edit, k, first), **about, **key)
            moved.append(torch.from_numpy(made["embeddings"]))
        embeddings = start.with_embeddings(torch.cat(moved).to(start.embeddings))
        return edit | locate(pipe, capture(pipe, embeddings, **options), null(), sparsity).union(steps)

    edit = store.get(UNFINISHED, Edit, located, **about)
    for k in range(rounds):
        key = {"edit": edit, "images": memorized.images, "iterations": iterations, "round": k}
        edit = store.get(UNFINISHED, Edit, partial(extended, edit, k), **about, **key)
    return edit


PRUNING = Removal("weights to zero", prune, PAPER, {})
ONE_PERCENT = Removal("weights to zero", prune, PAPER, {"sparsity": 0.01})
"""The paper's sparsity on Stable Diffusion."""
AGAINST_ORDINARY = Removal("weights to zero", prune, PAPER, {"contrast": "ordinary"})
AGAINST_OTHER_WORDING = Removal("weights to zero", prune, PAPER, {"contrast": "other wording"}, needs_wording=True)
HALF_OF_THE_LAYERS = Removal("weights to zero", prune, PAPER, {"layers": 0.5})
UNDER_ATTACK = Removal("weights to zero", prune_under_attack, "this project", {"rounds": 3, "iterations": 50})
