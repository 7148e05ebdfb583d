"""Captions and their images: what a removal is given, and what its result is judged on.

pairs = Pairs(captions, images)             # image i belongs to caption i
pairs = Pairs(captions, images, wordings)   # ... and other wordings of each, which some removals need
subjects = Subjects(forget_set, held_out, unseen, ordinary)
subjects.judged[FORGET_SET]                 # by the names that tables use
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memsub_extra.prompt_lists.wordings import required

SAMPLING: dict[str, Any] = {"steps": 8, "solver": "multistep", "guidance_scale": 3.0, "progress": False}
"""How audits sample the images that they judge: options of `memsub.generate`."""
FORGET_SET, HELD_OUT, UNSEEN = "forget set", "held-out memorized", "unseen"
"""What tables and figures call the kinds of pairs."""


@dataclass
class Pairs:
    """Captions and their images, uint8 (n, height, width, 3), and where they are known other wordings of each caption.

    Raises:
        ValueError: no caption, or another number of captions than of images or of lists of wordings.
    """

    captions: list[str]
    images: np.ndarray
    wordings: list[list[str]] = field(default_factory=list)

    def __post_init__(self):
        if not self.captions or len(self.captions) != len(self.images):
            raise ValueError(f"{len(self.captions)} captions with {len(self.images)} images: one each expected.")
        if self.wordings and len(self.wordings) != len(self.captions):
            raise ValueError(
                f"{len(self.captions)} captions with other wordings of {len(self.wordings)}: each needs some."
            )

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
        """Each caption's content in other words, for `what`; raises ValueError where a caption has none."""
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
        """The pairs by what tables call them."""
        return {FORGET_SET: self.forget_set, HELD_OUT: self.held_out, UNSEEN: self.unseen}
