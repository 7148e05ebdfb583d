"""The hardware that a time was measured on, peak memory, and decoding images one by one to keep it low."""

from __future__ import annotations

import resource
import sys

import torch

from memsub.models import Pipeline


def hardware(device: torch.device) -> str:
    """The GPU's name, or the number of PyTorch's CPU threads, as "2 threads"."""
    threads = torch.get_num_threads()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} thread{'s' * (threads > 1)}"


def peak_gigabytes() -> float:
    """Peak memory so far: of tensors on the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def decode_one_by_one(pipe: Pipeline) -> None:
    """Makes the autoencoder decode a batch image by image, if it can. At 512 pixels, decoding a whole batch determines
    the peak memory of sampling, and takes a fiftieth of its time."""
    autoencoder = getattr(pipe, "vae", None)
    if autoencoder is not None and hasattr(autoencoder, "enable_slicing"):
        autoencoder.enable_slicing()
