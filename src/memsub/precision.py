"""Mixed precision on a CPU, where it pays.

with mixed_precision(device): loss = ...      # products of matrices in bfloat16, weights and sums in float32
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@cache
def bfloat16_pays() -> bool:
    """Whether this CPU multiplies bfloat16 by instructions of its own; one that does not takes seven times as long."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@contextmanager
def mixed_precision(device: torch.device) -> Iterator[None]:
    """On a CPU that can; attention by its formula, as the gradient of torch's fused one is slow in bfloat16."""
    if device.type == "cpu" and bfloat16_pays():
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield
