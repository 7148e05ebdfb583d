"""Mixed precision on CPUs that are faster with it.

with mixed_precision(device): loss = ...      # products of matrices in bfloat16, weights and sums in float32
with one_attention(device): ...               # around losses and gradients with checkpointing
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from threading import Lock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@cache
def bfloat16_pays() -> bool:
    """Whether this CPU has instructions for products of bfloat16; without them, these take seven times as long."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@contextmanager
def mixed_precision(device: torch.device) -> Iterator[None]:
    """Autocast to bfloat16 if it pays. Attention uses its formula: the gradient of torch's fused one is slow then."""
    with one_attention(device), torch.autocast("cpu", torch.bfloat16) if _pays(device) else nullcontext():
        yield


def one_attention(device: torch.device) -> AbstractContextManager[None]:
    """Uses the attention of `mixed_precision` in the backward pass as well.

    Gradient checkpointing recomputes layers in the backward pass. It restores autocast, but not torch's choice of
    attention, so the tensors saved for the gradient would differ.
    """
    return _BY_FORMULA if _pays(device) else nullcontext()


def _pays(device: torch.device) -> bool:
    return device.type == "cpu" and bfloat16_pays()


class _AttentionByFormula:
    """A context for several threads: all share torch's setting, so the first to enter sets it, the last restores it."""

    def __init__(self) -> None:
        self.lock, self.inside = Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.setting = sdpa_kernel(SDPBackend.MATH)
                self.setting.__enter__()
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.setting.__exit__(None, None, None)


_BY_FORMULA = _AttentionByFormula()
