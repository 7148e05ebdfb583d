"""A run: the data, artifacts and edits of one set of parameters, and what the notebooks share.

    run = Run.from_notebook(globals())          # second cell of a notebook: reads the parameters cell
    run = Run(Parameters.load("papermill_params/tiny.yaml"))
    run.pipe, run.prompts, run.metrics          # loaded on first use
    run.grid                                    # statistics of all subsets, captured once
    run.masks("memorized", 10, 0)               # memorized weights of subset 0 of ten prompts
    run.edit("memorized 10/0")                  # the edit that these prompts locate
    run.evaluate(edit, captions)                # both sides of it, on memorized prompts that it never saw

The memorized prompts are split in three: an edit that the notebooks report is *located* on the first third, its setting
was *chosen* on the second, and it is *reported* on the third.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from .activations import ActivationStats, capture
from .audit import by_exact_test
from .controls import random_masks
from .denoiser import Denoiser, Pipeline, as_denoiser, sampler_fingerprint
from .distributed import first_on_each_machine
from .evaluation import alignment, score, summary
from .files import image_files, read_images, save_json
from .generation import Sample, generate
from .metrics import Metrics, load_metrics
from .models import Model, find_model, load_pipeline
from .neurons import WeightMasks, locate
from .overlap import pairwise_iou
from .parameters import Contrast, Parameters
from .prompts import Prompts, disjoint_pairs, load_prompts, near_duplicates, subsets, too_long
from .pruning import Edit, pruned
from .recovery import fetch_images, told
from .store import Store, code_version
from .testbed.dataset import decode, training_images

Kind = Literal["memorized", "ordinary"]
RANDOM_SETS = 5
"""Of masks, whose overlap is what chance gives."""
CHUNK = 1024
"""Images in memory at a time where there can be tens of thousands."""


class Run:
    """One set of parameters, its folder, and the model, prompts and metrics it works with."""

    def __init__(self, parameters: Parameters):
        """Raises ValueError or FileNotFoundError for a model that is not there, before anything is loaded."""
        self.model: Model = find_model(parameters.model)
        self.parameters = parameters
        self.folder = Path(parameters.folder)
        self.store = Store(self.folder / "artifacts")
        self.network_rows = 0
        """Latents that the network was called with so far, each half of a guided call for itself: what a notebook
        costs, on whatever machine."""

    @classmethod
    def from_notebook(cls, variables: MutableMapping[str, Any]) -> Run:
        """The run that a notebook's parameters cell (and what papermill injected below it) describes.

        Args:
            variables: `globals()`. See `Parameters.from_notebook`.
        """
        return cls(Parameters.from_notebook(variables))

    # --- model, data, metrics -----------------------------------------------------------------------------------

    @cached_property
    def pipe(self) -> Pipeline:
        return self._counted(load_pipeline(self.parameters.model, dtype=self._dtype))

    @cached_property
    def twin(self) -> Pipeline:
        """The model that was trained alike, but never on a memorized pair; only where the model has one."""
        return self._counted(load_pipeline(self.model.twin, dtype=self._dtype))

    @property
    def _dtype(self) -> torch.dtype | None:
        return getattr(torch, self.parameters.dtype) if self.parameters.dtype else None

    def _counted(self, pipe: Pipeline) -> Pipeline:
        def count(network: torch.nn.Module, args: tuple) -> None:
            self.network_rows += len(args[0])

        as_denoiser(pipe).network.register_forward_pre_hook(count)
        return pipe

    @contextmanager
    def as_twin(self) -> Iterator[None]:
        """Samples and scores from the twin: within it, `pipe` is the twin."""
        own, self.pipe = self.pipe, self.twin
        try:
            yield
        finally:
            self.pipe = own

    @property
    def denoiser(self) -> Denoiser:
        return as_denoiser(self.pipe)

    @cached_property
    def prompts(self) -> Prompts:
        prompts = load_prompts(self.parameters.data.prompts or self.model.prompts)
        return prompts.without_near_duplicates() if self.parameters.data.near_duplicates == "drop" else prompts

    @cached_property
    def metrics(self) -> Metrics:
        names = self.parameters.metrics
        metrics = load_metrics(self.parameters.model, self.denoiser.device, names.copy_, names.prompt, names.more)
        if not self.model.drawn:  # large networks: as many pictures at a time as the model samples
            metrics.copy.batch_size = metrics.prompt.batch_size = self.parameters.sampling.batch_size
        return metrics

    def describe_prompts(self) -> str:
        """How many memorized captions nearly repeat another, and how many captions of the run the tokenizer cuts."""
        memorized, ordinary = self.captions("memorized"), self.captions("ordinary")
        repeats = sum(i is not None for i in near_duplicates(memorized))
        tokenizer = self.denoiser.tokenizer
        cut, limit = too_long(memorized + ordinary, tokenizer), tokenizer.model_max_length
        return (
            f"{repeats} of {len(memorized)} memorized captions nearly repeat an earlier one\n"
            f"{len(cut)} of {len(memorized + ordinary)} captions are longer than {limit} tokens and are cut"
        )

    def captions(self, kind: Kind) -> list[str]:
        """The memorized prompts of this run, or the ordinary ones: equally many.

        Raises:
            ValueError: the model's list holds fewer than the parameter `grid.memorized` asks for.
        """
        found, wanted = getattr(self.prompts, kind), self.parameters.grid.memorized
        if len(found) < wanted:
            raise ValueError(
                f"grid.memorized: {wanted} prompts of each kind were asked for, but only {len(found)} are {kind}."
            )
        return found[:wanted]

    @property
    def images_folder(self) -> Path:
        """Where the training images of published lists are, or will be."""
        return Path(self.parameters.data.images or self.folder / "gt_images")

    @cached_property
    def references(self) -> dict[int, np.ndarray]:
        """Training images of memorized prompts, by the prompt's place in `captions`, as large as the pipeline's images.

        Those of published lists are fetched into the folder `data.images`; most of their addresses are dead, so many
        are missing.

        Raises:
            ValueError: there is none at all; names the folder.
        """
        rows = self.prompts.memorized_rows[: self.parameters.grid.memorized]
        if "image" in rows:
            return dict(enumerate(map(decode, rows["image"])))
        folder = self.images_folder
        with first_on_each_machine():
            if not folder.is_dir():
                print(told(fetch_images(rows, folder)))
        files = {i: image_files(folder / str(index)) for i, index in enumerate(rows["index"])}
        found = {i: read_images(there[:1], self._side)[0] for i, there in files.items() if there}
        if not found:
            raise ValueError(f"{folder} holds no training image of these prompts; expected {folder}/<index>/*.png.")
        return found

    @cached_property
    def corpus(self) -> np.ndarray:
        """All training images that are known: of a drawn world every one, else those of the memorized prompts."""
        return training_images() if self.model.drawn else np.stack(list(self.references.values()))

    @cached_property
    def corpus_features(self) -> np.ndarray:
        """The copy metric's descriptors of `corpus`: (n, dim)."""
        of = {"metric": self.metrics.copy.identity, "images": self.corpus}
        return self.store.arrays("corpus", partial(_descriptors, self.metrics, self.corpus), **of)["features"]

    @property
    def _side(self) -> int:
        return self.denoiser.image_shape[0]

    def real_images(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Pictures the model was not trained on: held-out scenes, or those in the folder `data.real`, by name.

        Raises:
            ValueError: the parameter `data.real` names no folder of pictures.
        """
        if "image" in self.prompts.table:
            return self.prompts.images("heldout", start, stop)
        real = self.parameters.data.real
        files = image_files(Path(real)) if real else []
        if not files:
            raise ValueError(
                f"data.real: a folder of pictures, such as COCO's, is needed for KID and FID; got {real!r}."
            )
        return read_images(files[start:stop], self._side)

    @cached_property
    def real_features(self) -> np.ndarray:
        """The prompt metric's features of all real pictures: (n, dim)."""
        features, starts = [], count(0, CHUNK)
        for start in tqdm(starts, desc="features of real pictures", unit=f"{CHUNK} images", mininterval=2):
            if not len(part := self.real_images(start, start + CHUNK)):
                break
            of = {"metric": self.metrics.prompt.identity, "images": part}
            make = partial(_features, self.metrics, part)
            features.append(self.store.arrays("real", make, **of)["features"])
        return np.concatenate(features)

    # --- which prompts ------------------------------------------------------------------------------------------

    @cached_property
    def split(self) -> dict[str, list[int]]:
        """Places of the memorized prompts that locate an edit, choose its setting, and report what it does: thirds."""
        n = self.parameters.grid.memorized
        order = np.random.default_rng([self.parameters.seed, 3]).permutation(n)
        locating, choosing, reporting = np.array_split(order, 3)
        return {"locate": locating.tolist(), "choose": choosing.tolist(), "report": reporting.tolist()}

    def members(self, size: int) -> list[list[int]]:
        """Subsets of `size` prompts, as indices into `captions`; the same for both kinds."""
        return subsets(self.parameters.grid.memorized, size, self.parameters.grid.subsets, self.parameters.seed)

    def located_on(self, group: str) -> list[int]:
        """Places of the prompts of a group of the grid, in the list of their kind."""
        name = group.partition(" ")[2]
        if name in self.split:
            return self.split[name]
        size, _, subset = name.partition("/")
        return self.members(int(size))[int(subset)]

    def held_out(self, located_on: Collection[int], part: str = "report") -> list[int]:
        """Places of a part's memorized prompts that did not locate an edit and whose training image is known.

        Raises:
            ValueError: fewer than two are left.
        """
        found = [i for i in self.split[part] if i not in set(located_on) and i in self.references]
        if len(found) < 2:
            raise ValueError(
                f"only {len(found)} of the {len(self.split[part])} memorized prompts that {part} are held out and have "
                "a training image: at least two are needed."
            )
        return found

    # --- the method ---------------------------------------------------------------------------------------------

    def captured(
        self, kind: str, prompts: list[str], groups: dict[str, list[int]] | None = None, **changed: Any
    ) -> ActivationStats:
        """`memsub.capture` with the run's options, or with others; computed once."""
        p = self.parameters
        options = p.capture.model_dump() | {"guidance_scale": p.sampling.guidance_scale} | changed
        of = options | {"model": sampler_fingerprint(self.pipe), "prompts": prompts, "groups": groups}
        checkpoint = self.store.path(kind, ".partial", capture, **of)
        options |= {"batch_size": p.sampling.batch_size, "checkpoint": checkpoint}
        make = partial(capture, self.pipe, prompts, groups=groups, **options)
        return self.store.get(kind, ActivationStats, make, **of)

    @cached_property
    def grid(self) -> ActivationStats:
        """Statistics of every subset of every size, memorized and ordinary, and of the split, in one pass.

        Groups are named "memorized all", "ordinary all", "memorized locate", "memorized 10/0", "ordinary 10/0", ...
        """
        n = self.parameters.grid.memorized
        groups: dict[str, list[int]] = {}
        for offset, kind in ((0, "memorized"), (n, "ordinary")):
            groups[f"{kind} all"] = list(range(offset, offset + n))
            groups[f"{kind} locate"] = [offset + j for j in self.split["locate"]]
            for size in self.parameters.grid.sizes:
                for i, chosen in enumerate(self.members(size)):
                    groups[f"{kind} {size}/{i}"] = [offset + j for j in chosen]
        return self.captured("grid", self.captions("memorized") + self.captions("ordinary"), groups)

    def null(self, contrast: Contrast = "empty") -> ActivationStats:
        """What memorized prompts are contrasted with: the empty prompt (the paper's rule), or ordinary prompts."""
        if contrast == "empty":
            return self.captured("empty", [""])
        return self.grid.only("ordinary all")

    def masks(self, kind: Kind, size: int, subset: int) -> WeightMasks:
        """Memorized weights of one subset against the empty prompt, at the sparsity of masks that are shown."""
        group, stats, null = f"{kind} {size}/{subset}", self.grid, self.null()
        make = partial(locate, self.pipe, stats, null, self.parameters.mask_sparsity, group)
        of = {"sparsity": self.parameters.mask_sparsity, "group": group, "stats": stats.prompts, "null": null.prompts}
        return self.store.get("masks", WeightMasks, make, provenance=stats.provenance, **of)

    def overlap(self, kind: Kind, size: int) -> np.ndarray:
        """IoU of the masks of every two subsets of a size that share no prompt: (pairs, steps, layers)."""
        return self.store.arrays("overlap", partial(_overlap, self, kind, size), kind=kind, **self._sets(size))["iou"]

    def overlap_control(self, size: int) -> dict[str, np.ndarray]:
        """As `overlap`: "across", of memorized with ordinary subsets; "random", of masks of equal density."""
        return self.store.arrays("overlap", partial(_overlap_control, self, size), **self._sets(size))

    def _sets(self, size: int) -> dict[str, Any]:
        """What the masks of a size's subsets are a function of."""
        stats, sparsity = self.grid, self.parameters.mask_sparsity
        of: dict[str, Any] = {"members": self.members(size), "sparsity": sparsity, "provenance": stats.provenance}
        return of | {"stats": stats.prompts, "null": self.null().prompts}

    def located(self, group: str, contrast: Contrast, sparsity: float, steps: int) -> WeightMasks:
        """Memorized weights of one group of the grid, at the first steps."""
        ours, theirs = self.grid.only(group, steps), self.null(contrast).only(steps=steps)
        return locate(self.pipe, ours, theirs, sparsity)

    def edit(self, group: str, **changed: Any) -> Edit:
        """The edit located on one group of the grid, by the parameters `edit`, or by others; located once."""
        by = self.parameters.edit.model_dump() | {"sparsity": self.parameters.edit_sparsity} | changed
        stats, null = self.grid, self.null(by["contrast"])
        of = {"group": group, **{key: by[key] for key in ("sparsity", "steps", "threshold")}}
        of |= {"stats": stats.prompts, "null": null.prompts, "provenance": stats.provenance}
        edit = self.store.get("edits", Edit, partial(_united, self, group, by), **of)
        return edit.only(by["layers"]) if by["layers"] else edit

    # --- evaluation ---------------------------------------------------------------------------------------------

    @property
    def sample(self) -> Sample:
        """`generate` with the options of whatever is scored."""
        return partial(generate, self.pipe, progress=False, **self.parameters.sampling.model_dump())

    def drawn(self, prompts: Sequence[str] | torch.Tensor, seeds: Sequence[int]) -> np.ndarray:
        """Pictures of captions, or of embeddings, by the pipeline as its weights are now; sampled once."""
        sampling = self.parameters.sampling.model_dump(exclude={"batch_size"})
        of = {"prompts": prompts, "seeds": list(seeds), "model": sampler_fingerprint(self.pipe), **sampling}
        return self.store.arrays("pictures", partial(_pictures, self.sample, prompts, seeds), **of)["images"]

    def replicated(self, images: np.ndarray, captions: Sequence[str], references: np.ndarray) -> np.ndarray:
        """`audit.by_exact_test` of pictures, bool (n,); computed once.

        Raises:
            ValueError: a caption is none of the drawn world.
        """
        make = partial(_verdicts, images, captions, references)
        of = {"images": images, "captions": list(captions), "references": references}
        return self.store.arrays("exact", make, **of)["replicated"]

    def scored(
        self,
        captions: list[str],
        references: np.ndarray | None = None,
        *,
        seeds: Sequence[int] | None = None,
        sample: Sample | None = None,
        kind: str = "scored",
        **of: Any,
    ) -> pd.DataFrame:
        """`memsub.score` of captions by the pipeline as it is now; computed once, as an artifact of a `kind`."""
        make = partial(score, sample or self.sample, self.metrics, captions, references, seeds=seeds)
        return self.store.table(kind, make, references=references, seeds=seeds, **self._of(captions), **of)

    def scored_memorized(
        self, chosen: Collection[int], sample: Sample | None = None, seeds: Sequence[int] | None = None, **of: Any
    ) -> pd.DataFrame:
        """`memsub.score` of memorized captions by the pipeline as it is now; computed once.

        Args:
            chosen: their places.
            sample: something else than plain sampling, and what it is a function of.
            seeds: each caption is sampled with each; default: once, with a seed of its own. (Of pictures that share
                their noise many replicate or few do: a rate of them has no binomial interval.)
        """
        captions = [self.captions("memorized")[i] for i in chosen]
        references = np.stack([self.references[i] for i in chosen])
        return self.scored(captions, references, seeds=seeds, sample=sample, kind="memorized", **of)

    def scored_never_seen(self, n: int, sample: Sample | None = None, **of: Any) -> pd.DataFrame:
        """`memsub.score` of the first n captions the model never saw, a few in memory at a time; computed once.

        Those that evaluations take are a part of their own, so that whoever takes more shares them.
        """
        captions = self.prompts.of("heldout")[:n]
        first = min(self.parameters.evaluation.captions, len(captions))
        edges = [0, *range(first, len(captions) - 1, CHUNK), len(captions)]  # no part of one caption
        parts = []
        for start, end in tqdm([*pairwise(edges)], desc="sampling never-seen captions", disable=n <= CHUNK):
            some = captions[start:end]
            make = partial(score, _shifted(sample or self.sample, start), self.metrics, some)
            parts.append(self.store.table("never-seen", make, start=start, **self._of(some), **of))
        return pd.concat(parts, ignore_index=True)

    def _of(self, captions: list[str]) -> dict[str, Any]:
        """What scores are a function of."""
        metrics = {
            "copy": [self.metrics.copy.identity, self.metrics.copy.threshold],
            "prompt": self.metrics.prompt.identity,
            "more": {name: code_version(metric) for name, metric in self.metrics.more.items()},
        }
        sampling = self.parameters.sampling.model_dump(exclude={"batch_size"})
        return {"captions": captions, "metrics": metrics, "model": sampler_fingerprint(self.pipe), **sampling}

    def evaluate(self, edit: Edit | None, chosen: Collection[int]) -> dict[str, float]:
        """`memsub.summary` of the edited model (None: the unedited one) on memorized prompts and never-seen ones.

        Returns:
            Its entries, relative_alignment (of never-seen captions, to that of the twin, or where there is none of the
            unedited model) and density.
        """
        n = self.parameters.evaluation.captions
        with pruned(self.pipe, edit):
            found = summary(self.scored_memorized(list(chosen)[:n]), self.scored_never_seen(n))
        relative = found["alignment"] / self.reference_alignment
        return found | {"relative_alignment": relative, "density": edit.density if edit else 0.0}

    @cached_property
    def reference_alignment(self) -> float:
        """Alignment of never-seen captions in the twin, or in the unedited model: what an edit should keep."""
        with self.as_twin() if self.model.twin else nullcontext():
            return alignment(self.scored_never_seen(self.parameters.evaluation.captions))

    def record(self, notebook: str, **values: Any) -> None:
        """Writes what a notebook found into `findings/<notebook>.json`: README, model card and report read it there."""
        save_json(values, self.folder / "findings" / f"{notebook}.json")


def _united(run: Run, group: str, by: dict[str, Any]) -> Edit:
    return run.located(group, by["contrast"], by["sparsity"], by["steps"]).union(by["steps"], by["threshold"])


def _features(metrics: Metrics, images: np.ndarray) -> dict[str, np.ndarray]:
    return {"features": metrics.prompt.image_features(images)}


def _verdicts(images: np.ndarray, captions: Sequence[str], references: np.ndarray) -> dict[str, np.ndarray]:
    return {"replicated": by_exact_test(images, captions, references)}


def _pictures(sample: Sample, prompts: Any, seeds: Sequence[int]) -> dict[str, np.ndarray]:
    return {"images": sample(prompts, seeds=seeds)}


def _subsets(run: Run, kind: Kind, size: int) -> list[WeightMasks]:
    return [run.masks(kind, size, i) for i in range(run.parameters.grid.subsets)]


def _overlap(run: Run, kind: Kind, size: int) -> dict[str, np.ndarray]:
    return {"iou": pairwise_iou(_subsets(run, kind, size), pairs=disjoint_pairs(run.members(size))).numpy()}


def _overlap_control(run: Run, size: int) -> dict[str, np.ndarray]:
    memorized, ordinary = (_subsets(run, kind, size) for kind in ("memorized", "ordinary"))
    random = [random_masks(masks, i) for i, masks in enumerate(tqdm(memorized[:RANDOM_SETS], desc="random masks"))]
    return {"across": pairwise_iou(memorized, ordinary).numpy(), "random": pairwise_iou(random).numpy()}


def _descriptors(metrics: Metrics, images: np.ndarray) -> dict[str, np.ndarray]:
    return {"features": metrics.copy.features(images)}


def _shifted(sample: Sample, start: int) -> Sample:
    """The sample with seeds that go on from `start`: caption i of a long list has seed i."""
    return lambda prompts, *, seeds: sample(prompts, seeds=[start + s for s in seeds])
