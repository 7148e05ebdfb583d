"""A world: a data set whose ground truth is known in full. Exact tests require one.

    world = world_of(find_model("tiny"))              # imported now, not before
    world.prompts().memorized                         # captions that the model was trained on most
    world.training_images()                           # all images that it was trained on
    contents = [world.content(prompt) for prompt in prompts]
    for images in world.alternatives(contents): ...   # images that the same caption might as well have had

A caption leaves free how the image looks that it describes. A world can draw, for the content of each of its captions,
images that are exchangeable with the training image for a model that was not trained on it. Another package lists a
world in the entry points `memsub.worlds`, and a model of it in `memsub.models`; or a folder of a model says in a file
world.json of which world it is (`memsub.models.worlds`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from .measure.exact import Alternatives
from .measure.metric import CopyMetric, PromptMetric
from .models import WORLDS, world_of
from .prompts import Prompts

__all__ = ["WORLDS", "World", "world_of"]


class World(Alternatives, Protocol):
    """What a data set with known ground truth offers.

    It may have more: `matched`, which says of rows of its prompts which of them are like memorized ones in all that a
    caption says (a column of truth values; other captions are then compared with memorized ones no more);
    `of(source)`, which returns the world as the files of the model at that path describe it (else it is the same for
    all models); and `exact_p`, its exact test as a metric (`measure.metrics.IMAGE_METRICS`).
    """

    def prompts(self) -> Prompts:
        """Its captions by kind, with their training images."""

    def training_images(self) -> np.ndarray:
        """All images that its models were trained on: uint8 (n, height, width, 3)."""

    def copy_metric(self, source: Path, device: str | torch.device) -> CopyMetric:
        """Its copy descriptor, of the files of a model at `source`."""

    def prompt_metric(self, source: Path, device: str | torch.device) -> PromptMetric:
        """How well an image shows what a caption of this world says, of the files of a model at `source`."""
