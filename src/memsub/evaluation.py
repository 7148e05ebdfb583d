"""Both sides of an edit: what is still replicated, and whether the rest of the model is still there.

    sample = partial(generate, pipe, guidance_scale=3.0)            # or a baseline: prompts, seeds -> images
    memorized = score(sample, metrics, captions, references)        # a row an image
    never_seen = score(sample, metrics, other_captions)
    summary(memorized, never_seen)                                  # the two axes of the trade-off
    seed_similarity(sample, metrics, captions)                      # is a caption's picture the same each time?
    with pruned(pipe, edit): ...                                    # the same for an edited model

Memorized captions are compared with their training images (copy similarity), never-seen ones with what they say (prompt
similarity). Prompt similarity has a floor that is not zero, that of an image with a caption of another: alignment is
what lies above it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .exact import LEVEL
from .generation import Sample
from .metrics import Metrics


def score(
    sample: Sample,
    metrics: Metrics,
    prompts: Sequence[str],
    references: np.ndarray | None = None,
    *,
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Samples captions and measures every image.

    Args:
        references: training images of the captions, uint8 (n, height, width, 3), or None where there is none.
        seeds: each caption is sampled with each of them; default: once, with a seed of its own (its place in the list).

    Returns:
        One row an image: prompt, seed, prompt_similarity, chance (the similarity with the next caption), image_features
        (of the prompt metric, for KID and FID), with references copy_similarity and replicated (above the copy metric's
        threshold), and a column for each of `metrics.more`.

    Raises:
        ValueError: another number of references than of captions, or fewer than two captions.
    """
    prompts = list(prompts)
    if references is not None and len(prompts) != len(references):
        raise ValueError(f"{len(prompts)} captions with {len(references)} training images: one each expected.")
    if len(prompts) < 2:
        raise ValueError(f"two captions or more expected; got {len(prompts)}.")
    times = 1 if seeds is None else len(seeds)
    each = list(range(len(prompts))) if seeds is None else np.tile(seeds, len(prompts)).tolist()
    rows = pd.DataFrame({"prompt": np.repeat(prompts, times).tolist(), "seed": each})
    images = sample(rows["prompt"].tolist(), seeds=each)
    features, text = metrics.prompt.image_features(images), metrics.prompt.text_features(rows["prompt"].tolist())
    rows = rows.assign(
        prompt_similarity=(features * text).sum(1),
        chance=(features * np.roll(text, -times, axis=0)).sum(1),
        image_features=list(features),
    )
    if references is not None:
        references = np.repeat(references, times, axis=0)
        similarity = metrics.copy.similarity(images, references)
        rows = rows.assign(copy_similarity=similarity, replicated=similarity > metrics.copy.threshold)
    return rows.assign(**{n: m(images, rows["prompt"].tolist(), references) for n, m in metrics.more.items()})


_COLUMNS = {
    "prompt",
    "seed",
    "prompt_similarity",
    "chance",
    "image_features",
    "copy_similarity",
    "replicated",
    "exact_p",
}


def summary(memorized: pd.DataFrame, never_seen: pd.DataFrame) -> dict[str, float]:
    """Means of what `score` returns for memorized captions and for captions the model never saw.

    Returns:
        replication_rate (share of images above the copy metric's threshold) with its 95 % interval replication_low and
        replication_high; exact_rate, exact_low and exact_high (the same by the exact test) if exact_p was measured; n
        (images), copy_similarity; prompt_similarity and alignment (over chance) of never-seen captions,
        memorized_alignment; and the means of further metrics, of memorized captions.
    """
    rates = {"replication": memorized["replicated"]}
    if "exact_p" in memorized:
        rates["exact"] = memorized["exact_p"] <= LEVEL
    more = {name: float(memorized[name].mean()) for name in memorized if name not in _COLUMNS}
    return {
        **{key: value for name, hits in rates.items() for key, value in _rate(name, hits).items()},
        "n": len(memorized),
        "copy_similarity": float(memorized["copy_similarity"].mean()),
        "prompt_similarity": float(never_seen["prompt_similarity"].mean()),
        "alignment": alignment(never_seen),
        "memorized_alignment": alignment(memorized),
    } | more


def _rate(name: str, hits: pd.Series) -> dict[str, float]:
    low, high = interval(int(hits.sum()), len(hits))
    return {f"{name}_rate": float(hits.mean()), f"{name}_low": low, f"{name}_high": high}


def alignment(scored: pd.DataFrame) -> float:
    """Mean prompt similarity above that with the caption of another."""
    return float((scored["prompt_similarity"] - scored["chance"]).mean())


def interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a rate (Wilson 1927), by scipy."""
    from scipy.stats import binomtest

    found = binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def seed_similarity(sample: Sample, metrics: Metrics, captions: Sequence[str], seeds: int = 4) -> np.ndarray:
    """Copy similarity of every two seeds' images of each caption, shape (captions, pairs): how fixed its picture is."""
    images = sample(np.repeat(captions, seeds).tolist(), seeds=np.tile(range(seeds), len(captions)).tolist())
    features = metrics.copy.features(images).reshape(len(captions), seeds, -1)
    i, j = np.triu_indices(seeds, 1)
    return (features[:, i] * features[:, j]).sum(-1)
