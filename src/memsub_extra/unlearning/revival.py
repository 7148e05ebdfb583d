"""Revival of zeros: a pruned weight is an exact zero, so an attacker sees where the edit was and can fill the gap.

    hidden = imputed(pipe, edit)                # values completed from what is left around the zeros
    revived(pipe, hidden)                       # their trusted signs, with the largest magnitudes of their rows

After "Roots Beneath the Cut" (Zhang et al., CVPR 2026).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from memsub.models import Pipeline, as_denoiser
from memsub.pruning import Edit, pruned


def imputed(pipe: Pipeline, edit: Edit, *, iterations: int = 100, tolerance: float = 1e-3) -> Edit:
    """The edit with other values where it has zeros, completed from what is left: they hide where the edit was.

    Of each weight matrix the entries that the edit does not set are known. The gaps are filled by iterated completion
    (Mazumder et al. 2010): the means of the columns at first, then singular values less the smallest one.

    Args:
        iterations: at most; a layer ends when its values change by less than `tolerance` of their norm.

    Raises:
        ValueError: the edit belongs to another model.
    """
    values = {}
    with pruned(pipe, edit):
        for layer, weight, gaps in _with_gaps(pipe, edit):
            values[layer] = _completed(weight, gaps, iterations, tolerance).half().cpu()
    provenance = {"model": edit.provenance["model"], "imputed": [edit.provenance, iterations, tolerance]}
    return Edit(edit.positions, edit.shapes, provenance, values)


def revived(pipe: Pipeline, edit: Edit, *, kept: float = 0.6) -> Edit:
    """An `imputed` edit as an attacker would have it, who sees where the zeros lay.

    Of the completed values only the signs of the largest are trusted: they get the largest magnitude that is left in
    their row. The others stay zero.

    Args:
        kept: share of the gaps whose signs are trusted.

    Raises:
        ValueError: the edit belongs to another model.
    """
    values = {}
    with pruned(pipe, Edit(edit.positions, edit.shapes, edit.provenance)):
        for layer, weight, gaps in _with_gaps(pipe, edit):
            completed = edit.values[layer].to(weight)
            trusted = completed.abs() >= completed.abs().quantile(1 - kept)
            largest = weight.abs().amax(1)[gaps // weight.shape[1]]
            values[layer] = (trusted * completed.sign() * largest).half().cpu()
    provenance = {"model": edit.provenance["model"], "revived": [edit.provenance, kept]}
    return Edit(edit.positions, edit.shapes, provenance, values)


def _with_gaps(pipe: Pipeline, edit: Edit) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Layers in which the edit sets a weight: their names, weights as matrices, and flat positions."""
    modules = dict(as_denoiser(pipe).network.named_modules())
    for layer, positions in edit.positions.items():
        if len(positions):
            weight = modules[layer].weight.detach().float().flatten(1)
            yield layer, weight, positions.to(weight.device)


def _completed(weight: torch.Tensor, gaps: torch.Tensor, iterations: int, tolerance: float) -> torch.Tensor:
    """Values for the flat positions `gaps` of a matrix."""
    weight, known = weight.clone(), torch.ones_like(weight)
    flat, known.view(-1)[gaps] = weight.view(-1), 0
    flat[gaps] = ((weight * known).sum(0) / known.sum(0).clamp_min(1))[gaps % weight.shape[1]]
    for _ in range(iterations):
        before, flat[gaps] = flat[gaps], _shrunk(weight).reshape(-1)[gaps]
        if (flat[gaps] - before).norm() <= tolerance * before.norm():
            break
    return flat[gaps]


def _shrunk(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with its singular values less the smallest one.

    By the eigenvectors of its smaller Gram matrix: of a full-size layer a hundred singular value decompositions would
    take an hour.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    singular = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
    shrunk = (vectors * (1 - singular[0] / singular)) @ (vectors.T @ wide)
    return shrunk if wide is matrix else shrunk.T
