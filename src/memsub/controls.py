"""Density-matched controls: the same numbers of weights, chosen at random.

>>> masks = locate(pipe, stats, null, sparsity=0.1)
>>> random_masks(masks, seed=1).density().equal(masks.density())        # as many in each row at each step
True
>>> edit = masks.union(steps=3)
>>> random_edit(edit, seed=1).density == edit.density                   # as many in each layer, set to zero
True
"""

from __future__ import annotations

import math

import torch

from .neurons import LayerMask, WeightMasks
from .pruning import Edit


def random_masks(masks: WeightMasks, seed: int = 0) -> WeightMasks:
    """Density-matched random masks: as many weights of each row at each step. Equal seeds give equal masks."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, mask in masks.layers.items():
        (d, f), columns = mask.shape, []
        for counts in mask.counts:
            chosen = torch.rand(d, f, generator=generator, device="cpu").topk(int(counts.max()), dim=1).indices
            beyond = torch.arange(chosen.shape[1], device="cpu") >= counts[:, None]
            chosen[beyond] = f  # this row holds fewer weights: no column
            ascending = chosen.sort(dim=1).values
            columns.append(ascending[ascending < f].to(mask.columns.dtype))
        layers[name] = LayerMask(mask.shape, torch.cat(columns), mask.counts)
    return WeightMasks(layers, masks.provenance | {"random": seed})


def random_edit(edit: Edit, seed: int = 0) -> Edit:
    """A density-matched random edit: sets as many weights of each layer to zero. Equal seeds give equal edits."""
    generator = torch.Generator().manual_seed(seed)
    positions = {
        n: torch.randperm(math.prod(edit.shapes[n]), generator=generator, device="cpu")[: len(p)].sort().values
        for n, p in edit.positions.items()
    }
    return Edit(positions, edit.shapes, {"model": edit.provenance["model"], "random": [edit.provenance, seed]})
