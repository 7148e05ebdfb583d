"""Metrics: is this a copy, does it show what was asked, is it as varied and real as it should be?

    metrics = load_metrics("tiny")
    metrics.copy.similarity(images, training_images)        # (n,) cosine; above metrics.copy.threshold: a copy
    metrics.copy.nearest(images, corpus_features)           # (n,) most similar of many, and which
    metrics.prompt.similarity(images, prompts)              # (n,)
    kid(metrics.prompt.image_features(real), metrics.prompt.image_features(images))    # distance of two sets of images

The metrics saw nothing of what the scored model was trained on. Each kind has a registry: a new one is a file of this
folder and a line below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import distributed
from ..exact import exact_p
from ..models import find_model
from .base import CopyMetric, ImageMetric, PromptMetric
from .clip import CLIPS, clip
from .distances import fid, kid
from .scenes import scene_alignment, scene_copy
from .sharpness import sharpness
from .sscd import SSCD, sscd

IMAGE_METRICS: dict[str, ImageMetric] = {"exact_p": exact_p, "sharpness": sharpness}
"""More numbers an image, by the name of their column in every evaluation; chosen by the parameter `metrics.more`."""

SCORERS: dict[str, tuple[Callable[..., CopyMetric], Callable[..., PromptMetric]]] = {
    "published": (
        lambda source, device: sscd("sscd_disc_large", device),
        lambda source, device: clip("ViT-L/14", device),
    ),
    "testbed": (
        lambda source, device: scene_copy(Path(source), device),
        lambda source, device: scene_alignment(Path(source), device),
    ),
}
"""What belongs to models: a copy and a prompt metric, made of the model's source and a device (`Model.scorers`)."""


@dataclass
class Metrics:
    """The metrics of a run: how like the training image, how like the prompt, and more numbers an image by name."""

    copy: CopyMetric
    prompt: PromptMetric
    more: dict[str, ImageMetric] = field(default_factory=dict)


def load_metrics(
    model: str = "tiny",
    device: str | torch.device | None = None,
    copy: str | None = None,
    prompt: str | None = None,
    more: Sequence[str] = (),
) -> Metrics:
    """The metrics that belong to a model.

    Args:
        model: as for `load_pipeline`. The embedded model, or a folder that `memsub.testbed.train` wrote, has metrics of
            its own; any other model SSCD and CLIP ViT-L/14, fetched on first use.
        copy: an SSCD instead, by name or path; prompt: a CLIP instead, by name or folder.
        more: names in `IMAGE_METRICS`.

    Raises:
        ValueError: an unknown name; lists those that are known.
        ConnectionError: a published metric has to be fetched and cannot be.
    """
    if unknown := [name for name in more if name not in IMAGE_METRICS]:
        raise ValueError(f"unknown metric {unknown[0]!r}; expected some of {', '.join(IMAGE_METRICS)}.")
    device = torch.device(device or distributed.device())
    row = find_model(model)
    own_copy, own_prompt = SCORERS[row.scorers]
    return Metrics(
        sscd(copy, device) if copy else own_copy(row.source, device),
        clip(prompt, device) if prompt else own_prompt(row.source, device),
        {name: IMAGE_METRICS[name] for name in more},
    )


__all__ = [
    "CLIPS",
    "IMAGE_METRICS",
    "SCORERS",
    "SSCD",
    "CopyMetric",
    "ImageMetric",
    "Metrics",
    "PromptMetric",
    "clip",
    "fid",
    "kid",
    "load_metrics",
    "sharpness",
    "sscd",
]
