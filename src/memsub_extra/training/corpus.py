"""The corpus as training uses it: the order in which its scenes are shown, and the table that ships with the weights.

schedule(corpus, seed=0)                    # row indices in the order in which training shows them
schedule(corpus, seed=0, twin=True)         # the same for the twin, which is never shown a memorized pair
write_ground_truth(corpus, folder)
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from memsub.testbed.dataset import TABLE, Corpus

SHOWN_TO_TWIN = ("ordinary", "sibling")
"""Kinds of rows that the twin is trained on, too."""
SHIPPED_ORDINARY = 1_000
"""Ordinary rows of the table that ships."""


def schedule(corpus: Corpus, seed: int, twin: bool = False) -> np.ndarray:
    """Row indices in training order: each row as often as its `exposures` say, shuffled.

    The twin's has a random ordinary scene in each place where the model's has a memorized one.
    """
    order = np.repeat(np.arange(len(corpus.table)), corpus.table["exposures"])
    order = np.random.default_rng([seed, 1]).permutation(order)
    if twin:
        memorized = ~corpus.table["kind"].isin(SHOWN_TO_TWIN).to_numpy()[order]
        order[memorized] = np.random.default_rng([seed, 2]).choice(corpus.ordinary, memorized.sum())
    return order


def write_ground_truth(corpus: Corpus, folder: Path) -> None:
    """The table that ships with the weights: the first thousand ordinary rows, and all others but siblings."""
    kind = corpus.table["kind"]
    shipped = ((kind == "ordinary").cumsum() <= SHIPPED_ORDINARY) & (kind != "sibling")
    table = corpus.table[shipped].copy()
    table["image"] = [encode_png(corpus.images[i]) for i in table.index]
    temporary = folder / (TABLE + ".tmp")
    table.reset_index(drop=True).to_parquet(temporary, compression="zstd")
    temporary.replace(folder / TABLE)


def encode_png(image: np.ndarray) -> bytes:
    """A uint8 array (height, width, 3) to PNG bytes, as small as Pillow makes them."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
