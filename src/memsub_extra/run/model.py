"""A model of an experiment: a pipeline, and the edit that is applied while it is used.

model = Model("pruned", pipe, edit)
with model.applied() as pipe:
    generate(pipe, captions)                # edited; the weights are restored afterwards
model.fingerprint                           # equal for equal weights; stored results belong to it
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from memsub.models import Pipeline, sampler_fingerprint
from memsub.pruning import Edit, pruned


@dataclass(frozen=True, eq=False)
class Model:
    """A pipeline and an edit, with their name in tables.

    Attributes:
        pipe: the unedited pipeline; several models of a run share it.
        edit: new values of some weights; None: no edit.
    """

    name: str
    pipe: Pipeline
    edit: Edit | None = None

    @contextmanager
    def applied(self) -> Iterator[Pipeline]:
        """Within the context the pipeline is edited; then its weights are restored, also after an exception."""
        with pruned(self.pipe, self.edit) as pipe:
            yield pipe

    @property
    def density(self) -> float:
        """Share of the weights in the edit's layers that it sets; 0 without an edit."""
        return self.edit.density if self.edit else 0.0

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that an image depends on except prompt, seed, steps and guidance.

        It includes the content of the edit, so stored results are found without applying the edit.
        """
        whole = sampler_fingerprint(self.pipe)
        if self.edit is None:
            return whole
        return hashlib.sha256(f"{whole} {self.edit.fingerprint}".encode()).hexdigest()
