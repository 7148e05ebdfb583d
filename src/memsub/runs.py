"""A run: validated parameters, a folder of artifacts, and what the notebooks share.

    run = Run.from_notebook(globals())          # second cell of a notebook: checks what papermill injected
    run = Run(Parameters.load("papermill_params/tiny.yaml"))
    run.pipe, run.prompts, run.judges           # loaded on first use
    run.grid                                    # statistics of all subsets, captured once
    run.masks("memorized", 10, 0)               # memorized neurons of subset 0 of ten prompts
    run.table("evaluation", make, ...)          # any table, computed once

An artifact's file name holds a digest of everything it is a function of: a changed parameter, prompt or weight gives
another file, never a stale one. A run that was killed goes on with what is there.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import torch
import yaml
from diffusers import StableDiffusionPipeline
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm.auto import tqdm

from .activations import ActivationStats, capture
from .distributed import first_on_each_machine, is_main, wait
from .downloads import fetch_images
from .evaluation import Draw, evaluate, summary
from .files import image_files, load_table, load_tensors, read_images, save_artifact, save_json, save_table
from .generation import generate
from .metrics import Judges, clip, load_judges, sscd
from .models import fingerprint, load_pipeline, resolve
from .neurons import NeuronMasks, locate
from .prompts import Prompts, load_prompts, near_duplicates, subsets, too_long
from .pruning import Edit, pruned
from .testbed.dataset import decode, training_images

Kind = Literal["memorized", "ordinary"]
CHUNK = 1024
"""Images in memory at a time where there can be tens of thousands."""
Artifact = TypeVar("Artifact", ActivationStats, NeuronMasks, Edit)


class Parameters(BaseModel):
    """Everything a run can be told; the defaults are those of the embedded model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("tiny", description="a name, a folder, or a hub id")
    run: str = Field("../runs/tiny", description="folder of the artifacts")
    near_duplicates: Literal["keep", "drop"] = Field(
        "keep", description="memorized captions that nearly repeat another"
    )
    prompts: str | dict[Literal["memorized", "ordinary", "heldout"], str] | None = Field(
        None, description="a list by name, or files (default: the lists that belong to the model)"
    )
    copy_judge: str | None = Field(None, description="an SSCD by name or path (default: the judge of the model)")
    prompt_judge: str | None = Field(None, description="a CLIP by name or folder (default: the judge of the model)")
    images: str | None = Field(
        None, description="folder of training images, <index>/*.png (default: gt_images in `run`)"
    )
    real: str | None = Field(None, description="folder of pictures for the FID, such as COCO's")
    seed: int = Field(0, description="of the initial noise in capture, and of the subsets")
    steps: int = Field(50, ge=1, description="denoising steps")
    guidance_scale: float = Field(3.0, ge=1)
    cfg_half: Literal["both", "cond"] = "both"
    batch_size: int = Field(60, ge=1, description="prompts at a time")
    memorized: int = Field(100, ge=2, description="memorized prompts to use, and as many ordinary ones")
    subsets: int = Field(10, ge=2, description="subsets of each size")
    sizes: list[int] = Field([10, 20, 30, 40, 50], description="prompts in a subset")
    sparsity: float = Field(0.05, gt=0, le=1, description="of the masks shown in notebooks 02 and 03")
    edit_sparsity: float = Field(0.35, gt=0, le=1, description="of the edit, chosen by the sweep of notebook 04")
    edit_steps: int = Field(10, ge=1, description="tau: the edit unites the masks of the first steps")
    edit_threshold: float = Field(0.0, ge=0, lt=1, description="r: ... memorized at more than r tau of them")
    edit_contrast: Literal["empty", "ordinary"] = "empty"
    edit_layers: list[str] | None = Field(
        None, description="beginnings of the names of the layers to edit (default: all)"
    )
    sweep_sparsity: list[float] = Field([0.1, 0.2, 0.35, 0.5], description="sparsities of the sweep")
    sweep_steps: list[int] = Field([10, 50], description="values of tau of the sweep")
    judge_steps: int = Field(
        16, ge=1, description="denoising steps of the images that judge an edit, a rival, an attack"
    )
    judged: int = Field(30, ge=2, description="captions of each kind that judge an edit")
    fid_images: int = Field(150, ge=2, description="held-out captions of the FID")
    rival_captions: int = Field(20, ge=2, description="notebook 05: memorized captions that compare the rivals")
    rival_never_seen: int = Field(60, ge=2, description="notebook 05: never-seen captions that do")
    rival_targets: list[float] = Field(
        [1.0, 0.7, 0.4], description="notebook 05: targets of the embedding optimization"
    )
    rival_tokens: list[int] = Field([1, 2, 4], description="notebook 05: random tokens added to a prompt")
    rival_deviations: list[float] = Field(
        [0.5, 0.0],
        description="notebook 05: deviations down to which value neurons are silenced (none: without this rival)",
    )
    rival_turns: int = Field(2, ge=1, description="notebook 05: times that the rivals are timed, in turns")
    detection_calls: int = Field(3, ge=1, description="notebook 05: UNet calls that score a caption")
    extraction_captions: int = Field(16, ge=2, description="notebook 05: captions a kind, and a rung, under extraction")
    extraction_images: int = Field(5, ge=2, description="notebook 05: images a caption under extraction")
    extraction_clique: int = Field(4, ge=2, description="notebook 05: near-duplicates that make a claim")
    extraction_distance: float = Field(0.1, gt=0, description="notebook 05: tiled distance of near-duplicates")
    embedding_images: int = Field(4, ge=1, description="notebook 05: images under the embedding attack")
    embedding_iterations: int = Field(50, ge=1, description="notebook 05: steps of the embedding attack")
    seeds: int = Field(2, ge=1, description="notebook 00: draws of a memorized caption")
    never_seen: int = Field(200, ge=2, description="notebook 00: draws of captions that are not in the training set")

    @classmethod
    def checked(cls, given: Mapping[str, Any], source: str = "parameters") -> Parameters:
        """Validated parameters.

        Raises:
            ValueError: an unknown key (the valid ones are listed), or a value out of bounds; names key and source.
        """
        known = list(cls.model_fields)
        if unknown := [key for key in given if key not in known]:
            close = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown key {unknown[0]!r} in {source}.{hint} Valid keys: {', '.join(known)}.")
        try:
            return cls(**given)
        except ValidationError as error:
            told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors())
            raise ValueError(f"{source}: {told}.") from None

    @classmethod
    def load(cls, path: str | Path) -> Parameters:
        """Parameters from a YAML file.

        Raises:
            FileNotFoundError, ValueError: no such file; it is no YAML mapping, or `checked` objects to what it holds.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no parameter file at {path}.")
        try:
            given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no YAML: {error}") from None
        if not isinstance(given, dict):
            raise ValueError(f"{path} must hold a mapping of parameters; it holds {type(given).__name__}.")
        return cls.checked(given, str(path))


class Run:
    """The artifacts of one set of parameters, and the model, prompts and judges they are made with."""

    def __init__(self, parameters: Parameters):
        """Raises ValueError or FileNotFoundError for a model that is not there, before anything is loaded or written."""
        resolve(parameters.model)
        self.parameters = parameters
        self.folder = Path(parameters.run)

    @classmethod
    def from_notebook(cls, variables: Mapping[str, Any]) -> Run:
        """The run that a notebook's parameters cell (and what papermill injected below it) describes.

        Args:
            variables: `globals()`, before anything else is defined: every public variable that holds plain data counts
                as a parameter, so that a misspelt one is found.
        """
        plain = (str, int, float, list, dict, type(None))
        given = {k: v for k, v in variables.items() if isinstance(v, plain) and not k.startswith("_")}
        return cls(
            Parameters.checked({k: v for k, v in given.items() if k not in ("In", "Out", "PAPERMILL_INPUT_PATH")})
        )

    @cached_property
    def pipe(self) -> StableDiffusionPipeline:
        return load_pipeline(self.parameters.model)

    @cached_property
    def prompts(self) -> Prompts:
        prompts = load_prompts(self.parameters.prompts or self.parameters.model)
        return prompts.without_near_duplicates() if self.parameters.near_duplicates == "drop" else prompts

    def describe_prompts(self) -> str:
        """How many memorized captions nearly repeat another, and how many captions of the run the tokenizer cuts."""
        memorized, ordinary = self.captions("memorized"), self.captions("ordinary")
        repeats = sum(i is not None for i in near_duplicates(memorized))
        cut, limit = too_long(memorized + ordinary, self.pipe.tokenizer), self.pipe.tokenizer.model_max_length
        return (
            f"{repeats} of {len(memorized)} memorized captions nearly repeat an earlier one\n"
            f"{len(cut)} of {len(memorized + ordinary)} captions are longer than {limit} tokens and are cut"
        )

    @property
    def draw(self) -> Draw:
        """`generate` with the options of whatever is judged."""
        p = self.parameters
        options = {"steps": p.judge_steps, "guidance_scale": p.guidance_scale, "batch_size": p.batch_size}
        return partial(generate, self.pipe, progress=False, **options)

    @cached_property
    def judges(self) -> Judges:
        p, device = self.parameters, self.pipe.device
        own = None if p.copy_judge and p.prompt_judge else load_judges(p.model, device)
        copy = sscd(p.copy_judge, device, batch_size=p.batch_size) if p.copy_judge else own.copy
        return Judges(copy, clip(p.prompt_judge, device, p.batch_size) if p.prompt_judge else own.prompt)

    @cached_property
    def corpus(self) -> np.ndarray:
        """All training images that are known: of the embedded model every one, of others those of the memorized prompts."""
        return training_images() if self.parameters.model == "tiny" else np.stack(list(self.references.values()))

    def captions(self, kind: Kind) -> list[str]:
        """The memorized prompts of this run, or the ordinary ones: equally many.

        Raises:
            ValueError: the model's list holds fewer than the parameter `memorized` asks for.
        """
        found, wanted = getattr(self.prompts, kind), self.parameters.memorized
        if len(found) < wanted:
            raise ValueError(
                f"memorized: {wanted} prompts of each kind were asked for, but only {len(found)} are {kind}."
            )
        return found[:wanted]

    @cached_property
    def references(self) -> dict[int, np.ndarray]:
        """Training images of memorized prompts, by the prompt's place in `captions`, as large as the pipeline's images.

        Those of published lists are fetched into the folder `images`; most of their addresses are dead, so many are missing.

        Raises:
            ValueError: there is none at all; names the folder.
        """
        rows = self.prompts.memorized_rows[: self.parameters.memorized]
        if "image" in rows:
            return dict(enumerate(map(decode, rows["image"])))
        folder = Path(self.parameters.images or self.folder / "gt_images")
        with first_on_each_machine():
            if not folder.is_dir():
                print("training images:", fetch_images(rows, folder))
        files = {i: image_files(folder / str(index)) for i, index in enumerate(rows["index"])}
        found = {i: read_images(there[:1], self._side)[0] for i, there in files.items() if there}
        if not found:
            raise ValueError(f"{folder} holds no training image of these prompts; expected {folder}/<index>/*.png.")
        return found

    @property
    def _side(self) -> int:
        return self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor

    def real_images(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Pictures the model was not trained on: held-out scenes, or those in the folder `real`, by name.

        Raises:
            ValueError: the parameter `real` names no folder of pictures.
        """
        if "image" in self.prompts.table:
            return self.prompts.images("heldout", start, stop)
        files = image_files(Path(self.parameters.real)) if self.parameters.real else []
        if not files:
            raise ValueError(
                f"real: a folder of pictures for the FID is needed, such as COCO's; got {self.parameters.real!r}."
            )
        return read_images(files[start:stop], self._side)

    @cached_property
    def real_features(self) -> np.ndarray:
        """The prompt judge's features of all real pictures, the reference of the FID: (n, dim)."""
        of = self.parameters.model_dump(include={"prompt_judge", "real"})

        def make() -> dict[str, torch.Tensor]:
            features, starts = [], count(0, CHUNK)
            for start in tqdm(starts, desc="features of real pictures", unit=f"{CHUNK} images", mininterval=2):
                if not len(part := self.real_images(start, start + CHUNK)):
                    break
                features.append(self.judges.prompt.image_features(part))
            return {"features": torch.from_numpy(np.concatenate(features))}

        return self.tensors("real", make, **of)["features"].numpy()

    def unused(self, located_on: Collection[int]) -> list[int]:
        """Places of the memorized prompts that did not locate an edit and whose training image is known: they judge it."""
        return [i for i in range(self.parameters.memorized) if i not in set(located_on) and i in self.references]

    def members(self, size: int) -> list[list[int]]:
        """Subsets of `size` prompts, as indices into `captions`; the same for both kinds."""
        return subsets(self.parameters.memorized, size, self.parameters.subsets, self.parameters.seed)

    # --- artifacts -----------------------------------------------------------------------------------------

    def path(self, name: str, suffix: str, **of: Any) -> Path:
        """Where an artifact lies that is a function of the model and of `of`."""
        key = json.dumps({"model": fingerprint(self.pipe.unet), **of}, sort_keys=True, default=str)
        return self.folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}{suffix}"

    def artifact(self, name: str, kind: type[Artifact], make: Callable[[], Artifact], **of: Any) -> Artifact:
        """Reads the artifact if it is there, else makes and saves it.

        Raises:
            ValueError: the file is truncated; names it.
        """
        path = self.path(name, ".safetensors", **of)
        self._make(path, make, lambda made: made.save(path))
        return kind.load(path)

    def tensors(self, name: str, make: Callable[[], dict[str, torch.Tensor]], **of: Any) -> dict[str, torch.Tensor]:
        """Reads the tensors if they are there, else makes and saves them."""
        path = self.path(name, ".safetensors", **of)
        self._make(path, make, lambda made: save_artifact(made, path, name, {}))
        return load_tensors(path, name)[0]

    def table(self, name: str, make: Callable[[], pd.DataFrame], **of: Any) -> pd.DataFrame:
        """Reads the table if it is there, else makes and saves it."""
        path = self.path(name, ".parquet", **of)
        self._make(path, make, lambda made: save_table(made, path))
        return load_table(path)

    @staticmethod
    def _make(path: Path, make: Callable[[], Any], save: Callable[[Any], None]) -> None:
        """All processes make it together, one saves it."""
        missing = not path.is_file()
        wait()  # until every process has looked
        if missing:
            made = make()
            if is_main():
                save(made)
            wait()

    # --- the method ----------------------------------------------------------------------------------------

    def _capture(self, name: str, prompts: list[str], groups: dict[str, list[int]]) -> ActivationStats:
        p = self.parameters
        options = p.model_dump(include={"steps", "guidance_scale", "seed", "cfg_half"})
        of = options | {"prompts": prompts, "groups": groups}
        partial = self.path(name, ".partial", **of)

        def make() -> ActivationStats:
            return capture(
                self.pipe, prompts, groups=groups, checkpoint=partial, batch_size=p.batch_size, **options
            )  # fmt: skip

        return self.artifact(name, ActivationStats, make, **of)

    @cached_property
    def grid(self) -> ActivationStats:
        """Statistics of every subset of every size, memorized and ordinary, and of both lists whole, in one pass.

        Groups are named "memorized", "ordinary", "memorized 10/0", "ordinary 10/0", ...
        """
        n = self.parameters.memorized
        groups: dict[str, list[int]] = {}
        for offset, kind in ((0, "memorized"), (n, "ordinary")):
            groups[kind] = list(range(offset, offset + n))
            for size in self.parameters.sizes:
                for i, chosen in enumerate(self.members(size)):
                    groups[f"{kind} {size}/{i}"] = [offset + j for j in chosen]
        return self._capture("grid", self.captions("memorized") + self.captions("ordinary"), groups)

    def null(self, contrast: Literal["empty", "ordinary"] = "empty") -> ActivationStats:
        """What memorized prompts are contrasted with: the empty prompt (the paper's rule), or ordinary prompts."""
        if contrast == "empty":
            return self._capture("empty", [""], {"empty": [0]})
        return self.grid.only("ordinary")

    def masks(self, kind: Kind, size: int, subset: int, sparsity: float | None = None) -> NeuronMasks:
        """Neurons of one subset against the empty prompt."""
        sparsity = sparsity or self.parameters.sparsity
        group, stats = f"{kind} {size}/{subset}", self.grid
        return self.artifact(
            "masks",
            NeuronMasks,
            lambda: locate(self.pipe, stats, self.null(), sparsity, group),
            sparsity=sparsity,
            group=group,
            stats=stats.prompts,
            made=stats.made,
        )

    def edit(self, group: str, **changed: Any) -> Edit:
        """The edit located on one group of the grid, by the parameters `edit_*`, or by others given without the prefix."""
        p = self.parameters
        by = {k: getattr(p, f"edit_{k}") for k in ("sparsity", "steps", "threshold", "contrast", "layers")} | changed
        masks = locate(self.pipe, self.grid, self.null(by["contrast"]), by["sparsity"], group)
        edit = masks.union(by["steps"], by["threshold"])
        return edit.only(by["layers"]) if by["layers"] else edit

    def judge(self, edit: Edit | None, located_on: Collection[int]) -> dict[str, float]:
        """`summary` of `evaluate` for the edited model (or the unedited one), on prompts that did not locate the edit.

        Returns:
            Its entries, and kept (alignment of never-seen captions relative to the unedited model) and density.
        """
        unedited = self.unedited_alignment
        with pruned(self.pipe, edit):
            found = summary(self.evaluate(located_on))
        return found | {"kept": found["alignment"] / unedited, "density": edit.density if edit else 0.0}

    @cached_property
    def unedited_alignment(self) -> float:
        """Alignment of never-seen captions in the unedited model: the same whatever located an edit."""
        return summary(self.evaluate(()))["alignment"]

    def evaluate(self, located_on: Collection[int]) -> pd.DataFrame:
        """`memsub.evaluate` of the pipeline as it is now, on memorized prompts that did not locate the edit; computed once.

        Args:
            located_on: places of the prompts that did.
        """
        p = self.parameters
        chosen = self.unused(located_on)[: p.judged]
        options = {"steps": p.judge_steps, "guidance_scale": p.guidance_scale}

        def make() -> pd.DataFrame:
            return evaluate(
                self.draw,
                self.judges,
                [self.captions("memorized")[i] for i in chosen],
                np.stack([self.references[i] for i in chosen]),
                self.prompts.of("heldout")[: p.judged],
            )

        return self.table("evaluation", make, chosen=chosen, judged=p.judged, **options)

    def save_parameters(self) -> None:
        """Writes the parameters into the run folder, for whoever finds it."""
        save_json(self.parameters.model_dump(), self.folder / "parameters.json")
