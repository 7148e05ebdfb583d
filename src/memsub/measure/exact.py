"""The exact memorization test, for captions of a world (`memsub.world`): a data set with known ground truth.

    p = exact_p(images, prompts, training_images, world)       # (n,) p-values; an image replicates at p <= 1 / 256
    exact_p(images, prompts, training_images, world, features=metrics.copy.features)
    uniformity(p)                                              # is the test calibrated where nothing is memorized?

A caption says what is in an image (its content) and leaves free how it lies there (its layout). For a generated image y
of a caption with training image x*, the world draws N = 255 alternatives x_1 ... x_N: images of the same content from
the distribution of its training images. With any similarity s,

    p = (1 + #{i : s(y, x_i) >= s(y, x*)}) / (N + 1).

If the model was not trained on the pair, x* and the x_i are exchangeable given y, so P(p <= a) <= a *exactly*: for any
s, however blurred y is, and without a tuned threshold. An image replicates if no alternative is as similar as the
training image. (This does not hold for images that an attack was given: their control is a model that was not trained
on them.)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from .metric import References, flat

ALTERNATIVES = 255
LEVEL = 1 / (ALTERNATIVES + 1)
"""The smallest possible p: at most 0.4 % of the images of a model that was not trained on the pair reach it."""
_TIE = 1e-6
"""Cosines of float32 that lie closer are equal but for rounding. An equal alternative counts against a copy."""

Features = Callable[[np.ndarray], np.ndarray]
"""Images, uint8 (n, height, width, 3), to unit vectors (n, dim)."""


class Alternatives(Protocol):
    """What exact tests need of a world.

    Attributes:
        name: of the world.
        features: by which images are compared; a world that has none is taken to have `blurred_pixels`.
        alternatives_each: how many alternatives each content has at least; 255 where a world does not say it.
    """

    name: str

    def content(self, prompt: str) -> Hashable:
        """What a caption says of its image. Captions of one content share the alternatives.

        Raises:
            ValueError: the text is no caption of this world.
        """

    def alternatives(self, contents: Sequence[Any], seed: int = 0) -> Iterator[np.ndarray]:
        """For each content (of `content`) in turn its alternatives, uint8 (N, height, width, 3).

        They are independent draws from the distribution that training images of this content have, and a function of
        content and seed; or the training image was chosen at random among them and itself. An exact test compares a
        generated image with them and with the training image. Single verdicts require N >= 255.
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
    """P-values of images, each under the hypothesis that the model was not trained on its training image; shape (n,).

    Args:
        images: uint8 (n, height, width, 3).
        prompts: captions of the world, whose content the images should show.
        references: training images, as many; without them every p is NaN. Of several of a caption the most similar
            counts, and P(p <= a) is at most as many times a.
        features: images to unit vectors, whose cosine is the similarity. Default: the world's, or `blurred_pixels`.
        seed: of the alternatives.

    Raises:
        ValueError: a prompt is no caption of the world.
    """
    if references is None:
        return np.full(len(images), np.nan)
    described = getattr(world, "features", blurred_pixels) if features is None else features
    p = np.empty(len(images))
    every, starts = flat(references)
    generated, trained = described(images), described(every)
    counts = np.diff([*starts, len(every)])
    similar = np.maximum.reduceat((generated.repeat(counts, axis=0) * trained).sum(1), starts)
    contents = [world.content(prompt) for prompt in prompts]
    distinct = list(dict.fromkeys(contents))
    for content, alternatives in zip(distinct, world.alternatives(distinct, seed), strict=True):
        rows = [i for i, other in enumerate(contents) if other == content]
        to_alternatives = described(alternatives) @ generated[rows].T  # (N, rows)
        p[rows] = (1 + (to_alternatives >= similar[rows] - _TIE).sum(0)) / (len(alternatives) + 1)
    return p


def uniformity(p: np.ndarray, step: float = LEVEL) -> float:
    """P-value of a Kolmogorov-Smirnov test of p-values against the uniform distribution on step, 2 step, ..., 1."""
    from scipy.stats import kstest  # takes a second to import

    # Spread over the step that each discrete value stands for, by fixed noise: uniform then means uniform on (0, 1).
    noise = np.random.default_rng(0).random(len(p))
    return float(kstest(np.asarray(p) - noise * step, "uniform").pvalue)
