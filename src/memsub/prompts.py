"""Prompt tables.

prompts = load_prompts("tiny")
prompts.memorized                # captions of the verbatim pairs
prompts.ordinary                 # captions the model saw a few times among tens of thousands
prompts.of("heldout")            # captions it never saw
prompts.images("verbatim")       # the training images, uint8 (n, h, w, 3)
subsets(100, size=10, count=10)  # indices of ten subsets of ten prompts that share none
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

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


def read_captions(path: str | Path) -> list[str]:
    """Captions from a UTF-8 text file, one a line; blank lines don't count.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not text, or holds no caption.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no prompt file at {path}.")
    try:
        captions = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; expected one caption a line.") from None
    if not captions or any("\0" in c for c in captions):
        raise ValueError(f"{path} holds no captions; expected one a line.")
    return captions


def subsets(prompts: int, size: int, count: int, seed: int = 0) -> list[list[int]]:
    """`count` subsets of `size` indices below `prompts`, that share as little as possible.

    The indices are shuffled and cut into disjoint subsets; when they run out, they are shuffled anew. Only subsets of one
    shuffle are sure to be disjoint (`disjoint_pairs`): two that share prompts overlap for that reason alone.

    Raises:
        ValueError: a subset would be larger than the list.
    """
    if not 1 <= size <= prompts:
        raise ValueError(f"subsets of {size} prompts were asked for, but there are {prompts}.")
    rng = np.random.default_rng(seed)
    found: list[list[int]] = []
    while len(found) < count:
        order = rng.permutation(prompts).tolist()
        found += [order[i : i + size] for i in range(0, prompts - size + 1, size)]
    return found[:count]


def disjoint_pairs(members: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of subsets that share no prompt."""
    return [(i, j) for i, j in combinations(range(len(members)), 2) if set(members[i]).isdisjoint(members[j])]


def load_prompts(name: str) -> Prompts:
    """The prompts that belong to a model.

    Raises:
        ValueError: there is no such list.
    """
    if name != "tiny":
        raise ValueError(f"no prompt list named {name!r}; this version knows 'tiny'.")
    return Prompts(dataset.ground_truth())
