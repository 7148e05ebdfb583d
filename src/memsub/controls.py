"""Controls of equal density: what would as many weights at random do?

random_masks(masks, seed)       # as many of each row at each step
random_edit(edit, seed)         # as many of each layer, set to zero
"""

from __future__ import annotations

import math

import torch

from .neurons import LayerMask, WeightMasks
from .pruning import Edit


def random_masks(masks: WeightMasks, seed: int = 0) -> WeightMasks:
    """As many weights of each row at each step, chosen at random."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, mask in masks.layers.items():
        (d, f), columns = mask.shape, []
        for counts in mask.counts:
            chosen = torch.rand(d, f, generator=generator).topk(int(counts.max()), dim=1).indices
            chosen[torch.arange(chosen.shape[1]) >= counts[:, None]] = f  # beyond what the row holds
            ascending = chosen.sort(dim=1).values
            columns.append(ascending[ascending < f].to(mask.columns.dtype))
        layers[name] = LayerMask(mask.shape, torch.cat(columns), mask.counts)
    return WeightMasks(layers, masks.provenance | {"random": seed})


def random_edit(edit: Edit, seed: int = 0) -> Edit:
    """As many weights of each layer, chosen at random and set to zero."""
    generator = torch.Generator().manual_seed(seed)
    positions = {
        n: torch.randperm(math.prod(edit.shapes[n]), generator=generator)[: len(p)].sort().values
        for n, p in edit.positions.items()
    }
    return Edit(positions, edit.shapes, {"model": edit.provenance["model"], "random": [edit.provenance, seed]})
