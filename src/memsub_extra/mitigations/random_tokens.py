"""Random token addition (Somepalli et al., NeurIPS 2023): words that do not belong to the caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from memsub.models import Sample, as_captions
from memsub_extra.mitigations.base import Baseline, Context

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def add_random_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], k: int, seed: int = 0) -> list[str]:
    """Inserts `k` random words of the tokenizer at random places of each prompt (Somepalli et al. 2023, "RT").

    Raises:
        ValueError: k is negative.
    """
    if k < 0:
        raise ValueError(f"k must not be negative; got {k}.")
    words = sorted(w.removesuffix("</w>") for w in tokenizer.get_vocab() if w.endswith("</w>") and w[:-4].isalpha())
    words = [w for w in words if len(w) > 1]
    rng = np.random.default_rng(seed)
    changed = []
    for prompt in as_captions(prompts):
        pieces = prompt.split(" ")
        for _ in range(k):
            pieces.insert(int(rng.integers(len(pieces) + 1)), str(rng.choice(words)))
        changed.append(" ".join(pieces))
    return changed


def _make(context: Context, k: int) -> Sample:
    def sample(prompts: Sequence[str], *, seeds: Sequence[int]) -> np.ndarray:
        return context.sample(add_random_tokens(context.pipe.tokenizer, prompts, k), seeds=seeds)

    return sample


BASELINE = Baseline("the text of each prompt", "words added", _make, (1, 2, 4), str)
