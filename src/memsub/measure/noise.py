"""A noise of its own for every image, the same in every model: `generate(..., seeds=noise_seeds(captions))`.

Captions that are sampled from one noise are no independent draws: of their images many replicate or few do. And two
models can be compared image by image only if an image has one noise in both, whatever else is sampled with it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence


def noise_seeds(captions: Sequence[str], seeds: int | Sequence[int] = 0) -> list[int]:
    """The seed of each image's initial noise, a function of its caption and of its number among that caption's images.

    It is below 2^32: torch's generator on the host takes no more bits of a seed.
    """
    numbers = [seeds] * len(captions) if isinstance(seeds, int) else seeds
    return [zlib.crc32(f"{number} {caption}".encode()) for caption, number in zip(captions, numbers, strict=True)]
