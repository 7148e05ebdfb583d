"""The paper's grid: statistics of many sets of prompts from one capture, and the masks and edits they locate.

grid = run.grid
grid.statistics                                 # for every subset of every size, captured once
grid.masks(Group.subset("memorized", 10, 0))    # at the sparsity `mask_sparsity`, at every step
grid.smallest()                                 # masks of every subset of the smallest size, by kind of prompts
grid.located(spec)                              # masks at the first steps, by a spec
grid.edit(spec)                                 # their union: the edit
grid.in_model(run.twin)                         # the same prompts in another model
grid.again(seed=1)                              # a few subsets, captured with other options
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
    from .model import Model
    from .run import Run

STATISTICS = Kind("grid")
EMPTY = Kind("empty")
EDITS = Kind("edits")
KINDS: tuple[PromptKind, PromptKind] = ("memorized", "ordinary")


class Grid:
    """Statistics, masks and edits of the prompts of a run in a model.

    Attributes:
        sizes: sizes of the subsets.
        subsets: number of subsets of each size.

    Args:
        model: an unedited model (default: the run's).
        changed: options of `memsub.capture` that differ from the run's.
    """

    def __init__(
        self,
        run: Run,
        model: Model | None = None,
        sizes: list[int] | None = None,
        subsets: int | None = None,
        **changed: Any,
    ):
        grid = run.parameters.grid
        self.run, self.model, self.changed = run, model, changed
        self.sizes = grid.sizes if sizes is None else sizes
        self.subsets = subsets or grid.subsets

    def in_model(self, model: Model) -> Grid:
        """The grid of another model: its subsets of the smallest size, at the steps that edits unite."""
        return Grid(self.run, model, self.sizes[:1], self.subsets, **self.changed | {"first": self._united})

    def again(self, **changed: Any) -> Grid:
        """A few subsets of the smallest size (parameter `captured.subsets`), captured with other options.

        Args:
            changed: options of `memsub.capture`; `first` defaults to the number of steps that edits unite.
        """
        few = min(self.run.parameters.captured.subsets, self.subsets)
        return Grid(self.run, self.model, self.sizes[:1], few, **self.changed | {"first": self._united} | changed)

    @property
    def all_steps(self) -> Grid:
        """The grid at all steps: this grid if all steps were captured, else a few subsets (see `again`)."""
        whole = self.run.parameters.grid_steps == self.run.parameters.capture.steps
        return self if whole else self.again(first=None)

    @property
    def _united(self) -> int:
        return self.run.parameters.edit.steps

    @property
    def pipe(self) -> Pipeline:
        return self.model.pipe if self.model else self.run.pipe

    def _captured(self, kind: Kind, prompts: list[str], groups: dict[str, list[int]] | None = None) -> ActivationStats:
        """`memsub.capture` with the grid's options; computed once."""
        p, pipe, store = self.run.parameters, self.pipe, self.run.store
        first = None if p.grid_steps == p.capture.steps else p.grid_steps
        options = p.capture.model_dump() | {"first": first, "guidance_scale": p.sampling.guidance_scale}
        options |= self.changed
        content = options | {"model": sampler_fingerprint(pipe), "prompts": prompts, "groups": groups}
        checkpoint = store.path(kind, ".partial", **content)
        options |= {"batch_size": p.sampling.batch_size, "checkpoint": checkpoint}
        make = partial(capture, pipe, prompts, groups=groups, **options)
        return store.get(kind, ActivationStats, make, **content)

    @cached_property
    def statistics(self) -> ActivationStats:
        """Statistics of every subset of every size, memorized and ordinary, of all prompts and of the split.

        A grid with fewer sizes or subsets than the parameters captures only their prompts. Groups are labelled by
        `str(Group(...))`.
        """
        data, grid = self.run.data, self.run.parameters.grid
        whole = (self.sizes, self.subsets) == (grid.sizes, grid.subsets)
        prompts: list[str] = []
        groups: dict[str, list[int]] = {}
        for kind in KINDS:
            wanted = [Group.subset(kind, size, i) for size in self.sizes for i in range(self.subsets)]
            wanted = [Group.all(kind), Group.locating(kind)] * whole + wanted
            if whole and kind == "memorized":
                wanted += self.groups_by_kind()
            places = {str(group): data.located_on(group) for group in wanted}
            needed = sorted({place for members in places.values() for place in members})
            row = {place: len(prompts) + i for i, place in enumerate(needed)}
            groups |= {name: [row[place] for place in members] for name, members in places.items()}
            prompts += [data.captions(kind)[place] for place in needed]
        return self._captured(STATISTICS, prompts, groups)

    def null(self, contrast: Contrast = "empty") -> ActivationStats:
        """Statistics of the contrast: the empty prompt (as in the paper), or ordinary prompts."""
        return self._empty if contrast == "empty" else self.statistics.only(str(Group.all("ordinary")))

    @cached_property
    def _empty(self) -> ActivationStats:
        return self._captured(EMPTY, [""])

    def masks(self, group: Group, sparsity: float | None = None, steps: int | None = None) -> WeightMasks:
        """Memorized weights of a group against the empty prompt, at every step.

        Args:
            sparsity: default: the parameter `mask_sparsity`.
            steps: number of first steps (default: all captured steps).
        """
        sparsity, ours = sparsity or self.run.parameters.mask_sparsity, self.statistics.only(str(group), steps)
        return locate(self.pipe, ours, self.null().only(steps=steps), sparsity)

    def smallest(self, sparsity: float | None = None, steps: int | None = None) -> dict[PromptKind, list[WeightMasks]]:
        """The masks of every subset of the smallest size by kind of prompts; arguments as in `masks`."""
        groups = {kind: [Group.subset(kind, self.sizes[0], i) for i in range(self.subsets)] for kind in KINDS}
        return {kind: [self.masks(group, sparsity, steps) for group in sets] for kind, sets in groups.items()}

    def groups_by_kind(self) -> list[Group]:
        """Subsets of memorized prompts of one published kind; empty if the list lacks one of the kinds."""
        grid, seed = self.run.parameters.grid, self.run.parameters.seed
        by_kind = self.run.data.memorized.sets(grid.sizes[0], grid.subsets, seed)
        return [Group.subset(kind, len(each), i) for kind, sets in by_kind.items() for i, each in enumerate(sets)]

    def located(self, spec: EditSpec) -> WeightMasks:
        """Memorized weights by a spec, at its first steps."""
        ours = self.statistics.only(str(spec.located_on), spec.steps)
        return locate(self.pipe, ours, self.null(spec.contrast).only(steps=spec.steps), spec.sparsity)

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
