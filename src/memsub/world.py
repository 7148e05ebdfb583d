"""A world: a data set whose ground truth is known in full. Exact tests require one.

    world = WORLDS[find_model("tiny").world]          # imported now, not before
    world.prompts().memorized                         # captions that the model was trained on most
    world.training_images()                           # all images that it was trained on
    contents = [world.content(prompt) for prompt in prompts]
    for images in world.alternatives(contents): ...   # images that the same caption might as well have had

A caption leaves free how the image looks that it describes. A world can draw, for the content of each of its captions,
images that are exchangeable with the training image for a model that was not trained on it. Another package lists a
world in the entry points `memsub.worlds`, and a model of it in `memsub.models`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from .registry import Registry

if TYPE_CHECKING:  # the metrics and prompts are above a world's protocol only by name
    from .measure.metric import CopyMetric, PromptMetric
    from .prompts import Prompts


class World(Protocol):
    """What a data set with known ground truth offers."""

    name: str

    def prompts(self) -> Prompts:
        """Its captions by kind, with their training images."""

    def training_images(self) -> np.ndarray:
        """All images that its models were trained on: uint8 (n, height, width, 3)."""

    def content(self, prompt: str) -> Hashable:
        """What a caption says of its image. Captions of one content share the alternatives.

        Raises:
            ValueError: the text is no caption of this world.
        """

    def alternatives(self, contents: Sequence[Any], seed: int = 0) -> Iterator[np.ndarray]:
        """For each content (of `content`) in turn its alternatives, uint8 (N, height, width, 3), N = 255 or more.

        They are independent draws from the distribution that training images of this content have, and a function of
        content and seed. An exact test compares a generated image with them and with the training image.
        """

    def copy_metric(self, source: Path, device: str | torch.device) -> CopyMetric:
        """Its copy descriptor, of the files of a model at `source`."""

    def prompt_metric(self, source: Path, device: str | torch.device) -> PromptMetric:
        """How well an image shows what a caption of this world says, of the files of a model at `source`."""


WORLDS: Registry[World] = Registry("memsub.worlds", "world", {"testbed": "memsub.testbed.world:WORLD"})
