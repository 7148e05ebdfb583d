"""What a removal is.

It makes an `Edit` for a pipeline, and leaves the pipeline unchanged. It gets the pairs to remove (the forget set) and
ordinary pairs to keep. It is also judged on other memorized pairs (`memsub_extra.unlearning.audit`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from memsub.models import Pipeline, as_denoiser
from memsub.pruning import Edit
from memsub_extra.store import Kind

from .pairs import Pairs

UNFINISHED = Kind("unfinished")
"""Checkpoints of removals."""


@dataclass(frozen=True)
class Removal:
    """A method that removes memorized images from a model, as an entry of the registry.

    Attributes:
        changes: what it changes, as text.
        make: (pipe, memorized, ordinary, *, folder, seed, progress, ...) -> Edit. Unfinished work is stored in
            `folder`; a second call resumes there.
        source: where it was published.
        options: default options of `make`.
        objective: makes the training loss; None for removals that do not train.
        needs_wording: whether it needs each caption's content in other words (`Pairs.wordings`).
        version: raise it when the code makes a different edit than before; it is part of the key of stored edits.
    """

    changes: str
    make: Callable[..., Edit]
    source: str
    options: dict[str, Any]
    objective: Callable[..., Any] | None = None
    needs_wording: bool = False
    version: int = 1

    @torch.inference_mode(False)
    @torch.enable_grad()
    def edit(
        self, pipe: Pipeline, memorized: Pairs, ordinary: Pairs, *, optimizer: str | None = None, **options: Any
    ) -> Edit:
        """Makes the edit; `options` override those of the removal.

        Args:
            optimizer: for removals that train (have an objective), such as "adafactor"; others ignore it.

        Raises:
            ValueError: images do not have the model's size, a caption is among both kinds of pairs, or other wordings
                are needed and a caption has none. This is checked before the removal begins.
        """
        _check(memorized, ordinary, as_denoiser(pipe).image_shape)
        if self.needs_wording:
            memorized.other_wording(f"this removal ({self.changes})")
        if optimizer and self.objective:
            options["optimizer"] = optimizer
        return self.make(pipe, memorized, ordinary, **self.options | options)


def _check(memorized: Pairs, ordinary: Pairs, shape: tuple[int, ...]) -> None:
    for name, pairs in {"pairs to remove": memorized, "ordinary pairs": ordinary}.items():
        if pairs.images.shape[1:3] != tuple(shape):
            has, wanted = (" x ".join(map(str, size)) for size in (pairs.images.shape[1:3], shape))
            raise ValueError(f"the images of the {name} have {has} pixels, those of the model {wanted}.")
    if both := set(memorized.captions) & set(ordinary.captions):
        raise ValueError(
            f"{len(both)} captions are both to remove and among the ordinary pairs, such as {min(both)[:60]!r}: they "
            "would be taught again. Take them out of the ordinary pairs."
        )
