"""Checks of captions: near-duplicates, and captions that are too long for the tokenizer.

near_duplicates(["a red heart", "a blue fish", "a red heart."])     # [None, None, 0]
without_near_duplicates(prompts)
too_long(captions, pipe.tokenizer)                                  # {7: 93}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from memsub.prompts import Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def near_duplicates(captions: Sequence[str], threshold: float = 0.8) -> list[int | None]:
    """For each caption, the index of an earlier near-duplicate, or None.

    Two captions are near-duplicates if the cosine of their TF-IDF of character 3- to 5-grams is above `threshold`.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit_transform(captions)
    repeated: list[int | None] = []
    for i in range(len(captions)):
        alike = (vectors[:i] @ vectors[i].T).toarray()[:, 0] if i else np.empty(0)
        repeated.append(int(alike.argmax()) if len(alike) and alike.max() > threshold else None)
    return repeated


def too_long(captions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """Captions that the tokenizer truncates: index to length in tokens, including the start and end tokens."""
    lengths = map(len, tokenizer(list(captions)).input_ids)
    return {i: n for i, n in enumerate(lengths) if n > tokenizer.model_max_length}


def without_near_duplicates(prompts: Prompts) -> Prompts:
    """The prompts without memorized captions that are near-duplicates of an earlier one."""
    memorized = prompts.table[prompts.table["kind"].isin(prompts.memorized_kinds)]
    repeats = [i is not None for i in near_duplicates(memorized["prompt"].tolist())]
    return Prompts(prompts.table.drop(memorized.index[repeats]).reset_index(drop=True), prompts.memorized_kinds)
