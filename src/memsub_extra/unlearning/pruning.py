"""Removal by setting located weights to zero: METHOD's edit, other contrasts, chosen layers, repeated under attack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from memsub.activations import capture
from memsub.models import Pipeline, as_denoiser
from memsub.neurons import locate
from memsub.overlap import pairwise_iou
from memsub.prompts import subsets
from memsub.pruning import Edit, pruned
from memsub_extra.attacks import embedding_attack

from .pairs import Pairs
from .removal import Removal

CAPTURE: dict[str, Any] = {"steps": 50, "guidance_scale": 3.0}
PAPER = "Chavhan et al. 2024, Memorized Images in Diffusion Models share a Subspace that can be Located and Deleted"


def prune(
    pipe: Pipeline,
    memorized: Pairs,
    ordinary: Pairs,
    *,
    contrast: str = "empty",
    sparsity: float | None = None,
    steps: int = 10,
    layers: int | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """METHOD's edit: weights that are memorized at any of the first steps are set to zero.

    Args:
        contrast: "empty" (the paper's), as many "ordinary" captions, or "other wording": the same content in other
            words, so that the difference is what the wording adds.
        layers: only this many, those in which sets of memorized prompts overlap most; default all.

    Raises:
        ValueError: an unknown contrast, or other wordings are needed and a caption has none.
    """
    contrasts: dict[str, Callable[[], list[str]]] = {
        "empty": lambda: [""],
        "ordinary": lambda: ordinary.captions[: len(memorized)],
        "other wording": lambda: memorized.other_wording("pruning against other wording"),
    }
    if contrast not in contrasts:
        raise ValueError(f"unknown contrast {contrast!r}; expected one of {', '.join(contrasts)}.")
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
    return edit.only([names[i] for i in np.argsort(-np.asarray(overlap))[:layers]])


def prune_under_attack(
    pipe: Pipeline,
    memorized: Pairs,
    ordinary: Pairs,
    *,
    rounds: int = 3,
    iterations: int = 50,
    sparsity: float | None = None,
    steps: int = 10,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """Adversarial pruning: attack the pruned model, locate on the attacked embeddings, unite; `rounds` times."""
    options = CAPTURE | {"progress": progress, "first": steps}
    null = capture(pipe, [""], **options)
    edit = prune(pipe, memorized, ordinary, sparsity=sparsity, steps=steps, seed=seed, progress=progress)
    start = as_denoiser(pipe).embed(memorized.captions)
    for k in range(rounds):
        with pruned(pipe, edit):
            attack: dict[str, Any] = {"iterations": iterations, "noises": 4, "seed": seed + 1000 * k}
            attacked = embedding_attack(pipe, memorized.images, start, progress=progress, **attack)
        stats = capture(pipe, attacked, **options)
        edit = edit | locate(pipe, stats, null, sparsity).union(steps)
    return edit


PRUNING = Removal("weights to zero", prune, PAPER, {})
ONE_PERCENT = Removal("weights to zero", prune, PAPER, {"sparsity": 0.01})
"""The paper's own setting, on Stable Diffusion."""
AGAINST_ORDINARY = Removal("weights to zero", prune, PAPER, {"contrast": "ordinary"})
AGAINST_OTHER_WORDING = Removal("weights to zero", prune, PAPER, {"contrast": "other wording"}, needs_wording=True)
HALF_OF_THE_LAYERS = Removal("weights to zero", prune, PAPER, {"layers": 8})
UNDER_ATTACK = Removal("weights to zero", prune_under_attack, "this project", {})
