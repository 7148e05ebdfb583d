"""A world: a data set whose ground truth is known in full. Exact tests require one.

    world = world_of(find_model("tiny"))              # imported at first use
    world.prompts().memorized                         # captions that the model was trained on most
    contents = [world.content(prompt) for prompt in prompts]
    for images in world.alternatives(contents): ...   # other images that fit the same captions

Many images fit one caption. For the content of each of its captions, a world provides alternative images: for a model
that was not trained on the training image, they are exchangeable with it. Another package adds a world by the entry
points `memsub.worlds`, and models of it by `memsub.models`. A model's folder can also name its world in the file
world.json (`memsub.models.worlds`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from .measure.exact import Alternatives
from .measure.metric import CopyMetric, PromptMetric
from .models import WORLDS, world_of
from .prompts import Prompts

__all__ = ["WORLDS", "World", "world_of"]


class World(Alternatives, Protocol):
    """What a data set with known ground truth offers.

    A world may have three more members. `matched(rows)` marks the rows of its prompts whose captions have the form of
    memorized captions (bool); only these are then compared with memorized captions. `of(source)` returns the world as
    the files of the model at that path describe it; without it, the world is the same for all models. `exact_p` is its
    exact test as a metric (`measure.metrics.IMAGE_METRICS`).
    """

    def prompts(self) -> Prompts:
        """Its captions by kind, with their training images."""

    def copy_metric(self, source: Path, device: str | torch.device) -> CopyMetric:
        """Its copy descriptor, from the files of the model at `source`."""

    def prompt_metric(self, source: Path, device: str | torch.device) -> PromptMetric:
        """How well an image shows what a caption says: its metric, from the files of the model at `source`."""
