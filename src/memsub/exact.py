"""The exact memorization test, for captions of a world that can be drawn.

    p = exact_p(images, prompts, training_images)        # (n,) p-values; replicated: p <= 1 / 256
    exact_p(images, prompts, training_images, features=metrics.copy.features)
    uniformity(p)                                        # is the test calibrated where nothing can be remembered?

A caption says what is in a picture (its content), not how it lies there (its layout). For an image y of a caption with
training image x*, draw N = 255 fresh layouts of the same content from the world's own distribution and render them, x_1
... x_N. With any similarity s,

    p = (1 + #{i : s(y, x_i) >= s(y, x*)}) / (N + 1).

Had the model never seen the pair, x* and the x_i would be exchangeable given y, so P(p <= a) <= a *exactly*: for any s,
however blurred y is, and without a threshold that was tuned. An image replicates if no fresh layout is as similar as
the training image. (Not for pictures that an attack was shown: there a model that never saw them is the control.)
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial

import numpy as np

from .testbed.scenes import Content, caption, parse, render, sample_layout

LAYOUTS = 255
LEVEL = 1 / (LAYOUTS + 1)
"""The smallest p there can be: at most 0.4 % of images of a model that never saw the pair reach it."""
_TIE = 1e-6
"""Cosines of float32 that lie closer are equal but for rounding, and count against a copy, as equal ones do."""

Features = Callable[[np.ndarray], np.ndarray]


def exact_p(
    images: np.ndarray,
    prompts: Sequence[str],
    references: np.ndarray | None,
    *,
    features: Features | None = None,
    seed: int = 0,
) -> np.ndarray:
    """P-values of images, each under the hypothesis that the model never saw its training image; shape (n,).

    Args:
        images: uint8 (n, 32, 32, 3).
        prompts: captions of the drawn world, whose content the images should show.
        references: training images, as many; without them every p is NaN.
        features: images to unit vectors (n, dim), whose cosine is the similarity; default `blurred_pixels`.
        seed: of the fresh layouts.

    Raises:
        ValueError: a prompt is no caption of the drawn world.
    """
    if references is None:
        return np.full(len(images), np.nan)
    features = features or blurred_pixels
    found = np.empty(len(images))
    ours, theirs = features(images), features(references)
    contents = [parse(prompt) for prompt in prompts]
    distinct = list(dict.fromkeys(contents))
    for content, layouts in zip(distinct, _fresh(distinct, seed), strict=True):
        rows = [i for i, other in enumerate(contents) if other == content]
        fresh = features(layouts) @ ours[rows].T
        own = (ours[rows] * theirs[rows]).sum(1)
        found[rows] = (1 + (fresh >= own - _TIE).sum(0)) / (LAYOUTS + 1)
    return found


_DRAWN: dict[tuple[Content, int], np.ndarray] = {}
_KEPT = 512
"""Contents whose fresh layouts are kept in memory: 400 MB."""


def fresh_layouts(content: Content, seed: int = 0) -> np.ndarray:
    """A content under 255 layouts of the world's own distribution: uint8 (255, 32, 32, 3)."""
    return next(_fresh([content], seed))


def _fresh(contents: Sequence[Content], seed: int) -> Iterator[np.ndarray]:
    """The fresh layouts of each content in turn, many at a time by several processes."""
    known = {content: _DRAWN[content, seed] for content in contents if (content, seed) in _DRAWN}
    missing = [content for content in contents if content not in known]
    with ExitStack() as stack:
        draw = partial(_draw, seed=seed)
        drawn: Iterator[np.ndarray] = map(draw, missing)
        if len(missing) >= 8 and (workers := os.cpu_count() or 1) > 1:
            drawn = stack.enter_context(ProcessPoolExecutor(workers)).map(draw, missing, chunksize=4)
        for content in contents:
            layouts = known[content] if content in known else next(drawn)
            if (content, seed) not in _DRAWN and len(_DRAWN) >= _KEPT:
                del _DRAWN[next(iter(_DRAWN))]  # the oldest
            _DRAWN[content, seed] = layouts
            yield layouts


def _draw(content: Content, seed: int) -> np.ndarray:
    # A stream a content: with one for all, the p-values of different captions would hang together.
    rng = np.random.default_rng([seed, 255, zlib.crc32(caption(content).encode())])
    return np.stack([render(content, sample_layout(rng, content)) for _ in range(LAYOUTS)])


def blurred_pixels(images: np.ndarray) -> np.ndarray:
    """Pixels after a 3 x 3 box blur, each channel's mean removed, as unit vectors: float32 (n, dim)."""
    padded = np.pad(images.astype(np.uint16), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    x = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]  # whole numbers, and their sums below 2^24: all exact
    x = (x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]).reshape(len(images), -1, 3).astype(np.float32)
    means = np.full(x.shape[1], 1 / x.shape[1], np.float32) @ x  # ten times as fast as `mean` over an inner axis
    x = (x - means[:, None]).reshape(len(images), -1)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)


def uniformity(p: np.ndarray) -> float:
    """P-value of a Kolmogorov-Smirnov test of p-values against the uniform distribution on 1/256, 2/256, ..., 1."""
    from scipy.stats import kstest

    # Spread over the step that each discrete value stands for, by fixed noise: uniform then means uniform on (0, 1).
    noise = np.random.default_rng(0).random(len(p))
    return float(kstest(np.asarray(p) - noise / (LAYOUTS + 1), "uniform").pvalue)
