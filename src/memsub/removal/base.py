"""What a removal is.

It makes an `Edit` of a pipeline, which is as before afterwards. It is told the pairs to remove and ordinary pairs to
keep; on what it was not told it is judged (`memsub.audit`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..audit import Pairs
from ..denoiser import Pipeline
from ..pruning import Edit
from ..store import code_version


@dataclass(frozen=True)
class Removal:
    """A way to take memorized pictures out of a model, for the registry.

    Attributes:
        changes: what it changes, in words.
        make: (pipe, memorized, ordinary, *, folder, seed, progress, ...) -> Edit; unfinished work lies in its
            `folder`, and a second call goes on from there.
        source: where it was published.
        options: of `make`.
        objective: the loss of one that trains.
    """

    changes: str
    make: Callable[..., Edit]
    source: str
    options: dict[str, Any]
    objective: Callable[..., Any] | None = None

    @property
    def code(self) -> str:
        """Version of all code that the edit is a function of, for keys of what is stored."""
        return code_version(self.objective or self.make)

    def edit(self, pipe: Pipeline, memorized: Pairs, ordinary: Pairs, **options: Any) -> Edit:
        """Makes the edit; `options` go before the removal's own."""
        return self.make(pipe, memorized, ordinary, **self.options | options)
