"""Both sides of an edit: what is still replicated, and what the rest of the model can still do.

    sample = partial(generate, pipe, guidance_scale=3.0)            # or a baseline: prompts, seeds -> images
    memorized = score(sample, metrics, captions, references)        # a row an image
    unseen = score(sample, metrics, other_captions)
    summary(memorized, unseen)                                      # the two axes of the trade-off
    with pruned(pipe, edit): ...                                    # the same for an edited model

Images of memorized captions are compared with their training images (copy similarity), images of unseen captions with
what the captions say (prompt similarity). Prompt similarity has a floor that is not zero, that of an image with the
caption of another: alignment is what lies above it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..models import Sample
from .intervals import interval, rate
from .metric import References
from .metrics import Metrics
from .noise import noise_seeds
from .verdict import by_threshold, exact_in

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
"""Columns of `score` that `summary` reports under names of their own; of all others it reports the mean."""


def score(
    sample: Sample,
    metrics: Metrics,
    prompts: Sequence[str],
    references: References | None = None,
    *,
    seeds: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Samples captions and measures every image.

    Args:
        references: training images of the captions, uint8 (n, height, width, 3), or a stack of several a caption, of
            which each image is compared with the one most similar to it; None for captions that have none.
        seeds: numbers of the images of each caption. Default: one. Each caption and number has a noise of its own
            (`noise_seeds`): images are independent, and two models get one noise for one image.

    Returns:
        One row an image: prompt, seed (its number), prompt_similarity, chance (the similarity with the next caption),
        image_features (of the prompt metric, for KID and FID), with references copy_similarity and replicated (above
        the copy metric's threshold), and a column for each of `metrics.more`.

    Raises:
        ValueError: the numbers of references and captions differ, or there are fewer than two captions.
    """
    prompts = list(prompts)
    if references is not None and len(prompts) != len(references):
        raise ValueError(
            f"{len(prompts)} captions with {len(references)} training images: one each expected, or a stack."
        )
    if len(prompts) < 2:
        raise ValueError(f"two captions or more expected; got {len(prompts)}.")
    numbers = [0] if seeds is None else list(seeds)
    times = len(numbers)
    rows = pd.DataFrame({"prompt": np.repeat(prompts, times), "seed": numbers * len(prompts)})
    images = sample(rows["prompt"].tolist(), seeds=noise_seeds(rows["prompt"].tolist(), rows["seed"].tolist()))
    features, text = metrics.prompt.image_features(images), metrics.prompt.text_features(rows["prompt"].tolist())
    rows = rows.assign(
        prompt_similarity=(features * text).sum(1),
        chance=(features * np.roll(text, -times, axis=0)).sum(1),
        image_features=list(features),
    )
    if references is not None:
        each = np.repeat(range(len(prompts)), times)
        many = references[each] if isinstance(references, np.ndarray) else [references[i] for i in each]
        similarity, references = metrics.copy.best(images, many)
        rows = rows.assign(copy_similarity=similarity)
        rows = rows.assign(replicated=by_threshold(metrics.copy).of)
    more = {name: metric(images, rows["prompt"].tolist(), references) for name, metric in metrics.more.items()}
    return rows.assign(**more)


def summary(memorized: pd.DataFrame, unseen: pd.DataFrame) -> dict[str, float]:
    """Means of what `score` returns for memorized captions and for captions that the model was not trained on.

    Returns:
        replication_rate (share of images above the copy metric's threshold) with its 95 % interval replication_low and
        replication_high (captions are the independent units); exact_rate, exact_low and exact_high (the same by the
        exact test) if exact_p was measured; n (images), copy_similarity; prompt_similarity and alignment of unseen
        captions, memorized_alignment; and the means of further metrics, of memorized captions.
    """
    rates = rate("replication", memorized["replicated"], memorized["prompt"])
    if "exact_p" in memorized:
        rates |= rate("exact", exact_in(memorized), memorized["prompt"])
    more = {name: float(memorized[name].mean()) for name in memorized if name not in _COLUMNS}
    return {
        **rates,
        "n": len(memorized),
        "copy_similarity": float(memorized["copy_similarity"].mean()),
        "prompt_similarity": float(unseen["prompt_similarity"].mean()),
        "alignment": alignment(unseen),
        "memorized_alignment": alignment(memorized),
    } | more


def alignment_each(scored: pd.DataFrame) -> pd.Series:
    """Alignment of each image: its similarity with its prompt above that with the prompt of another."""
    return scored["prompt_similarity"] - scored["chance"]


def alignment(scored: pd.DataFrame) -> float:
    """Mean alignment of all images."""
    return float(alignment_each(scored).mean())


__all__ = ["alignment", "alignment_each", "interval", "score", "summary"]
