"""The testbed's tokenizer: CLIP's byte-pair encoding, with one token for each word of the world."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from memsub.testbed import scenes
from memsub_extra.training.clip import CONTEXT


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with merges for the words of this world: one token a word; other text is split.

    The merges are computed here, because the trainer of the tokenizers library breaks ties at random. Token ids must
    not change between the run that trains the CLIP and a run that resumes with the UNet.
    """
    spellings = [[*word[:-1], f"{word[-1]}</w>"] for word in sorted(set(scenes.WORDS))]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in spellings for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spellings = [_merged(word, best) for word in spellings]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Token ids, shape (prompts, 24), padded with the end token, as in Stable Diffusion."""
    return tokenizer(prompts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids
