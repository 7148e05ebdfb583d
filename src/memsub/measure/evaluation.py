"""Evaluates an edit: how often memorized images are still replicated, and how well unseen prompts still work.

    sample = partial(generate, pipe, guidance_scale=3.0)            # or a baseline: prompts, seeds -> images
    memorized = score(sample, metrics, captions, references)        # a row an image
    unseen = score(sample, metrics, other_captions)
    summary(memorized, unseen)                                      # the two axes of the trade-off
    with pruned(pipe, edit): ...                                    # the same for an edited model

Images of memorized captions are compared with their training images (copy similarity), images of unseen captions with
their captions (prompt similarity). An image also has a similarity with the caption of another image. Alignment is the
prompt similarity minus this floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from ..models import Sample, as_captions
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
"""Columns of `score` that `summary` treats specially. It reports the mean of every other column."""


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
        references: training images of the captions, uint8 (n, height, width, 3), or stacks of several a caption; each
            image is compared with the most similar one. None for captions without training images.
        seeds: numbers of the images of each caption; default: one image. Each caption and number has its own noise
            (`noise_seeds`), so images are independent, and two models start an image from the same noise.

    Returns:
        One row an image: prompt, seed (its number), prompt_similarity, chance (the similarity with another caption; NaN
        if all are equal), image_features (of the prompt metric, for KID and FID), and a column for each of
        `metrics.more`. References add copy_similarity and replicated (copy_similarity above the metric's threshold).

    Raises:
        ValueError: the numbers of references, images and captions differ, there are fewer than two captions,
            `seeds` is no list, or a further metric has the name of a column.
    """
    prompts = as_captions(prompts)
    if references is not None and len(prompts) != len(references):
        raise ValueError(
            f"{len(prompts)} captions with {len(references)} training images: one each expected, or a stack."
        )
    distinct = list(dict.fromkeys(prompts))
    if len(prompts) < 2:
        raise ValueError(f"two captions or more expected; got {len(prompts)}.")
    if seeds is not None and not isinstance(seeds, Iterable):
        raise ValueError(f"seeds are numbers of images, such as range({seeds}); got {seeds!r}.")
    if taken := sorted((_COLUMNS - {"exact_p"}) & set(metrics.more)):
        raise ValueError(f"a further metric is named like the column {taken[0]!r}: give it another name.")
    numbers = [0] if seeds is None else list(seeds)
    times = len(numbers)
    rows = pd.DataFrame({"prompt": np.repeat(prompts, times), "seed": numbers * len(prompts)})
    images = sample(rows["prompt"].tolist(), seeds=noise_seeds(rows["prompt"].tolist(), rows["seed"].tolist()))
    if len(images) != len(rows):
        raise ValueError(f"{len(images)} images were sampled for {len(rows)} captions and seeds: one each expected.")
    features, text = metrics.prompt.image_features(images), metrics.prompt.text_features(distinct)
    place = {prompt: i for i, prompt in enumerate(distinct)}
    own = np.array([place[prompt] for prompt in prompts]).repeat(times)
    rows = rows.assign(
        prompt_similarity=(features * text[own]).sum(1),
        chance=(features * text[(own + 1) % len(distinct)]).sum(1) if len(distinct) > 1 else np.nan,
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
    """Summarizes two tables of `score`: of memorized captions, and of captions that the model was not trained on.

    Returns:
        Of memorized captions: replication_rate (share of images above the copy metric's threshold) with its 95 %
        interval replication_low, replication_high (captions are the independent units); exact_rate, exact_low and
        exact_high (the same by the exact test, if exact_p was measured); n (number of images); the means of
        copy_similarity, of further metrics, and of alignment (memorized_alignment). Of unseen captions:
        prompt_similarity and alignment.

    Raises:
        ValueError: the memorized captions were scored without training images.
    """
    if "replicated" not in memorized:
        raise ValueError("these captions were scored without training images: give `score` their references.")
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
    """Alignment of each image: similarity with its own prompt minus similarity with the prompt of another image."""
    return scored["prompt_similarity"] - scored["chance"]


def alignment(scored: pd.DataFrame) -> float:
    """Mean alignment of all images."""
    return float(alignment_each(scored).mean())


__all__ = ["alignment", "alignment_each", "interval", "score", "summary"]
