"""What the lab computes, without widgets: edits, pictures, verdicts, scores and an attack, each kept once it is made.

    lab = Lab(run)
    setting = Setting(sparsity=0.1, steps=10, contrast="empty")
    lab.edit(setting).save("edit.safetensors")
    images = lab.pictures(captions, seeds=[0, 1], setting=setting)      # (captions, seeds, height, width, 3)
    lab.verdicts(images[:, 0], captions)                                # a copy of the training image?
    for step in lab.attack(captions[0], setting): ...                   # the embedding attack as it runs

Locating again samples nothing: the statistics of the grid are in the run's folder, and only the first steps are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ..attacks import EmbeddingAttack
from ..detection import step_scores
from ..exact import LEVEL, exact_p
from ..experiments import LOCATE, gradient_rows
from ..neurons import WeightMasks
from ..overlap import pairwise_iou
from ..parameters import Contrast
from ..prompts import disjoint_pairs
from ..pruning import Edit, pruned
from ..runs import Run
from ..testbed.dataset import decode

KEEP = 512
"""Pictures, edits and curves that are kept: what was shown before is shown again at once."""


@dataclass(frozen=True)
class Setting:
    """An edit as it is set in the lab.

    Attributes:
        sparsity: share of a row that may be memorized; 0: no edit.
        steps: tau, the first steps whose masks are united.
        located_on: a group of the run's grid: "memorized locate", "memorized 10/0", ...
        layers: names of the layers that are edited; None: all.
    """

    sparsity: float
    steps: int = 10
    contrast: Contrast = "empty"
    located_on: str = LOCATE
    layers: tuple[str, ...] | None = None

    def __str__(self) -> str:
        if not self.sparsity:
            return "unedited"
        some = "" if self.layers is None else f", {len(self.layers)} layers"
        return f"{100 * self.sparsity:.3g} % against {self.contrast}, {self.steps} steps{some}"


UNEDITED = Setting(0.0)


class Lab:
    """A run to play with. Everything that is shown is a function of a `Setting`, captions and seeds."""

    def __init__(self, run: Run):
        self.run = run
        self._kept: dict[Any, Any] = {}

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        return self._kept[key] if key in self._kept else self._keep(key, make())

    def _keep(self, key: Any, made: Any) -> Any:
        while len(self._kept) >= KEEP:
            del self._kept[next(iter(self._kept))]  # the oldest
        self._kept[key] = made
        return made

    # --- captions -----------------------------------------------------------------------------------------------

    @cached_property
    def captions(self) -> dict[str, list[str]]:
        """Captions to choose from, by kind: memorized ones that did not locate the edit first."""
        memorized, table = self.run.captions("memorized"), self.run.prompts.table
        found = {
            "memorized, held out": [memorized[i] for i in self.run.split["report"]],
            "memorized, locating the edit": [memorized[i] for i in self.run.split["locate"]],
        }
        others = [kind for kind in table["kind"].unique() if kind not in self.run.prompts.memorized_kinds]
        return found | {kind: self.run.prompts.of(kind)[:200] for kind in others}

    @cached_property
    def _references(self) -> dict[str, Any]:
        run = self.run
        if not run.model.drawn:
            known = run.references if run.images_folder.is_dir() else {}
            return {run.captions("memorized")[i]: image for i, image in known.items()}
        shown = run.prompts.table[run.prompts.table["exposures"] > 0]
        return dict(zip(shown["prompt"], shown["image"], strict=True))

    def reference(self, caption: str) -> np.ndarray | None:
        """The training image of a caption, if there is one and it is known: uint8 (height, width, 3)."""
        found = self._references.get(caption)
        return np.array(decode(found)) if isinstance(found, bytes) else found

    # --- the edit -----------------------------------------------------------------------------------------------

    @property
    def groups(self) -> list[str]:
        """Sets of memorized prompts that an edit can be located on."""
        return [name for name in self.run.grid.counts if name.startswith("memorized")]

    def _masks(self, group: str, contrast: Contrast, sparsity: float, steps: int) -> WeightMasks:
        of = (group, contrast, sparsity, steps)
        return self._once(("masks", *of), lambda: self.run.located(*of))

    def edit(self, setting: Setting) -> Edit | None:
        """The edit of a setting; None if it is none.

        Raises:
            ValueError: the sparsity is not in [0, 1], or a layer's name is unknown.
        """
        if not setting.sparsity:
            return None
        masks = self._masks(setting.located_on, setting.contrast, setting.sparsity, setting.steps)
        edit = self._once(("edit", replace(setting, layers=None)), lambda: masks.union(setting.steps))
        return edit if setting.layers is None else edit.only(setting.layers)

    def density(self, setting: Setting) -> pd.Series:
        """Share of each layer's weights that the edit sets, by name."""
        edit = self.edit(setting)
        layers = self.run.denoiser.layers()
        sizes = {name: layer.weight.numel() for name, layer in layers.items()}
        return pd.Series({n: len(edit.positions[n]) / size if edit else 0.0 for n, size in sizes.items()})

    def overlap(self, setting: Setting, subsets: int = 4) -> dict[str, float]:
        """How much subsets of memorized prompts share: mean IoU of those without a common prompt, by layer."""
        size = self.run.parameters.grid.sizes[0]
        members = self.run.members(size)[:subsets]
        sparsity = setting.sparsity or self.run.parameters.mask_sparsity

        def make() -> dict[str, float]:
            groups = [f"memorized {size}/{i}" for i in range(len(members))]
            masks = [self._masks(group, setting.contrast, sparsity, setting.steps) for group in groups]
            pairs = disjoint_pairs(members) or None
            shared = pairwise_iou(masks, pairs=pairs).mean((0, 1))
            return dict(zip(masks[0].layers, shared.tolist(), strict=True))

        return self._once(("overlap", setting.contrast, sparsity, setting.steps, subsets), make)

    # --- what it does -------------------------------------------------------------------------------------------

    def pictures(self, captions: Sequence[str], seeds: Sequence[int], setting: Setting = UNEDITED) -> np.ndarray:
        """What the model draws under an edit: uint8 (captions, seeds, height, width, 3)."""
        setting = setting if setting.sparsity else UNEDITED
        wanted = [(setting, caption, seed) for caption in captions for seed in seeds]
        missing = [key for key in dict.fromkeys(wanted) if key not in self._kept]
        found = {}
        if missing:
            with pruned(self.run.pipe, self.edit(setting)):
                drawn = self.run.sample([c for _, c, _ in missing], seeds=[seed for *_, seed in missing])
            found = dict(zip(missing, drawn, strict=True))
        images = [found[key] if key in found else self._kept[key] for key in wanted]
        for key, image in found.items():
            self._keep(key, image)
        return np.stack(images).reshape(len(captions), len(seeds), *images[0].shape)

    def verdicts(self, images: np.ndarray, captions: Sequence[str]) -> pd.DataFrame:
        """Is each picture a copy of its caption's training image? A row a picture.

        Returns:
            Columns similarity (of the copy metric), p (of the exact test; NaN where the world cannot be drawn) and
            replicates (by the exact test, else by the metric's threshold); all missing without a training image.
        """
        table = pd.DataFrame({"similarity": np.nan, "p": np.nan, "replicates": pd.NA}, index=range(len(captions)))
        wanted = {i: image for i, caption in enumerate(captions) if (image := self.reference(caption)) is not None}
        if known := list(wanted):
            copy, some = self.run.metrics.copy, [captions[i] for i in known]
            references = np.stack(list(wanted.values()))
            similarity = copy.similarity(images[known], references)
            p = exact_p(images[known], some, references) if self.run.model.drawn else np.full(len(known), np.nan)
            table.loc[known, ["similarity", "p"]] = np.stack([similarity, p], 1)
            table.loc[known, "replicates"] = p <= LEVEL if self.run.model.drawn else similarity > copy.threshold
        return table

    def text_magnitude(self, captions: Sequence[str], setting: Setting = UNEDITED) -> np.ndarray:
        """How far the text pushes each step of sampling (the detection score of Wen et al.): (captions, calls)."""
        sampling = self.run.parameters.sampling

        def make() -> np.ndarray:
            options: dict[str, Any] = {"seeds": 1, "calls": sampling.steps, "steps": sampling.steps}
            options |= {"guidance_scale": sampling.guidance_scale, "batch_size": sampling.batch_size}
            with pruned(self.run.pipe, self.edit(setting)):
                return step_scores(self.run.pipe, captions, scores=["text magnitude"], **options)["text magnitude"]

        return self._once(("text magnitude", setting, *captions), make)

    def attack(
        self, caption: str, setting: Setting = UNEDITED, *, iterations: int = 50, every: int = 5, seed: int = 1000
    ) -> Iterator[dict[str, Any]]:
        """The embedding attack on a caption's training image, from the caption on, as it runs.

        The edit is in place only while an item is computed: between two of them the pipeline is as it was.

        Yields:
            iteration, image (drawn with a seed that the attack does not use), similarity, p and replicates.

        Raises:
            ValueError: the training image is not known.
        """
        reference = self.reference(caption)
        if reference is None:
            raise ValueError(f"{caption!r} has no training image to attack: choose a memorized caption.")
        run, edit = self.run, self.edit(setting)
        noises = run.parameters.embedding_attack.noises
        options = {"noises": noises, "batch_size": gradient_rows(run.denoiser)}
        attack = EmbeddingAttack(run.pipe, reference[None], run.denoiser.embed([caption]), **options)
        for iteration in range(0, iterations + 1, every):
            with pruned(run.pipe, edit):
                attack.advance(every if iteration else 0, [0])
                image = run.sample(attack.embeddings([0]), seeds=[seed])
            yield {"iteration": iteration, "image": image[0]} | self.verdicts(image, [caption]).loc[0].to_dict()
