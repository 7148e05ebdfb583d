"""The exact memorization test, for captions of a world (`memsub.world`): a data set with known ground truth.

    p = exact_p(images, prompts, training_images, world)       # (n,) p-values; an image replicates at p <= 1 / 256
    exact_p(images, prompts, training_images, world, features=metrics.copy.features)
    uniformity(p)                                              # is the test calibrated where nothing is memorized?

A caption fixes what is in an image (its content), not how it is arranged (its layout). For a generated image y of a
caption with training image x*, the world provides N = 255 alternatives x_1 ... x_N: images of the same content from the
distribution of its training images. With any similarity s,

    p = (1 + #{i : s(y, x_i) >= s(y, x*)}) / (N + 1).

If the model was not trained on the pair, x* and the x_i are exchangeable given y, so P(p <= a) <= a *exactly*: for any
s, for any y, and without a tuned threshold. An image replicates if no alternative is as similar as the training image.
(The test does not apply to attacks that are given the training image. Their control is a model that was not trained on
the pair.)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..models import check_finite, check_images
from .metric import References, check_alike, flat

ALTERNATIVES = 255
LEVEL = 1 / (ALTERNATIVES + 1)
"""The smallest possible p: at most 0.4 % of the images of a model that was not trained on the pair reach it."""
_TIE = 1e-6
"""Cosines of float32 that differ by less count as equal. An equal alternative counts against replication."""

Features = Callable[[np.ndarray], np.ndarray]
"""Images, uint8 (n, height, width, 3), to unit vectors (n, dim)."""


class Alternatives(Protocol):
    """What exact tests need of a world.

    Attributes:
        name: name of the world.
        features: images to the unit vectors that are compared; optional, default `blurred_pixels`.
        alternatives_each: the smallest number of alternatives of a content; optional, default 255.
    """

    name: str

    def content(self, prompt: str) -> Hashable:
        """What a caption says of its image. Captions with equal contents share their alternatives.

        Raises:
            ValueError: the text is no caption of this world.
        """

    def alternatives(self, contents: Sequence[Any], seed: int = 0) -> Iterator[np.ndarray]:
        """The alternatives of each content in turn, uint8 (N, height, width, 3), a function of content and seed.

        Either they are independent draws from the distribution of the training images of this content, or the training
        image was chosen at random among itself and them. A verdict on a single image requires N >= 255.
        """


def blurred_pixels(images: np.ndarray) -> np.ndarray:
    """Pixels after a 3 x 3 box blur, each channel's mean removed, as unit vectors: float32 (n, dim)."""
    padded = np.pad(images.astype(np.uint16), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    x = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]  # whole numbers, and their sums below 2^24: all exact
    x = (x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]).reshape(len(images), -1, 3).astype(np.float32)
    means = np.full(x.shape[1], 1 / x.shape[1], np.float32) @ x  # ten times as fast as `mean` over an inner axis
    x = (x - means[:, None]).reshape(len(images), -1)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)


def exact_p(
    images: np.ndarray,
    prompts: Sequence[str],
    references: References | None,
    world: Alternatives,
    *,
    features: Features | None = None,
    seed: int = 0,
) -> np.ndarray:
    """P-values (n,) of images, each under the hypothesis that the model was not trained on the training image.

    Args:
        images: uint8 (n, height, width, 3).
        prompts: captions of the world, whose content the images should show.
        references: training images, one a prompt or a stack of k; None gives NaN for every p. The most similar of a
            stack counts, and then P(p <= a) <= k a.
        features: images to unit vectors; their cosine is the similarity. Default: the world's, or `blurred_pixels`.
        seed: seed of the alternatives.

    Raises:
        ValueError: a prompt is no caption of the world, the lists differ in length, or an image is no uint8 array.
        FloatingPointError: a feature is NaN or infinite.
    """
    if references is None:
        return np.full(len(images), np.nan)
    described = getattr(world, "features", blurred_pixels) if features is None else features
    every, starts = flat(references)
    check_images(images)
    if not len(images) == len(prompts) == len(starts):
        raise ValueError(
            f"{len(images)} images need as many prompts and references; got {len(prompts)} and {len(starts)}."
        )
    p = np.empty(len(images))
    generated, trained = described(images), described(every)
    check_alike(images, generated, every, trained)
    check_finite(generated, "a feature of an image")
    check_finite(trained, "a feature of a reference")
    counts = np.diff([*starts, len(every)])
    similar = np.maximum.reduceat((generated.repeat(counts, axis=0) * trained).sum(1), starts)
    contents = [world.content(prompt) for prompt in prompts]
    distinct = list(dict.fromkeys(contents))
    for content, alternatives in zip(distinct, world.alternatives(distinct, seed), strict=True):
        rows = [i for i, other in enumerate(contents) if other == content]
        check_images(alternatives, f"alternatives of {world.name}")
        others = described(alternatives)
        check_alike(images, generated, alternatives, others)
        to_alternatives = others @ generated[rows].T  # (N, rows)
        check_finite(to_alternatives, "a feature of an alternative")
        p[rows] = (1 + (to_alternatives >= similar[rows] - _TIE).sum(0)) / (len(alternatives) + 1)
    return p


def uniformity(p: np.ndarray, step: float = LEVEL) -> float:
    """P-value of a Kolmogorov-Smirnov test of p-values against the uniform distribution on step, 2 step, ..., 1."""
    from scipy.stats import kstest  # takes a second to import

    # Fixed noise spreads each discrete value over its step: uniform p-values become uniform on (0, 1).
    noise = np.random.default_rng(0).random(len(p))
    return float(kstest(np.asarray(p) - noise * step, "uniform").pvalue)
