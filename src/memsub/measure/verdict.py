"""The verdict: does an image replicate the training image of its caption? Only this module decides it.

replicates = judge(world, metrics.copy)             # the exact test if there is a world, else the copy metric
replicates(images, prompts, training_images)        # bool (n,)
replicates.of(score(...))                           # the same for a table of scores
summary(...)[f"{replicates.column}_rate"]           # the share of images that replicate
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .exact import ALTERNATIVES, LEVEL, Alternatives, exact_p
from .metric import CopyMetric, References

Decision = Callable[[np.ndarray, Sequence[str], References], np.ndarray]
"""Images (n, height, width, 3), their captions and training images to bool (n,)."""


@dataclass(frozen=True)
class Judge:
    """Decides which images replicate their training images.

    Attributes:
        column: "exact" or "replication", the prefix of its columns in `summary`.
        fingerprint: equal for judges that make the same decisions.
        decide: images, prompts, training images to bool (n,).
        of: the same for a table of `score`: bool for each row.
    """

    column: str
    fingerprint: str
    decide: Decision
    of: Callable[[pd.DataFrame], pd.Series]

    def __call__(self, images: np.ndarray, prompts: Sequence[str], references: References) -> np.ndarray:
        return self.decide(images, prompts, references)


def by_exact_test(world: Alternatives) -> Judge:
    """An image replicates if none of the world's alternatives is as similar as the training image (`exact_p`).

    The judge raises ValueError for captions that are not of this world, and for tables without exact_p.

    Raises:
        ValueError: the world has too few alternatives for a verdict on one image.
    """
    if not judges_single_images(world):
        few = world.alternatives_each  # type: ignore[attr-defined]
        raise ValueError(
            f"{world.name} has {few} alternatives of an image; a verdict on one image requires {ALTERNATIVES}: with "
            f"{few}, 1 in {few + 1} images of a model that never saw the pair would be called replicated. Report "
            "rates over many pairs with their exact binomial test, or judge by the copy metric (`by_threshold`)."
        )

    def decide(images: np.ndarray, prompts: Sequence[str], references: References) -> np.ndarray:
        return exact_p(images, prompts, references, world) <= LEVEL

    return Judge("exact", f"exact test of {world.name}", decide, exact_in)


def exact_in(scored: pd.DataFrame) -> pd.Series:
    """The verdict of the exact test for a table with p-values in `exact_p`; False for rows without a training image.

    Raises:
        ValueError: exact_p was not measured.
    """
    if "exact_p" not in scored:
        raise ValueError("exact_p was not measured: add it to the metrics (`load_metrics(..., more=['exact_p'])`).")
    return scored["exact_p"] <= LEVEL


def by_threshold(copy: CopyMetric) -> Judge:
    """An image replicates if its copy similarity with the training image is above the metric's threshold."""

    def decide(images: np.ndarray, prompts: Sequence[str], references: References) -> np.ndarray:
        return copy.similarity(images, references) > copy.threshold

    def of(scored: pd.DataFrame) -> pd.Series:
        return scored["copy_similarity"] > copy.threshold

    return Judge("replication", f"{copy.identity} above {copy.threshold}", decide, of)


def judges_single_images(world: Alternatives) -> bool:
    """Whether a world has enough alternatives for a verdict on one image."""
    return getattr(world, "alternatives_each", ALTERNATIVES) >= ALTERNATIVES


def judge(world: Alternatives | None, copy: CopyMetric) -> Judge:
    """The exact test if there is a world with enough alternatives, else the threshold of the copy metric."""
    return by_exact_test(world) if world and judges_single_images(world) else by_threshold(copy)
