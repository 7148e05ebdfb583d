"""The computations of the lab, without widgets: edits, images, verdicts, scores and an attack; results are cached.

    lab = Lab(run)
    spec = lab.spec.changed(sparsity=0.1, contrast="ordinary")          # an EditSpec; None is no edit
    lab.edit(spec).save("edit.safetensors")
    images = lab.images(captions, seeds=[0, 1], spec=spec)              # (captions, seeds, height, width, 3)
    lab.verdicts(images[:, 0], captions)                                # a copy of the training image?
    for step in lab.attack(captions[0], spec): ...                      # the embedding attack as it runs

Locating with other settings samples nothing: it reads the first steps of the grid's statistics in the run's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from memsub.controls import random_edit
from memsub.io.images import decode_png
from memsub.measure.exact import exact_p
from memsub.models import Sample
from memsub.neurons import WeightMasks
from memsub.overlap import disjoint_pairs, pairwise_iou
from memsub.pruning import Edit, pruned
from memsub_extra.attacks import EmbeddingAttack
from memsub_extra.mitigations.detection import step_scores
from memsub_extra.run.data import images_folder
from memsub_extra.run.run import Run
from memsub_extra.run.specs import EditSpec, Group

from ..notebooks.rows import gradient_rows

KEEP = 512
"""Largest number of cached results, such as images and edits; the oldest are removed first."""


def label(spec: EditSpec | None) -> str:
    """A spec in words; "unedited" for None."""
    if spec is None:
        return "unedited"
    layers = "" if spec.layers is None else f", {len(spec.layers)} layers"
    return f"{100 * (spec.sparsity or 0):.3g} % against {spec.contrast}, {spec.steps} steps{layers}"


class Lab:
    """The computations on a run. Every result depends only on an `EditSpec` (or None), captions and seeds."""

    def __init__(self, run: Run):
        self.run = run
        self._kept: dict[Any, Any] = {}

    @property
    def spec(self) -> EditSpec:
        """The spec of the run's edit."""
        return self.run.parameters.spec

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
        """Captions to choose from, by kind. Memorized captions of the third that reports come first.

        Among these, captions with a known training image come first; the others get no verdict.
        """
        data = self.run.data
        memorized, table = data.captions("memorized"), data.prompts.table
        by_kind = {
            "memorized, held out": sorted(
                (memorized[i] for i in data.split["report"]), key=lambda caption: caption not in self._references
            ),
            "memorized, locating the edit": [memorized[i] for i in data.split["locate"]],
        }
        others = [kind for kind in table["kind"].unique() if kind not in data.prompts.memorized_kinds]
        return by_kind | {kind: data.prompts.of(kind)[:200] for kind in others}

    @cached_property
    def _references(self) -> dict[str, Any]:
        """Caption to training images (k, height, width, 3), or to PNG bytes of one."""
        data = self.run.data
        table = data.prompts.table
        if "image" in table and "exposures" in table:
            shown = table[table["exposures"] > 0]
            return dict(zip(shown["prompt"], shown["image"], strict=True))
        known = data.training_images if "image" in table or images_folder(data.parameters).is_dir() else {}
        return {data.captions("memorized")[i]: images for i, images in known.items()}

    def _training_images(self, caption: str) -> np.ndarray | None:
        images = self._references.get(caption)
        return np.array(decode_png(images))[None] if isinstance(images, bytes) else images

    def reference(self, caption: str) -> np.ndarray | None:
        """The first training image of a caption, if there is one and it is known: uint8 (height, width, 3)."""
        images = self._training_images(caption)
        return None if images is None else images[0]

    # --- the edit -----------------------------------------------------------------------------------------------

    @property
    def groups(self) -> list[Group]:
        """Sets of memorized prompts that an edit can be located on."""
        data = self.run.data
        subsets = [
            Group.subset("memorized", size, i)
            for size in self.run.parameters.grid.sizes
            for i in range(len(data.members(size)))
        ]
        return [Group.all("memorized"), Group.locating(), *subsets]

    def _masks(self, spec: EditSpec) -> WeightMasks:
        """Memorized weights at the first steps, of all layers."""
        rule = spec.changed(layers=None, random=None, threshold=0.0)
        return self._once(("masks", rule), lambda: self.run.grid.located(rule))

    def edit(self, spec: EditSpec | None) -> Edit | None:
        """The edit of a spec.

        Raises:
            ValueError: a layer's name is unknown.
        """
        if spec is None:
            return None
        rule, masks = spec.changed(layers=None, random=None), self._masks(spec)
        edit = self._once(("edit", rule), lambda: masks.union(spec.steps, spec.threshold))
        edit = edit if spec.layers is None else edit.only(spec.layers)
        return edit if spec.random is None else random_edit(edit, spec.random)

    def density(self, spec: EditSpec | None) -> pd.Series:
        """Share of each layer's weights that the edit sets, by module name."""
        edit = self.edit(spec)
        layers = self.run.denoiser.layers()
        sizes = {name: layer.weight.numel() for name, layer in layers.items()}
        return pd.Series({n: len(edit.positions[n]) / size if edit else 0.0 for n, size in sizes.items()})

    def overlap(self, spec: EditSpec | None, subsets: int = 4) -> dict[str, float]:
        """Overlap of subsets of memorized prompts: mean IoU of subsets without a common prompt, by layer.

        Without a spec, the spec of the run at the parameter `mask_sparsity`.
        """
        spec = spec or self.spec.changed(sparsity=self.run.parameters.mask_sparsity)
        size = self.run.parameters.grid.sizes[0]
        members = self.run.data.members(size)[:subsets]

        def make() -> dict[str, float]:
            groups = [Group.subset("memorized", size, i) for i in range(len(members))]
            masks = [self._masks(spec.changed(located_on=group)) for group in groups]
            pairs = disjoint_pairs(members) or None
            shared = pairwise_iou(masks, pairs=pairs).mean((0, 1))
            return dict(zip(masks[0].layers, shared.tolist(), strict=True))

        return self._once(("overlap", spec.contrast, spec.sparsity, spec.steps, subsets), make)

    # --- what it does -------------------------------------------------------------------------------------------

    @property
    def _sample(self) -> Sample:
        return self.run.scores.sample(self.run.unedited)

    def images(self, captions: Sequence[str], seeds: Sequence[int], spec: EditSpec | None = None) -> np.ndarray:
        """Images of the model under an edit: uint8 (captions, seeds, height, width, 3).

        A seed gives the same noise for all captions and edits: the images are for viewing, not for statistics.
        """
        wanted = [(spec, caption, seed) for caption in captions for seed in seeds]
        missing = [key for key in dict.fromkeys(wanted) if key not in self._kept]
        fresh: dict[Any, np.ndarray] = {}
        if missing:
            with pruned(self.run.pipe, self.edit(spec)):
                sampled = self._sample([caption for _, caption, _ in missing], seeds=[seed for *_, seed in missing])
            fresh = dict(zip(missing, sampled, strict=True))
        images = [fresh[key] if key in fresh else self._kept[key] for key in wanted]
        for key, image in fresh.items():
            self._keep(key, image)
        return np.stack(images).reshape(len(captions), len(seeds), *images[0].shape)

    def verdicts(self, images: np.ndarray, captions: Sequence[str]) -> pd.DataFrame:
        """Whether each image is a copy of its caption's training image: one row per image.

        Returns:
            Columns similarity (of the copy metric), p (of the exact test; NaN without a world) and replicates (the
            run's verdict). All are missing without a training image.
        """
        table = pd.DataFrame({"similarity": np.nan, "p": np.nan, "replicates": pd.NA}, index=range(len(captions)))
        every = {i: self._training_images(caption) for i, caption in enumerate(captions)}
        wanted = {i: images for i, images in every.items() if images is not None}
        if known := list(wanted):
            prompts, references = [captions[i] for i in known], list(wanted.values())
            world = self.run.data.world
            p = exact_p(images[known], prompts, references, world) if world else np.full(len(known), np.nan)
            similarity = self.run.metrics.copy.similarity(images[known], references)
            table.loc[known, ["similarity", "p"]] = np.stack([similarity, p], 1)
            scored = pd.DataFrame({"copy_similarity": similarity, "exact_p": p}, index=known)
            table.loc[known, "replicates"] = self.run.judge.of(scored)
        return table

    def text_magnitude(self, captions: Sequence[str], spec: EditSpec | None = None) -> np.ndarray:
        """Norm of the text's effect on each network call (the detection score of Wen et al.): (captions, calls)."""
        sampling = self.run.parameters.sampling

        def make() -> np.ndarray:
            options: dict[str, Any] = {"seeds": 1, "calls": sampling.steps, "steps": sampling.steps}
            options |= {"guidance_scale": sampling.guidance_scale, "batch_size": sampling.batch_size}
            with pruned(self.run.pipe, self.edit(spec)):
                return step_scores(self.run.pipe, captions, scores=["text magnitude"], **options)["text magnitude"]

        return self._once(("text magnitude", spec, *captions), make)

    def attack(
        self,
        caption: str,
        spec: EditSpec | None = None,
        *,
        iterations: int = 50,
        every: int = 5,
        seed: int = 1000,
    ) -> Iterator[dict[str, Any]]:
        """Runs the embedding attack on a caption's training image, starting from the caption.

        The edit is applied only while an item is computed; between items the pipeline is unedited.

        Yields:
            iteration, image (sampled with a seed that the attack does not use), similarity, p and replicates.

        Raises:
            ValueError: the training image is not known.
        """
        reference = self.reference(caption)
        if reference is None:
            raise ValueError(f"{caption!r} has no training image to attack: choose a memorized caption.")
        run, edit = self.run, self.edit(spec)
        rows = gradient_rows(run.denoiser, run.parameters.sampling.batch_size)
        options = {"noises": run.parameters.embedding_attack.noises, "batch_size": rows}
        attack = EmbeddingAttack(run.pipe, reference[None], run.denoiser.embed([caption]), **options)
        for iteration in range(0, iterations + 1, every):
            with pruned(run.pipe, edit):
                attack.advance(every if iteration else 0, [0])
                image = self._sample(attack.embeddings([0]), seeds=[seed])
            yield {"iteration": iteration, "image": image[0]} | self.verdicts(image, [caption]).loc[0].to_dict()
