"""All inputs by which a network is conditioned, in one object with a row for each prompt.

    >>> denoiser = as_denoiser(pipe)
    >>> conditioning = denoiser.embed(["a red heart", "a blue fish"])
    >>> len(conditioning[:1]), len(conditioning[[1, 0]]), len(conditioning[1])      # rows; an int selects one row
    (1, 2, 1)
    >>> guided = Conditioning.cat([denoiser.embed(["", ""]), conditioning])
    >>> louder = conditioning.with_embeddings(conditioning.embeddings * 2)          # the rest stays

Stable Diffusion takes token embeddings only. Other models take more inputs for each prompt: pooled embeddings and sizes
(SDXL), a mask of valid tokens (PixArt), the guidance scale of a distilled network (Flux).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .protocol import Denoiser


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Tensors with a row for each of n prompts. Inputs that the model does not take are None.

    Attributes:
        embeddings: token embeddings, (n, tokens, width).
        pooled: one embedding for each prompt, (n, width).
        time_ids: further numbers, such as the sizes of SDXL, (n, k).
        mask: which tokens are valid, (n, tokens).
        guidance: guidance scale, if the network takes it as an input, (n,).

    Raises:
        ValueError: embeddings do not have three dimensions, or the tensors differ in their number of rows.
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
        """The tensors that are not None, by name."""
        each = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in each.items() if tensor is not None}

    def __len__(self) -> int:
        return len(self.embeddings)

    def __iter__(self) -> Iterator[Conditioning]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, rows: int | slice | Sequence[int] | torch.Tensor) -> Conditioning:
        """The given rows; an int gives a conditioning with one row."""
        if isinstance(rows, Integral) or (isinstance(rows, torch.Tensor) and rows.ndim == 0):
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
            ValueError: no parts, or a tensor is present in some parts only.
        """
        if not parts:
            raise ValueError("nothing to concatenate: give one conditioning or more.")
        tensors = [part.tensors() for part in parts]
        for name in set().union(*tensors):
            if not all(name in each for each in tensors):
                raise ValueError(f"only some of these prompts have {name}.")
        return Conditioning(**{name: torch.cat([each[name] for each in tensors]) for name in tensors[0]})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """Moves to a device, and casts floating tensors to a dtype; a mask keeps its dtype."""
        moved = self if device is None else self._each(lambda tensor: tensor.to(device))
        if dtype is None:
            return moved
        return moved._each(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def repeat(self, times: int) -> Conditioning:
        """Repeats all rows: (a, b) to (a, b, a, b)."""
        return self._each(lambda tensor: tensor.repeat(times, *[1] * (tensor.ndim - 1)))

    def repeat_interleave(self, times: int) -> Conditioning:
        """Repeats each row: (a, b) to (a, a, b, b)."""
        return self._each(lambda tensor: tensor.repeat_interleave(times, 0))

    def expand(self, n: int) -> Conditioning:
        """Expands one row to n rows, without copies; raises ValueError for another number of rows."""
        if len(self) != 1:
            raise ValueError(f"one row can be expanded; these are {len(self)}.")
        return self._each(lambda tensor: tensor.expand(n, *tensor.shape[1:]))

    def detach(self) -> Conditioning:
        """Without gradients."""
        return self._each(torch.Tensor.detach)

    def with_embeddings(self, embeddings: torch.Tensor) -> Conditioning:
        """The same conditioning with other token embeddings, (n, tokens, width)."""
        return replace(self, embeddings=embeddings)

    def row_digests(self) -> list[str]:
        """sha256 of each row: names, dtypes, shapes and bytes of its tensors. Other rows have no influence."""
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
    """Converts to the input of `Denoiser.predict`: embeds captions, takes a tensor (n, tokens, width) as token
    embeddings, and returns a conditioning unchanged. (`as_prompts` does this for `Denoiser.sample`.)
    """
    if isinstance(prompts, Conditioning):
        return prompts
    if isinstance(prompts, torch.Tensor):
        return Conditioning(prompts)
    return denoiser.embed(list(prompts))
