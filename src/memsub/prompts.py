"""Prompt tables.

prompts = load_prompts("tiny")
prompts.memorized                # captions of the verbatim pairs
prompts.ordinary                 # captions the model saw a few times among tens of thousands
prompts.of("heldout")            # captions it never saw
prompts.images("verbatim")       # the training images, uint8 (n, h, w, 3)
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .testbed import dataset


@dataclass(frozen=True)
class Prompts:
    """A table of prompts; columns prompt, kind, group, exposures, content, image (PNG bytes)."""

    table: pd.DataFrame

    @property
    def memorized(self) -> list[str]:
        """Captions whose training image the model reproduces verbatim."""
        return self.of("verbatim")

    @property
    def ordinary(self) -> list[str]:
        """Captions of training images that were not repeated."""
        return self.of("ordinary")

    def rows(self, kind: str) -> pd.DataFrame:
        """The rows of one kind, in order.

        Raises:
            ValueError: the table holds no such kind.
        """
        kinds = list(self.table["kind"].unique())
        if kind not in kinds:
            close = difflib.get_close_matches(kind, kinds, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"no prompts of kind {kind!r}.{hint} This table holds: {', '.join(kinds)}.")
        return self.table[self.table["kind"] == kind].reset_index(drop=True)

    def of(self, kind: str) -> list[str]:
        """The captions of one kind."""
        return self.rows(kind)["prompt"].tolist()

    def images(self, kind: str) -> np.ndarray:
        """Training images (scenes, for `heldout`) of one kind: uint8, shape (n, height, width, 3)."""
        return np.stack([dataset.decode(png) for png in self.rows(kind)["image"]])


def load_prompts(name: str) -> Prompts:
    """The prompts that belong to a model.

    Raises:
        ValueError: there is no such list.
    """
    if name != "tiny":
        raise ValueError(f"no prompt list named {name!r}; this version knows 'tiny'.")
    return Prompts(dataset.ground_truth())
