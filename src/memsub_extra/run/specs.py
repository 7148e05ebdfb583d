"""Specifications of edits, as values: the prompts that locate an edit, and the rule.

Group.subset("memorized", 10, 0)            # the first subset of ten memorized prompts
Group.locating()                            # the third of the memorized prompts that locates reported edits
spec = EditSpec(sparsity=0.4)               # METHOD's edit, located on that third
spec.changed(steps=5, contrast="ordinary")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["memorized", "ordinary"]
MemorizedKind = Literal["verbatim", "template"]
Contrast = Literal["empty", "ordinary"]


@dataclass(frozen=True)
class Group:
    """A set of prompts of the grid.

    Attributes:
        kind: kind of the prompts; subsets may have memorized prompts of one published kind.
        part: all prompts, those that locate reported edits, or one subset.
        size, index: for a subset: its number of prompts, and its number among the subsets of this size.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    kind: Kind | MemorizedKind
    part: Literal["all", "locate", "subset"] = "all"
    size: int = 0
    index: int = 0

    @classmethod
    def all(cls, kind: Kind) -> Group:
        """All prompts of a kind."""
        return cls(kind)

    @classmethod
    def locating(cls, kind: Kind = "memorized") -> Group:
        """The third of the prompts that locates the edits that notebooks report."""
        return cls(kind, "locate")

    @classmethod
    def subset(cls, kind: Kind | MemorizedKind, size: int, index: int) -> Group:
        """Subset number `index` of the subsets with `size` prompts."""
        return cls(kind, "subset", size, index)

    def __str__(self) -> str:
        """The label of the group in the grid's statistics."""
        return f"{self.kind} {self.size}/{self.index}" if self.part == "subset" else f"{self.kind} {self.part}"


class Part(BaseModel):
    """A group of parameters: unknown keys are errors, numbers are finite, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EditSpec(Part):
    """How an edit is made: by the paper's rule (METHOD, steps 4 and 7), at the sparsity recommended for the model."""

    sparsity: float | None = Field(None, gt=0, le=1, description="share of a row (default: recommended for the model)")
    steps: int = Field(10, ge=1, description="tau: unites the masks of the first steps")
    threshold: float = Field(0.0, ge=0, lt=1, description="r: ... memorized at more than r tau of them")
    contrast: Contrast = Field("empty", description="against the empty prompt, as the paper does, or ordinary prompts")
    layers: tuple[str, ...] | None = Field(None, description="beginnings of names of layers to edit (default: all)")
    located_on: Group = Field(Group.locating(), description="the prompts that locate it")
    random: int | None = Field(None, ge=0, description="a seed: density-matched random weights of each layer instead")

    def changed(self, **fields: Any) -> EditSpec:
        """A copy with some fields changed; raises ValueError for a value out of bounds."""
        return EditSpec(**(self.__dict__ | fields))
