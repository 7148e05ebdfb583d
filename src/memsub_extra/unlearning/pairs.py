"""Captions and their images: what a removal is given, and what its result is judged on.

pairs = Pairs.read("captions.txt", "training-images", pipe)     # from files; captions without an image are left out
pairs = Pairs(captions, images)             # image i belongs to caption i
pairs = Pairs(captions, images, wordings)   # ... with other wordings of each caption, which some removals need
subjects = Subjects(forget_set, held_out, unseen, ordinary)
subjects.judged[FORGET_SET]                 # by the names in tables
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from memsub.models import Pipeline, as_denoiser, check_images
from memsub.prompts import read_prompts
from memsub_extra.prompt_lists.images import match_images, read_matched
from memsub_extra.prompt_lists.wordings import required, wordings_of

SAMPLING: dict[str, Any] = {"steps": 8, "solver": "multistep", "guidance_scale": 3.0, "progress": False}
"""Options of `memsub.generate` for the images that audits judge."""
FORGET_SET, HELD_OUT, UNSEEN = "forget set", "held-out memorized", "unseen"
"""Names of the kinds of pairs in tables and figures."""


@dataclass
class Pairs:
    """Captions, their images, uint8 (n, height, width, 3), and other wordings of each caption, if these are known.

    Raises:
        ValueError: there is no caption, the numbers of captions, images and lists of wordings differ, or the images
            are no uint8 array.
    """

    captions: list[str]
    images: np.ndarray
    wordings: list[list[str]] = field(default_factory=list)

    def __post_init__(self):
        if not self.captions or len(self.captions) != len(self.images):
            raise ValueError(f"{len(self.captions)} captions with {len(self.images)} images: one each expected.")
        check_images(self.images)
        if self.wordings and len(self.wordings) != len(self.captions):
            raise ValueError(
                f"{len(self.captions)} captions with other wordings of {len(self.wordings)}: each needs some."
            )

    @classmethod
    def read(cls, captions: str | Path, images: str | Path, size: Pipeline | int) -> Pairs:
        """Pairs of a list and a folder, in the order of the list, with the first image of each caption.

        Captions without an image are left out. Their number and the notes of `match_images` are printed.

        Args:
            captions: a prompt list (`memsub.prompts.read_prompts`); its column `rephrased` has other wordings.
            images: a folder in a layout of docs/images.md: `images/1/a.png` belongs to the first caption.
            size: side of the images in pixels, or the pipeline whose size they get.

        Raises:
            FileNotFoundError: the list or the folder does not exist.
            ValueError: the file is no prompt list, or the folder holds no image of its captions.
        """
        folder = Path(images)
        rows = read_prompts(captions)
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder of images at {folder}.")
        side = size if isinstance(size, int) else as_denoiser(size).image_shape[0]
        matched = match_images(rows, folder, one_image_each=False)
        read = read_matched(matched, side)
        for sentence in (*read.notes, *read.broken.values()):
            print(sentence)
        if not read.images:
            raise ValueError(matched.tally.nothing_matched())
        places = sorted(read.images)
        print(f"{len(places)} of {len(rows)} captions of {captions} have an image in {folder}")
        texts, wordings = rows["prompt"].tolist(), wordings_of(rows, captions)
        chosen = [wordings[i] for i in places] if any(wordings) else []
        return cls([texts[i] for i in places], np.stack([read.images[i][0] for i in places]), chosen)

    def __len__(self) -> int:
        return len(self.captions)

    def only(self, chosen: Sequence[int]) -> Pairs:
        """The pairs at the places `chosen`."""
        wordings = [self.wordings[i] for i in chosen] if self.wordings else []
        return Pairs([self.captions[i] for i in chosen], self.images[list(chosen)], wordings)

    def first(self, n: int) -> Pairs:
        """The first n, or all if there are fewer."""
        return Pairs(self.captions[:n], self.images[:n], self.wordings[:n])

    def other_wording(self, what: str) -> list[str]:
        """Each caption's content in other words, for the purpose `what`; raises ValueError if a caption has none."""
        return required(self.captions, self.wordings, what)


@dataclass
class Subjects:
    """What a removal is judged on.

    Attributes:
        forget_set: the memorized pairs that the removal was given.
        held_out: memorized pairs that it was not given.
        unseen: pairs that no model was trained on.
        ordinary: pairs to keep, and to fine-tune on.
    """

    forget_set: Pairs
    held_out: Pairs
    unseen: Pairs
    ordinary: Pairs

    @property
    def judged(self) -> dict[str, Pairs]:
        """The pairs that a removal is judged on (not the ordinary ones), by their names in tables."""
        return {FORGET_SET: self.forget_set, HELD_OUT: self.held_out, UNSEEN: self.unseen}
