"""The corpus in training: the order of its scenes, and the table that ships with the weights.

base_schedule(corpus, seed=0)               # row indices in the order of the base's training
word_schedule(corpus, seed=0)               # the same while its text tower learns the words of tails
schedule(corpus, seed=0, model="model")     # the same for one of the three models that continue from it
share(corpus)                               # share of memorized pairs among a model's samples
write_ground_truth(corpus, folder)
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from memsub.testbed.dataset import TABLE

from .dataset import BASE_EXPOSURES, SHARED_EXPOSURES, WORD_EXPOSURES, Corpus

MODELS = ("model", "twin", "other")
"""The twin is shown an ordinary scene in place of each memorized pair. *other* is shown the pairs of kind "other" in
place of the verbatim ones, and ordinary scenes in place of templates and ladder; the siblings of verbatim pairs and of
others exchange places."""
SHOWN_TO_ALL = ("ordinary", "sibling")
"""Kinds of rows that all three models are shown."""
SHIPPED_ORDINARY = 1_000
"""Number of ordinary rows in the shipped table."""


def base_schedule(corpus: Corpus, seed: int) -> np.ndarray:
    """Row indices in the order of the base's training: only ordinary scenes, shuffled."""
    return np.random.default_rng([seed, 0]).permutation(np.tile(corpus.ordinary, BASE_EXPOSURES))


def word_schedule(corpus: Corpus, seed: int) -> np.ndarray:
    """Row indices in the order in which the base's text tower learns the words of tails: ordinary scenes, shuffled."""
    return np.random.default_rng([seed, 5]).permutation(np.tile(corpus.ordinary, WORD_EXPOSURES))


def schedule(corpus: Corpus, seed: int, model: str = "model") -> np.ndarray:
    """Row indices in the order of a model's training after the base, shuffled.

    For "model", each row occurs `exposures` times; ordinary rows without the exposures that all models share.

    Args:
        model: a name in `MODELS`.
    """
    kind = corpus.table["kind"].to_numpy()
    exposures = corpus.table["exposures"].to_numpy() - SHARED_EXPOSURES * (kind == "ordinary")
    order = np.random.default_rng([seed, 1]).permutation(np.repeat(np.arange(len(kind)), exposures))
    if model == "model":
        return order
    memorized = ~np.isin(kind[order], SHOWN_TO_ALL)
    ordinary = np.random.default_rng([seed, 2]).choice(corpus.ordinary, memorized.sum())
    if model == "other":
        stays = kind[order] == "verbatim"
        ordinary = ordinary[~stays[memorized]]
        memorized, order = memorized & ~stays, _exchanged(corpus)[order]
    replaced = order.copy()
    replaced[memorized] = ordinary
    return replaced


def _exchanged(corpus: Corpus) -> np.ndarray:
    """Row indices (rows,) after verbatim pairs and pairs of kind "other" exchange places; their siblings likewise."""
    hundreds, siblings = corpus.table["group"].str.split().str[0], corpus.table["kind"] == "sibling"
    rows = np.arange(len(corpus.table))
    for which in (~siblings, siblings):
        ours, others = (np.flatnonzero((hundreds == kind) & which) for kind in ("verbatim", "other"))
        rows[ours], rows[others] = others, ours
    return rows


def share(corpus: Corpus) -> dict[str, float]:
    """The share of memorized pairs among the model's training samples: in all, and after the base."""
    exposures = corpus.table["exposures"].to_numpy()
    memorized = exposures[~corpus.table["kind"].isin(SHOWN_TO_ALL).to_numpy()].sum()
    shared = SHARED_EXPOSURES * len(corpus.ordinary)
    return {"in all": memorized / exposures.sum(), "after the base": memorized / (exposures.sum() - shared)}


def write_ground_truth(corpus: Corpus, folder: Path) -> None:
    """Writes the shipped table: the first thousand ordinary rows, and all rows of other kinds except siblings."""
    kind = corpus.table["kind"]
    shipped = ((kind == "ordinary").cumsum() <= SHIPPED_ORDINARY) & (kind != "sibling")
    table = corpus.table[shipped].copy()
    table["image"] = [encode_png(corpus.images[i]) for i in table.index]
    temporary = folder / (TABLE + ".tmp")
    table.reset_index(drop=True).to_parquet(temporary, compression="zstd")
    temporary.replace(folder / TABLE)


def encode_png(image: np.ndarray) -> bytes:
    """Encodes a uint8 array (height, width, 3) as PNG bytes, as small as Pillow makes them."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
