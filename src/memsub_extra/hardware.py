"""What computes, for what is timed."""

from __future__ import annotations

import torch


def hardware(device: torch.device) -> str:
    """The GPU's name, or how many threads of the CPU."""
    threads = torch.get_num_threads()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} thread{'s' * (threads > 1)}"
