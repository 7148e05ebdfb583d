"""The testbed as a world (`memsub.world.World`): scenes, their captions, and other scenes that fit a caption.

WORLD.content("a red heart on a plain green background")        # what the caption says
next(WORLD.alternatives([content]))                             # 255 other layouts of it, uint8 (255, 32, 32, 3)
exact_p(images, prompts, training_images)                       # the metric of that name: (n,) p-values
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..measure import exact
from ..measure.metric import CopyMetric, PromptMetric
from ..prompts import Prompts
from . import dataset
from .scenes import Content, caption, parse, render, sample_layout
from .scorers import scene_alignment, scene_copy

_KEPT = 512
"""Number of contents whose alternatives are kept in memory: 400 MB."""
_cached: dict[tuple[Content, int], np.ndarray] = {}


class Testbed:
    """The world of the embedded model; its methods are described in `memsub.world.World`."""

    name = "testbed"

    def prompts(self) -> Prompts:
        return Prompts(dataset.ground_truth())

    def matched(self, rows: pd.DataFrame) -> pd.Series:
        """Rows with two icons and a tail, like verbatim captions: the marked ones, or any of this form if none is."""
        alike = rows["group"] == "matched"
        return alike if alike.any() else rows["prompt"].map(lambda text: ", " in text and len(parse(text).items) == 2)

    def content(self, prompt: str) -> Content:
        return parse(prompt)

    def alternatives(self, contents: Sequence[Content], seed: int = 0) -> Iterator[np.ndarray]:
        """New layouts of each content, as many as the exact test requires. Several processes render many contents."""
        cached = {content: _cached[content, seed] for content in contents if (content, seed) in _cached}
        missing = [content for content in contents if content not in cached]
        with ExitStack() as stack:
            render_some = partial(_fresh_layouts, seed=seed)
            rendered: Iterator[np.ndarray] = map(render_some, missing)
            if len(missing) >= 8 and (workers := os.cpu_count() or 1) > 1:
                rendered = stack.enter_context(ProcessPoolExecutor(workers)).map(render_some, missing, chunksize=4)
            for content in contents:
                layouts = cached[content] if content in cached else next(rendered)
                if (content, seed) not in _cached and len(_cached) >= _KEPT:
                    del _cached[next(iter(_cached))]  # the oldest
                _cached[content, seed] = layouts
                yield layouts

    def copy_metric(self, source: Path, device: str | torch.device = "cpu") -> CopyMetric:
        return scene_copy(source, device)

    def prompt_metric(self, source: Path, device: str | torch.device = "cpu") -> PromptMetric:
        return scene_alignment(source, device)


def _fresh_layouts(content: Content, seed: int) -> np.ndarray:
    # One random stream for each content, so that the p-values of different captions are independent.
    rng = np.random.default_rng([seed, exact.ALTERNATIVES, zlib.crc32(caption(content).encode())])
    return np.stack([render(content, sample_layout(rng, content)) for _ in range(exact.ALTERNATIVES)])


WORLD = Testbed()


def exact_p(
    images: np.ndarray,
    prompts: Sequence[str],
    references: np.ndarray | None,
    *,
    features: exact.Features | None = None,
    seed: int = 0,
) -> np.ndarray:
    """`memsub.measure.exact.exact_p` of images of this world, uint8 (n, 32, 32, 3)."""
    return exact.exact_p(images, prompts, references, WORLD, features=features or exact.blurred_pixels, seed=seed)
