"""`memsub.memorized` at many steps, without sorting every row of every weight at every step.

    >>> weight, norms, null_norms = torch.randn(8, 64), torch.rand(50, 64), torch.rand(50, 64)
    >>> columns, counts = memorized_at_steps(weight, norms, null_norms, budget=3)
    >>> memorized(weight, norms[0], null_norms[0], sparsity=3 / 64).sum(1).tolist() == counts[0].tolist()
    True

The rule selects the columns j of the k largest importances S_ij(t) = |W_ij| a_j(t) of row i of W, at every step t.
Norms change slowly from step to step, so most columns can be ruled out for a block of steps at once. Take any k columns
K of row i; the k largest of the step before are the best choice. A column j can be among the k largest at some step of
the block only if

    |W_ij| max_t a_j(t)  >=  min over q in K of  |W_iq| min_t a_q(t)
    `-- largest importance of j             `-- smallest importance of any of the k columns

Otherwise all k columns exceed j at every step of the block. The remaining columns are the candidates, and the exact
selection is made among them. The inequality also holds for rounded products, because rounding is monotonic. It admits
equality, so that the leftmost of equal importances is still selected first.

Rows with fewer candidates are padded with weights of zero. The padding is never selected before a candidate: it stands
to the right of them, importances are not negative, and every row has at least k candidates, the columns of K.

Shapes in this file: weight (d, f); norms of prompts and contrast (T, f), T steps; k known columns and c candidates in
each of d rows, where c is the largest number of candidates of any row.
"""

from __future__ import annotations

import numpy as np
import torch

STEPS_PER_BLOCK = 10
"""Steps that share their candidates. Longer blocks need fewer selections, each among more candidates."""


def memorized_at_steps(
    weight: torch.Tensor, norms: torch.Tensor, null_norms: torch.Tensor, budget: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights that `memorized` marks at each step. At most `budget` weights of a row of W are marked.

    Args:
        norms: a_j of the prompts, (T, f).
        null_norms: a_j of the contrast, (T, f).

    Returns:
        As in `LayerMask`: the columns of the marked weights, sorted by step, then row, then column; and the number of
        marked weights of each row at each step, (T, d).
    """
    magnitude = weight.float().abs()
    d, f = magnitude.shape
    all_columns, all_counts = [], []
    # The first block knows the k largest columns at its first step, chosen among all columns.
    candidates, candidate_magnitudes = torch.arange(f, device=weight.device).expand(d, f), magnitude
    largest_before = (magnitude * norms[0]).topk(budget, dim=1, sorted=False).indices
    for block, null_block in zip(norms.split(STEPS_PER_BLOCK), null_norms.split(STEPS_PER_BLOCK), strict=True):
        known = candidates.gather(1, largest_before)  # (d, k)
        known_magnitudes = candidate_magnitudes.gather(1, largest_before)
        candidates, is_candidate = _candidates(magnitude, block, known, known_magnitudes)  # both (d, c)
        # Padding has magnitude zero and is never marked, because 0 > 0 is false.
        candidate_magnitudes = magnitude.gather(1, candidates).mul_(is_candidate)
        flat = candidates.view(-1)
        scores = candidate_magnitudes * block.index_select(1, flat).view(-1, *candidates.shape)  # (steps, d, c)
        null_scores = candidate_magnitudes * null_block.index_select(1, flat).view(-1, *candidates.shape)
        marked = (_largest(scores, budget) & (scores > null_scores)).cpu()
        column_type = torch.int16 if f <= torch.iinfo(torch.int16).max else torch.int32
        all_columns.append(flat.to(column_type).cpu()[np.flatnonzero(marked) % len(flat)])
        all_counts.append(marked.sum(2, dtype=torch.int32))
        largest_before = scores[-1].topk(budget, dim=1, sorted=False).indices
    return torch.cat(all_columns), torch.cat(all_counts)


def _candidates(
    magnitude: torch.Tensor, norms: torch.Tensor, known: torch.Tensor, known_magnitudes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The candidates of a block, (d, c), ascending; and a bool (d, c) that is False for padding."""
    at_most = magnitude * norms.amax(0)  # (d, f)
    at_least = (known_magnitudes * norms.amin(0)[known]).amin(1, keepdim=True)  # (d, 1)
    possible = at_most >= at_least
    row_counts = possible.sum(1, keepdim=True)
    is_candidate = torch.arange(int(row_counts.max()), device=magnitude.device) < row_counts
    columns = torch.zeros(is_candidate.shape, dtype=torch.long, device=magnitude.device)
    columns[is_candidate] = possible.nonzero()[:, 1]
    return columns, is_candidate


def _largest(scores: torch.Tensor, budget: int) -> torch.Tensor:
    """Marks the `budget` largest along the last axis, the leftmost of equal ones: bool, shape of `scores`."""
    # 8 x faster than `topk`.
    smallest = torch.from_numpy(np.partition(scores.cpu().numpy(), -budget)[..., -budget, None])
    largest = scores >= smallest.to(scores.device)
    rows = scores.numel() // scores.shape[-1]
    if int(largest.sum()) > budget * rows:  # ties at the smallest: a stable sort keeps the leftmost first
        leftmost = scores.sort(dim=-1, descending=True, stable=True).indices[..., :budget]
        largest = torch.zeros_like(largest).scatter_(-1, leftmost, True)
    return largest
