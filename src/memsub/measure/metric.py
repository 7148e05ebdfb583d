"""The kinds of metrics: a copy descriptor, an image-text model, or any other number for each image.

Images are uint8 arrays of shape (n, height, width, 3) everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from ..io.distributed import gathered, shard
from ..models import check_finite, check_images

References = np.ndarray | Sequence[np.ndarray]
"""Training images of n captions: uint8 (n, height, width, 3), or for each caption a stack (k, height, width, 3) of
several. In a stack the image that is most similar to a generated image counts."""


def flat(references: References) -> tuple[np.ndarray, np.ndarray]:
    """All training images, uint8 (m, height, width, 3), and the index of the first one of each caption, (n,).

    Raises:
        ValueError: a caption has no training image, or not uint8 arrays of this shape.
    """
    if isinstance(references, np.ndarray):
        check_images(references, "references")
        return references, np.arange(len(references))
    if empty := [i for i, images in enumerate(references) if not len(images)]:
        raise ValueError(f"caption {empty[0]} of {len(references)} has no training image: one or more expected.")
    for i, images in enumerate(references):
        check_images(images, f"the references of caption {i}")
    return np.concatenate(references), np.cumsum([0, *map(len, references)])[:-1]


class ImageMetric(Protocol):
    """One more number for each image, a column of evaluations. `references` is None if there are no training images."""

    def __call__(self, images: np.ndarray, prompts: Sequence[str], references: np.ndarray | None) -> np.ndarray: ...


def batched(function, items: Sequence | np.ndarray, batch_size: int) -> np.ndarray:
    """Applies `function` to batches of items, without gradients; returns float32 rows. Processes share the batches.

    Raises FloatingPointError for rows that are not finite.
    """
    starts = shard(range(0, len(items), batch_size))
    with torch.no_grad():
        rows = gathered({i: function(items[i : i + batch_size]).float().cpu().numpy() for i in starts})
    together = np.concatenate([rows[i] for i in sorted(rows)])
    check_finite(together, "a feature of the metric")
    return together


def check_alike(images: np.ndarray, features: np.ndarray, others: np.ndarray, other_features: np.ndarray) -> None:
    """Raises ValueError for features of two lengths, as of pixels of images of two sizes."""
    if features.shape[1] != other_features.shape[1]:
        sizes = " and ".join(f"{height} x {width}" for _, height, width, _ in (images.shape, others.shape))
        raise ValueError(f"images of {sizes} pixels cannot be compared: resize one of them.")


@dataclass
class CopyMetric:
    """Copy descriptor: two images are copies if the cosine of their descriptors exceeds `threshold`.

    Attributes:
        embed: a batch of images, uint8 (n, height, width, 3), to descriptors (n, dim) of unit length.
        identity: name and digest of the weights. Stored results are reused only for the same identity.
        batch_size: images at a time.
        roc: the curve on which the threshold was chosen; empty for published descriptors.
    """

    embed: Callable[[np.ndarray], torch.Tensor]
    threshold: float
    identity: str = ""
    batch_size: int = 256
    roc: dict = field(default_factory=dict)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Unit descriptors, float32, shape (n, dim).

        Raises:
            ValueError: not a non-empty uint8 array of images, or descriptors of another length than 1.
        """
        check_images(images)
        features = batched(self.embed, images, self.batch_size)
        lengths = np.linalg.norm(features, axis=1)
        if not np.allclose(lengths, 1, atol=0.01):
            raise ValueError(f"descriptors must have unit length, for cosines; {self.identity} gave {lengths[0]:.3g}.")
        return features

    def similarity(self, images: np.ndarray, references: References) -> np.ndarray:
        """Cosine of image i with reference i, or with the most similar of references i; shape (n,).

        Raises:
            ValueError: different numbers of images and references.
        """
        return self.best(images, references)[0]

    def best(self, images: np.ndarray, references: References) -> tuple[np.ndarray, np.ndarray]:
        """`similarity`, and the most similar references, uint8 (n, height, width, 3); raises as `similarity`."""
        if len(images) != len(references):
            raise ValueError(f"{len(images)} images against {len(references)} references: give one reference an image.")
        every, starts = flat(references)
        counts, features, wanted = np.diff([*starts, len(every)]), self.features(images), self.features(every)
        check_alike(images, features, every, wanted)
        cosines = (features.repeat(counts, axis=0) * wanted).sum(1)
        best = [start + cosines[start : start + count].argmax() for start, count in zip(starts, counts, strict=True)]
        return cosines[best], every[best]

    def nearest(self, images: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Highest cosine of each image with a row of `features` (corpus, dim), and the index of that row; both (n,)."""
        cosines = self.features(images) @ features.T
        return cosines.max(1), cosines.argmax(1)


@dataclass
class PromptMetric:
    """How well an image shows what a caption says: the dot product of their features (for CLIP, the cosine).

    Attributes:
        embed_images: a batch of images, uint8 (n, height, width, 3), to (n, dim).
        embed_texts: a list of n captions to (n, dim).
        identity: name and digest of the weights.
        batch_size: images or captions at a time.
    """

    embed_images: Callable[[np.ndarray], torch.Tensor]
    embed_texts: Callable[[list[str]], torch.Tensor]
    identity: str = ""
    batch_size: int = 256

    def image_features(self, images: np.ndarray) -> np.ndarray:
        """Image features, float32, shape (n, dim)."""
        check_images(images)
        return batched(self.embed_images, images, self.batch_size)

    def text_features(self, prompts: Sequence[str]) -> np.ndarray:
        """Text features, float32, shape (n, dim)."""
        return batched(self.embed_texts, list(prompts), self.batch_size)

    def similarity(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Dot product of the features of image i and prompt i, shape (n,).

        Raises:
            ValueError: different numbers of images and prompts.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images against {len(prompts)} prompts: give one prompt an image.")
        return (self.image_features(images) * self.text_features(prompts)).sum(1)

    def rank(self, images: np.ndarray, candidates: Sequence[Sequence[str]]) -> np.ndarray:
        """Rank of the first candidate caption of each image, 0 if it fits best: shape (n,)."""
        text = self.text_features([caption for captions in candidates for caption in captions])
        text = text.reshape(len(images), len(candidates[0]), -1)
        scores = np.einsum("nd,nkd->nk", self.image_features(images), text)
        return (scores[:, 1:] >= scores[:, :1]).sum(1)


def resized(images: np.ndarray, side: int) -> torch.Tensor:
    """Resizes uint8 images (n, h, w, 3) to float32 (n, 3, side, side) in [0, 1], by Pillow's bilinear filter."""
    small = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)) for image in images]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 255
