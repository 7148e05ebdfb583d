"""Does a model recognize an image? By how well it denoises it, under any caption.

denoising_error(pipe, images, denoiser.embed(captions))                     # columns t, error
denoising_error(pipe, images, denoiser.embed(captions), mirrored=True)      # the same for their mirror images
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from memsub.models import Conditioning, Pipeline, as_denoiser, noise_schedule


def mirror(images: np.ndarray) -> np.ndarray:
    """Mirror images of uint8 (n, height, width, 3)."""
    return np.ascontiguousarray(images[:, :, ::-1])


@torch.no_grad()
def denoising_error(
    pipe: Pipeline,
    images: np.ndarray,
    context: Conditioning,
    *,
    times: Sequence[int] = tuple(range(100, 1000, 100)),
    mirrored: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean squared error of the network's predictions for noised images, at steps `times` of the schedule.

    A model recognizes a training image: under any caption, its error is smaller than on an image that it never saw. It
    never saw the mirror image. With `mirrored`, mirror images are denoised instead, with mirrored noise.

    Args:
        images: uint8 (n, height, width, 3).
        context: conditioning, one row per image.

    Returns:
        Columns t, error.
    """
    denoiser = as_denoiser(pipe)
    schedule = noise_schedule(denoiser)
    z, rng = denoiser.encode(mirror(images) if mirrored else images), torch.Generator()
    rows = []
    for t in times:
        eps = torch.randn(z.shape, generator=rng.manual_seed(seed + t)).to(z)
        at = torch.full((len(z),), t, device=z.device)
        x, target = schedule.noised(z, at, eps.flip(-1) if mirrored else eps)
        rows.append({"t": t, "error": float((denoiser.predict(x, at, context) - target).float().square().mean())})
    return pd.DataFrame(rows)
