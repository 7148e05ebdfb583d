"""Distances between two sets of images: KID and FID of image features, by torchmetrics.

`PromptMetric.image_features` have unit length, so the values are small, and comparable only under the same metric. KID
is unbiased: its expectation does not depend on the number of images, and is zero for equal distributions. FID falls
with the number of images: compare it only at equal numbers, with at least as many images as features.

Under `accelerate launch` every process holds all features. By default torchmetrics would gather them from all processes
and count every image several times; hence `sync_on_compute=False`.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch


class _Given(torch.nn.Module):
    """Takes the place of the network of torchmetrics: returns features that were computed before."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _updated(metric, real: np.ndarray, generated: np.ndarray):
    if not real.ndim == generated.ndim == 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"features (n, dim) of one metric expected, such as `metrics.prompt.image_features(images)`; got arrays of "
            f"shape {real.shape} and {generated.shape}."
        )
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"a distance needs two images or more a side; got {len(real)} and {len(generated)}.")
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(generated), real=False)
    return metric


def fid(real: np.ndarray, generated: np.ndarray) -> float:
    """Fréchet distance (Heusel et al. 2017) of image features (n, dim) and (m, dim).

    Raises:
        ValueError: fewer than two images on a side, or no features of equal length.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(real.shape[-1]), sync_on_compute=False)
    return float(_updated(metric, real, generated).compute())


def kid(real: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """Kernel distance (Binkowski et al. 2018) of image features (n, dim) and (m, dim): mean and deviation over subsets.

    There are 100 fixed subsets. Each has half as many images as the smaller side, and at most 1,000.

    Raises:
        ValueError: fewer than two images on a side, or no features of equal length.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = max(2, min(1000, min(len(real), len(generated)) // 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*save all extracted features.*")  # they are small here
        metric = KernelInceptionDistance(
            feature=_Given(real.shape[-1]), subsets=100, subset_size=size, sync_on_compute=False
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, deviation = _updated(metric, real, generated).compute()
    return float(mean), float(deviation)
