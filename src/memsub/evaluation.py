"""Both sides of an edit: what is still reproduced, and whether the rest of the model is still there.

    draw = partial(generate, pipe, guidance_scale=3.0)                       # or any rival: prompts, seeds -> images
    frame = evaluate(draw, judges, memorized, references, never_seen)        # a row an image
    summary(frame)                                                           # the two axes of the trade-off
    seed_similarity(draw, judges, captions)                                  # is a caption's picture the same for every seed?
    with pruned(pipe, edit): ...                                             # the same for an edited model

Memorized captions are judged against their training images (copy similarity), never-seen ones against what they say
(prompt similarity). Prompt similarity has a floor that is not zero: that of an image with a caption of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from .metrics import Judges, fid


class Draw(Protocol):
    """Draws one image a prompt with a seed each: `generate` with everything else filled in, or a mitigation."""

    def __call__(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> np.ndarray: ...


def evaluate(
    draw: Draw,
    judges: Judges,
    memorized: Sequence[str],
    references: np.ndarray,
    never_seen: Sequence[str],
    *,
    seeds: int = 1,
    real: np.ndarray | None = None,
) -> pd.DataFrame:
    """Draws memorized captions with `seeds` seeds each, never-seen ones with a seed of their own, and judges them.

    Args:
        references: training images of the memorized captions, uint8 (n, height, width, 3).
        real: image features (n, dim) of pictures that those of never-seen captions should be distributed like, for the FID.

    Returns:
        One row an image: prompt, kind ("memorized" or "never seen"), seed, copy_similarity and copied (NaN and False for
        never-seen captions), prompt_similarity, chance (the similarity with the next caption of the same kind), and, if
        `real` was given, fid (of all images of never-seen captions; the same in each of their rows).

    Raises:
        ValueError: another number of references than of memorized captions, or fewer than two captions of a kind.
    """
    if len(memorized) != len(references):
        raise ValueError(
            f"{len(memorized)} memorized captions with {len(references)} training images: one each expected."
        )
    if min(len(memorized), len(never_seen)) < 2:
        raise ValueError(f"two captions a kind or more expected; got {len(memorized)} and {len(never_seen)}.")
    rows = pd.DataFrame(
        {
            "prompt": [*np.repeat(memorized, seeds).tolist(), *never_seen],
            "kind": ["memorized"] * (len(memorized) * seeds) + ["never seen"] * len(never_seen),
            "seed": [*np.tile(range(seeds), len(memorized)).tolist(), *range(len(never_seen))],
        }
    )
    images = draw(rows["prompt"].tolist(), seeds=rows["seed"].tolist())
    n = len(memorized) * seeds
    others = [*np.roll(rows["prompt"][:n], seeds), *np.roll(rows["prompt"][n:], 1)]
    copied = judges.copy.similarity(images[:n], np.repeat(references, seeds, axis=0))
    rows = rows.assign(
        copy_similarity=np.concatenate([copied, np.full(len(never_seen), np.nan)]),
        copied=np.concatenate([copied > judges.copy.threshold, np.zeros(len(never_seen), bool)]),
        prompt_similarity=judges.prompt.similarity(images, rows["prompt"].tolist()),
        chance=judges.prompt.similarity(images, others),
    )
    if real is not None:
        rows.loc[rows["kind"] == "never seen", "fid"] = fid(real, judges.prompt.image_features(images[n:]))
    return rows


def seed_similarity(draw: Draw, judges: Judges, captions: Sequence[str], seeds: int = 4) -> np.ndarray:
    """Copy similarity of every two seeds' images of each caption, shape (captions, pairs): how fixed its picture is."""
    images = draw(np.repeat(captions, seeds).tolist(), seeds=np.tile(range(seeds), len(captions)).tolist())
    features = judges.copy.features(images).reshape(len(captions), seeds, -1)
    i, j = np.triu_indices(seeds, 1)
    return (features[:, i] * features[:, j]).sum(-1)


def summary(frame: pd.DataFrame) -> dict[str, float]:
    """Means of what `evaluate` returns.

    Returns:
        reproduced (share of memorized draws above the copy judge's threshold), copy_similarity (of memorized draws),
        prompt_similarity (of never-seen captions), alignment and memorized_alignment (prompt similarity over chance, of
        never-seen and of memorized captions), and fid if it was measured.
    """
    memorized, never_seen = (frame[frame["kind"] == kind] for kind in ("memorized", "never seen"))
    measured = {"fid": float(never_seen["fid"].iloc[0])} if "fid" in frame else {}
    return measured | {
        "reproduced": float(memorized["copied"].mean()),
        "copy_similarity": float(memorized["copy_similarity"].mean()),
        "prompt_similarity": float(never_seen["prompt_similarity"].mean()),
        "alignment": float((never_seen["prompt_similarity"] - never_seen["chance"]).mean()),
        "memorized_alignment": float((memorized["prompt_similarity"] - memorized["chance"]).mean()),
    }
