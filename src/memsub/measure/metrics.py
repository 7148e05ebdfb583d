"""Metrics: is an image a copy, does it show what the prompt says, how far is a set of images from real ones?

    metrics = load_metrics("tiny")
    metrics.copy.similarity(images, training_images)        # (n,) cosine; above metrics.copy.threshold: a copy
    metrics.copy.nearest(images, corpus_features)           # (n,) highest cosine, and the row with it
    metrics.prompt.similarity(images, prompts)              # (n,)
    kid(metrics.prompt.image_features(real), metrics.prompt.image_features(images))    # distance of two sets of images

The metrics were trained on none of the images that the scored models were trained on.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..io import distributed
from ..models import WORLDS, ModelInfo, find_model, world_of
from ..registry import Registry
from .clip import CLIPS, clip
from .distances import fid, kid
from .metric import CopyMetric, ImageMetric, PromptMetric
from .sscd import SSCD, sscd
from .verdict import judges_single_images

IMAGE_METRICS: Registry[ImageMetric] = Registry(
    "memsub.metrics",
    "metric",
    {"exact_p": "memsub.testbed.world:exact_p"},
)
"""More numbers for each image, by column name in evaluations; the parameter `metrics.more` chooses among them."""


@dataclass
class Metrics:
    """The metrics of a run: similarity with the training image, with the prompt, and further metrics by name."""

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
        model: as for `load_pipeline`. The embedded models, and folders with scorers beside their weights, use the
            metrics of their world. Any other model uses SSCD and CLIP ViT-L/14, which are fetched on first use.
        copy: use this SSCD instead: a name or a path.
        prompt: use this CLIP instead: a name or a folder.
        more: names in `IMAGE_METRICS`. `exact_p` is the exact test of the world that the model was trained on. It is
            omitted, with a warning, if that world has too few alternatives for a verdict on one image.

    Raises:
        ValueError: a name is unknown (the message lists the known names), or there is no such device.
        ConnectionError: a published metric cannot be fetched.
    """
    device = distributed.device(device)
    row = find_model(model)
    columns = {name: column for name in more if (column := _column(name, row))}
    world = None if row.scorers == "published" else WORLDS.find(row.scorers)
    if copy or not world:
        copy_metric = sscd(copy or "sscd_disc_large", device)
    else:
        copy_metric = world.copy_metric(Path(row.source), device)
    if prompt or not world:
        prompt_metric = clip(prompt or "ViT-L/14", device)
    else:
        prompt_metric = world.prompt_metric(Path(row.source), device)
    return Metrics(copy_metric, prompt_metric, columns)


def _column(name: str, row: ModelInfo) -> ImageMetric | None:
    metric, world = IMAGE_METRICS.find(name), world_of(row)
    if name != "exact_p" or world is None or not hasattr(world, "exact_p"):
        return metric
    if judges_single_images(world):
        return world.exact_p
    warnings.warn(
        f"exact_p is left out: with {world.alternatives_each} alternatives of an image {world.name} judges no single "
        "images, and the copy metric's threshold takes its place.",
        stacklevel=3,
    )
    return None


__all__ = [
    "CLIPS",
    "IMAGE_METRICS",
    "SSCD",
    "CopyMetric",
    "ImageMetric",
    "Metrics",
    "PromptMetric",
    "clip",
    "fid",
    "kid",
    "load_metrics",
    "sscd",
]
