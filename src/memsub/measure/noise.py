"""Seeds of the initial noise of images: `generate(..., seeds=noise_seeds(captions))`.

Each image starts from its own noise, because images that share their initial noise are not independent. Each image
starts from the same noise in every model, so that models can be compared image by image.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence


def noise_seeds(captions: Sequence[str], seeds: int | Sequence[int] = 0) -> list[int]:
    """The seed of each image's initial noise: a function of its caption and of its number among the caption's images.

    Seeds are below 2^32, because torch's generator on the CPU uses no more bits.
    """
    numbers = [seeds] * len(captions) if isinstance(seeds, int) else seeds
    return [zlib.crc32(f"{number} {caption}".encode()) for caption, number in zip(captions, numbers, strict=True)]
