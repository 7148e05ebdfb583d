"""The paper's grid: statistics of many sets of prompts from one pass, and the masks and edits that they locate.

grid = run.grid
grid.statistics                             # of every subset of every size, captured once
grid.masks(Group.subset("memorized", 10, 0))    # at every step, at the sparsity of masks that are shown
grid.located(spec)                          # at the first steps, by a spec
grid.edit(spec)                             # ... united: the edit
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from memsub.activations import ActivationStats, capture
from memsub.controls import random_edit
from memsub.models import Pipeline, sampler_fingerprint
from memsub.neurons import WeightMasks, locate
from memsub.pruning import Edit
from memsub_extra.store import Kind

from .specs import Contrast, EditSpec, Group
from .specs import Kind as PromptKind

if TYPE_CHECKING:
    from .run import Run

STATISTICS = Kind("grid")
EMPTY = Kind("empty")
MASKS = Kind("masks")
EDITS = Kind("edits")


class Grid:
    """What the prompts of a run locate."""

    def __init__(self, run: Run):
        self.run = run

    def captured(
        self,
        kind: Kind,
        prompts: list[str],
        groups: dict[str, list[int]] | None = None,
        pipe: Pipeline | None = None,
        **changed: Any,
    ) -> ActivationStats:
        """`memsub.capture` with the run's options, or with others; computed once.

        Args:
            pipe: default the run's.
        """
        p, pipe, store = self.run.parameters, pipe or self.run.pipe, self.run.store
        options = p.capture.model_dump() | {"guidance_scale": p.sampling.guidance_scale} | changed
        content = options | {"model": sampler_fingerprint(pipe), "prompts": prompts, "groups": groups}
        checkpoint = store.path(kind, ".partial", **content)
        options |= {"batch_size": p.sampling.batch_size, "checkpoint": checkpoint}
        make = partial(capture, pipe, prompts, groups=groups, **options)
        return store.get(kind, ActivationStats, make, **content)

    @cached_property
    def statistics(self) -> ActivationStats:
        """Of every subset of every size, memorized and ordinary, and of the split, from one pass.

        Its groups are labelled by `str(Group(...))`.
        """
        data, grid = self.run.data, self.run.parameters.grid
        groups: dict[str, list[int]] = {}
        kinds: tuple[PromptKind, PromptKind] = ("memorized", "ordinary")
        for offset, kind in zip((0, grid.memorized), kinds, strict=True):
            wanted = [Group.all(kind), Group.locating(kind)]
            wanted += [Group.subset(kind, size, i) for size in grid.sizes for i in range(len(data.members(size)))]
            groups |= {str(group): [offset + place for place in data.located_on(group)] for group in wanted}
        return self.captured(STATISTICS, data.captions("memorized") + data.captions("ordinary"), groups)

    def null(self, contrast: Contrast = "empty") -> ActivationStats:
        """What prompts are contrasted with: the empty prompt (the paper's rule), or ordinary prompts."""
        if contrast == "empty":
            return self.captured(EMPTY, [""])
        return self.statistics.only(str(Group.all("ordinary")))

    def masks(self, group: Group) -> WeightMasks:
        """Memorized weights of a group against the empty prompt, at every step, at the sparsity of shown masks."""
        statistics, null, sparsity = self.statistics, self.null(), self.run.parameters.mask_sparsity
        make = partial(locate, self.run.pipe, statistics, null, sparsity, str(group))
        content = {"sparsity": sparsity, "group": str(group), "provenance": statistics.provenance}
        prompts = {"stats": statistics.prompts, "null": null.prompts}
        return self.run.store.get(MASKS, WeightMasks, make, **content, **prompts)

    def located(self, spec: EditSpec) -> WeightMasks:
        """Memorized weights by a spec, at its first steps."""
        ours = self.statistics.only(str(spec.located_on), spec.steps)
        return locate(self.run.pipe, ours, self.null(spec.contrast).only(steps=spec.steps), spec.sparsity)

    def edit(self, spec: EditSpec | None = None) -> Edit:
        """The edit of a spec (default: that of the parameters); located once."""
        spec = spec or self.run.parameters.spec
        statistics, null = self.statistics, self.null(spec.contrast)
        content: dict[str, Any] = {"group": str(spec.located_on), "provenance": statistics.provenance}
        content |= {"sparsity": spec.sparsity, "steps": spec.steps, "threshold": spec.threshold}
        content |= {"stats": statistics.prompts, "null": null.prompts}
        edit = self.run.store.get(EDITS, Edit, lambda: self.located(spec).union(spec.steps, spec.threshold), **content)
        edit = edit.only(spec.layers) if spec.layers else edit
        return edit if spec.random is None else random_edit(edit, spec.random)
