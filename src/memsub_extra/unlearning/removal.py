"""What a removal is.

It makes an `Edit` of a pipeline, which is as before afterwards. It is given the pairs to remove (the forget set) and
ordinary pairs to keep. It is also judged on memorized pairs that it was not given (`memsub_extra.unlearning.audit`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memsub.models import Pipeline, as_denoiser
from memsub.pruning import Edit
from memsub_extra.store import Kind

from .pairs import Pairs

UNFINISHED = Kind("unfinished")
"""Checkpoints of removals."""


@dataclass(frozen=True)
class Removal:
    """A way to take memorized images out of a model, for the registry.

    Attributes:
        changes: what it changes, in words.
        make: (pipe, memorized, ordinary, *, folder, seed, progress, ...) -> Edit. Unfinished work lies in its
            `folder`, and a second call resumes from there.
        source: where it was published.
        options: of `make`.
        objective: the loss of one that trains.
        needs_wording: whether it needs each caption's content in other words (`Pairs.wordings`).
        version: raised when the code makes another edit than before; stored edits belong to it.
    """

    changes: str
    make: Callable[..., Edit]
    source: str
    options: dict[str, Any]
    objective: Callable[..., Any] | None = None
    needs_wording: bool = False
    version: int = 1

    def edit(
        self, pipe: Pipeline, memorized: Pairs, ordinary: Pairs, *, optimizer: str | None = None, **options: Any
    ) -> Edit:
        """Makes the edit; `options` go before the removal's own.

        Args:
            optimizer: of a removal that trains (has an objective), such as "adafactor"; others have none to choose.

        Raises:
            ValueError: images are not of the model's size, a pair is to be removed and kept, or other wordings are
                needed and a caption has none; before anything is computed.
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
