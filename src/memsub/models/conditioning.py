"""What a network is conditioned on, as one value: a row a prompt.

    >>> denoiser = as_denoiser(pipe)
    >>> conditioning = denoiser.embed(["a red heart", "a blue fish"])
    >>> len(conditioning[:1]), len(conditioning[[1, 0]]), len(conditioning[1])      # rows; an int gives one row
    (1, 2, 1)
    >>> guided = Conditioning.cat([denoiser.embed(["", ""]), conditioning])
    >>> louder = conditioning.with_embeddings(conditioning.embeddings * 2)          # the rest stays

Stable Diffusion takes token embeddings alone. Larger models take more of each prompt: pooled embeddings and sizes
(SDXL), a mask of the tokens that count (PixArt), the scale of a guidance that was distilled into the network (Flux).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .protocol import Denoiser


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Tensors with a row a prompt: n prompts. What a model has no use for is None.

    Attributes:
        embeddings: of the tokens, (n, tokens, width).
        pooled: one embedding a prompt, (n, width).
        time_ids: added numbers, such as the sizes of SDXL, (n, k).
        mask: tokens that count, (n, tokens).
        guidance: scale that the network itself takes, (n,).

    Raises:
        ValueError: embeddings are not of three dimensions, or another tensor has another number of rows.
    """

    embeddings: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    guidance: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 3:
            shape = tuple(self.embeddings.shape)
            raise ValueError(f"embeddings must have the shape (prompts, tokens, width); got {shape}.")
        for name, tensor in self.tensors().items():
            if len(tensor) != len(self):
                raise ValueError(f"{name} has {len(tensor)} rows, the embeddings have {len(self)}.")

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that are not None, by name."""
        each = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in each.items() if tensor is not None}

    def __len__(self) -> int:
        return len(self.embeddings)

    def __iter__(self) -> Iterator[Conditioning]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, rows: int | slice | Sequence[int] | torch.Tensor) -> Conditioning:
        """Some rows; an int gives a conditioning of one row."""
        if isinstance(rows, int) or (isinstance(rows, torch.Tensor) and rows.ndim == 0):
            rows = [int(rows)]  # a list keeps the axis of rows
        elif isinstance(rows, range):
            rows = list(rows)
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditioning:
        return Conditioning(**{name: change(tensor) for name, tensor in self.tensors().items()})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """The rows of all parts, one part after the other.

        Raises:
            ValueError: no parts, or some of them hold a tensor that others have not.
        """
        if not parts:
            raise ValueError("nothing to concatenate: give one conditioning or more.")
        tensors = [part.tensors() for part in parts]
        for name in set().union(*tensors):
            if not all(name in each for each in tensors):
                raise ValueError(f"only some of these prompts have {name}.")
        return Conditioning(**{name: torch.cat([each[name] for each in tensors]) for name in tensors[0]})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """On another device; a dtype is that of what is floating, so that a mask stays one."""
        moved = self if device is None else self._each(lambda tensor: tensor.to(device))
        if dtype is None:
            return moved
        return moved._each(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def repeat(self, times: int) -> Conditioning:
        """All rows, so many times: (a, b) to (a, b, a, b)."""
        return self._each(lambda tensor: tensor.repeat(times, *[1] * (tensor.ndim - 1)))

    def repeat_interleave(self, times: int) -> Conditioning:
        """Each row so many times: (a, b) to (a, a, b, b)."""
        return self._each(lambda tensor: tensor.repeat_interleave(times, 0))

    def expand(self, n: int) -> Conditioning:
        """One row as n rows, without copies; raises ValueError if this is not one row."""
        if len(self) != 1:
            raise ValueError(f"one row can be expanded; these are {len(self)}.")
        return self._each(lambda tensor: tensor.expand(n, *tensor.shape[1:]))

    def detach(self) -> Conditioning:
        """Without gradients."""
        return self._each(torch.Tensor.detach)

    def with_embeddings(self, embeddings: torch.Tensor) -> Conditioning:
        """Other token embeddings, (n, tokens, width), for the same prompts."""
        return replace(self, embeddings=embeddings)

    def row_digests(self) -> list[str]:
        """sha256 of each row: of the names, dtypes, shapes and bytes of its tensors, whatever the other rows are."""
        digests = [hashlib.sha256() for _ in range(len(self))]
        for name, tensor in self.tensors().items():
            kind = f"{name} {tensor.dtype} {tuple(tensor.shape[1:])}".encode()
            for digest, row in zip(digests, tensor.detach().cpu(), strict=True):
                digest.update(kind)
                digest.update(row.contiguous().reshape(-1).view(torch.uint8).numpy())
        return [digest.hexdigest() for digest in digests]

    @property
    def fingerprint(self) -> str:
        """sha256 of all rows in their order."""
        return hashlib.sha256("\n".join(self.row_digests()).encode()).hexdigest()


def as_conditioning(prompts: Sequence[str] | Conditioning | torch.Tensor, denoiser: Denoiser) -> Conditioning:
    """What `Denoiser.predict` takes (`as_prompts`: what `sample` takes): captions embedded, a plain tensor (n, tokens,
    width) as token embeddings alone, a conditioning as it is.
    """
    if isinstance(prompts, Conditioning):
        return prompts
    if isinstance(prompts, torch.Tensor):
        return Conditioning(prompts)
    return denoiser.embed(list(prompts))
