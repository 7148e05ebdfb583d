"""Reads the parts of statistics, masks and edits from files that memsub wrote, or a stranger.

sums, counts, provenance, prompts = statistics_parts("stats.safetensors")      # of `ActivationStats`
layers, provenance = mask_parts("masks.safetensors")                           # of `WeightMasks`
parts = edit_parts("edit.safetensors")                                         # of `Edit`

Nothing in a file is trusted: sizes, types and names are checked before anything is allocated by them. All functions
raise FileNotFoundError for a missing file, and ValueError, naming the file, for one that is no such artifact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .files import as_written, load_tensors, number_of_weights, printable


def statistics_parts(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, int], dict, list[str]]:
    """Sums, counts, provenance and prompts of an `ActivationStats`."""
    tensors, about = load_tensors(path, "ActivationStats")
    with as_written(path, "ActivationStats"):
        sums = {layer: tensors[layer] for layer in about["provenance"]["layers"]}  # a file keeps no order
        counts, axes = about["counts"], {s.shape[:2] for s in sums.values()}
        if {type(n) for n in counts.values()} != {int} or min(counts.values()) < 1 or len(axes) != 1:
            raise ValueError("its groups need a count each, and its layers the same groups and steps.")
        if any(s.dtype != torch.float32 or s.ndim != 3 or len(s) != len(counts) for s in sums.values()):
            raise ValueError("its sums must be float32 of shape (groups, steps, neurons).")
        return sums, counts, about["provenance"], [str(digest) for digest in about["prompts"]]


def mask_parts(path: str | Path) -> tuple[dict[str, tuple[tuple[int, int], torch.Tensor, torch.Tensor]], dict]:
    """Shape, columns and counts of each layer of a `WeightMasks`, and its provenance."""
    tensors, about = load_tensors(path, "WeightMasks")
    with as_written(path, "WeightMasks"):
        layers = {
            name: ((int(shape[0]), int(shape[1])), tensors[f"{name}.columns"], tensors[f"{name}.counts"])
            for name, shape in about["shapes"].items()
        }
        steps = {len(counts) for _, _, counts in layers.values()}
        for name, ((d, f), columns, counts) in layers.items():
            if not (
                columns.dtype in (torch.int16, torch.int32)
                and (counts.dtype, counts.shape) == (torch.int32, (min(steps), d))
                and len(steps) == 1
                and columns.shape == (int(counts.clamp(0, f).sum()),) == (int(counts.sum()),)
                and not ((columns < 0) | (columns >= f)).any()
            ):
                raise ValueError(f"layer {name[:80]!r}: its columns and counts are not those of a mask {d} x {f}.")
        return layers, {**about["provenance"]}


def edit_parts(path: str | Path) -> dict[str, Any]:
    """The arguments of an `Edit`: positions, shapes, provenance, values. The caller checks positions and values."""
    tensors, about = load_tensors(path, "Edit")
    shapes, whole, provenance = about.get("shapes"), about.get("whole", []), about.get("provenance")
    if not (isinstance(shapes, dict) and isinstance(whole, list) and isinstance(provenance, dict)):
        raise ValueError(f"{path} is no edit as memsub writes it: shapes, whole or provenance is missing.")
    if not isinstance(provenance.get("model"), str):
        raise ValueError(f"{path} does not say which model it belongs to.")
    with as_written(path, "edit"):
        sizes, entire = {layer: number_of_weights(layer, shape) for layer, shape in shapes.items()}, set(whole)
        for layer in sizes.keys() - entire - tensors.keys():
            raise ValueError(f"layer {printable(layer)} of this edit: its positions are missing.")
        for layer in (entire | {name.removesuffix(".values") for name in tensors}) - sizes.keys():
            raise ValueError(f"layer {printable(layer)} of this edit: its shape is missing.")
        # A whole layer is one word in the file and all its positions in memory. (SDXL has 4 x 10^8 such weights.)
        if (most := sum(sizes[layer] for layer in entire)) > 2**29:
            raise ValueError(f"it sets {most:,} weights of whole layers, more than any network has there.")
        every = {layer: torch.arange(sizes[layer], dtype=torch.int32, device="cpu") for layer in entire}
        return {
            "positions": {layer: (every if layer in entire else tensors)[layer] for layer in sizes},
            "shapes": {layer: tuple(shape) for layer, shape in shapes.items()},
            "provenance": provenance,
            "values": {layer: tensors[f"{layer}.values"] for layer in sizes if f"{layer}.values" in tensors},
        }
