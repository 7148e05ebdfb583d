"""Pipelines by name, folder or hub id.

load_pipeline("tiny")                      # the embedded model, no network needed
load_pipeline("tiny-twin")                 # the same, trained alike, but never on a memorized pair
load_pipeline("sd14")                      # CompVis/stable-diffusion-v1-4 from the hub or its cache
load_pipeline("path/to/folder")            # whatever `save_pretrained` wrote
load_pipeline("owner/model")               # any Stable Diffusion on the hub
model_of(pipe).sparsity                    # what is known of a model, whoever loaded it
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..io import distributed
from .known import MODELS, ModelInfo
from .protocol import Pipeline, as_denoiser

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def find_model(name: str | Path) -> ModelInfo:
    """The registry's row of that name or source; of any other folder or hub id one with the paper's settings (sparsity
    1 %, 10 steps).

    Raises:
        ValueError: the name is unknown; close matches are offered.
        FileNotFoundError: the folder is not a diffusers pipeline.
    """
    name = str(name)
    if row := MODELS.get(name) or _of_source(name):
        return row
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(f"{folder} is not a diffusers pipeline: it holds no model_index.json.")
        # What trains models of the embedded model's world lays that world's scorers beside them.
        scorers = any((where / "scorers").is_dir() for where in (folder, folder.parent))
        return ModelInfo(name, name, name, "testbed" if scorers else "published")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return ModelInfo(name, name, name, "published")
    close = difflib.get_close_matches(name.lower(), MODELS, n=2, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"unknown model {name!r}.{hint} Expected one of {', '.join(MODELS)}, an existing folder, or a hub id "
        "'owner/name'."
    )


def model_of(pipe: Pipeline) -> ModelInfo:
    """The registry's row of a loaded pipeline, by where it was loaded from; for others as `find_model`."""
    source = as_denoiser(pipe).source
    return _of_source(source) or ModelInfo(source, source, source, "published")


def _of_source(source: str) -> ModelInfo | None:
    return next((model for model in MODELS.values() if model.source == source), None)


def load_pipeline(
    model: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline, without safety checker, on `device` (default: this process' GPU if there is one).

    Only safetensors are read, and no remote code runs.

    Args:
        model: a name in `MODELS`, a folder written by `save_pretrained`, or a hub id "owner/name".
        dtype: default float32 on a CPU, that of the registry on a GPU.

    Raises:
        ValueError, FileNotFoundError: as `find_model`.
    """
    info = find_model(model)
    from diffusers import StableDiffusionPipeline  # takes seconds to import

    device = torch.device(device or distributed.device())
    dtype = dtype or (torch.float32 if device.type == "cpu" else info.gpu_dtype)
    pipe = StableDiffusionPipeline.from_pretrained(
        info.source, dtype=dtype, use_safetensors=True, safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)  # `generate` shows one bar for all batches
    return pipe.to(device)
