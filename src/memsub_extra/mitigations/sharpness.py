"""Sharpness of images. It reveals mitigations that only blur; a copy descriptor counts blurred copies as no copies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def sharpness(images: np.ndarray, prompts: Sequence[str] = (), references: np.ndarray | None = None) -> np.ndarray:
    """Mean absolute difference of neighbouring pixels in 8-bit steps, shape (n,)."""
    x = images.astype(np.float32)
    return sum(np.abs(np.diff(x, axis=axis)).mean((1, 2, 3)) for axis in (1, 2)) / 2
