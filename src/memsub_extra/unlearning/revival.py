"""Revival of zeros: a pruned weight is an exact zero, so an attacker sees where the edit was and can fill the gap.

    hidden = imputed(pipe, edit)                # values completed from the weights that are left
    revived(pipe, hidden)                       # the trusted signs of these, with the largest magnitudes of their rows

After "Roots Beneath the Cut" (Zhang et al., CVPR 2026).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from memsub.models import Pipeline, as_denoiser
from memsub.pruning import Edit, pruned


def imputed(pipe: Pipeline, edit: Edit, *, iterations: int = 100, tolerance: float = 1e-3) -> Edit:
    """The edit with completed values in place of its zeros. These values hide where the edit was.

    In each weight matrix, the entries that the edit does not set are known. Iterated completion (Mazumder et al. 2010)
    fills the others: first by the means of columns, then by reducing all singular values by the smallest one.

    Args:
        iterations: at most this many; a layer stops when its values change by at most `tolerance` of their norm.

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
    """The values of an attacker who sees the positions of the zeros, made from an `imputed` edit.

    Only the signs of the largest completed values are trusted. These values get the largest magnitude that is left in
    their row; the others stay zero.

    Args:
        kept: share of the zeros in each layer whose signs are trusted.

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
    """Yields the name, the weight as a matrix, and the flat positions of each layer in which the edit sets weights."""
    modules = dict(as_denoiser(pipe).network.named_modules())
    for layer, positions in edit.positions.items():
        if len(positions):
            weight = modules[layer].weight.detach().float().flatten(1)
            yield layer, weight, positions.to(weight.device)


def _completed(weight: torch.Tensor, gaps: torch.Tensor, iterations: int, tolerance: float) -> torch.Tensor:
    """Completed values for the flat positions `gaps` of a matrix."""
    weight, known = weight.clone(), torch.ones_like(weight)
    flat, known.view(-1)[gaps] = weight.view(-1), 0
    flat[gaps] = ((weight * known).sum(0) / known.sum(0).clamp_min(1))[gaps % weight.shape[1]]
    for _ in range(iterations):
        before, flat[gaps] = flat[gaps], _shrunk(weight).reshape(-1)[gaps]
        if (flat[gaps] - before).norm() <= tolerance * before.norm():
            break
    return flat[gaps]


def _shrunk(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix after its smallest singular value is subtracted from all of them.

    It uses the eigenvectors of the smaller Gram matrix, because a hundred singular value decompositions of a full-size
    layer would take an hour.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    singular = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
    shrunk = (vectors * (1 - singular[0] / singular)) @ (vectors.T @ wide)
    return shrunk if wide is matrix else shrunk.T
