"""`memsub.memorized` at many steps, without sorting every row of every weight at every step.

    >>> weight, norms, null_norms = torch.randn(8, 64), torch.rand(50, 64), torch.rand(50, 64)
    >>> columns, counts = memorized_at_steps(weight, norms, null_norms, budget=3)
    >>> memorized(weight, norms[0], null_norms[0], sparsity=3 / 64).sum(1).tolist() == counts[0].tolist()
    True

The rule asks which columns j hold the k largest importances S_ij(t) = |W_ij| a_j(t) of row i of W, at every step t.
Norms drift slowly from step to step, so that nearly all columns are out of the question for many steps at once. For a
block of steps t, take any k columns K of row i, best those that were the largest just before. A column j can be among
the k largest at some step of the block only if

    |W_ij| max_t a_j(t)  >=  min over q in K of  |W_iq| min_t a_q(t)
    `-- what j reaches at most              `-- what each of the k columns reaches at least

If not, then these k columns lie above j at every step. So the exact selection is made among the few columns that are
left, the candidates. The inequality holds for rounded products as well, because rounding keeps the order of numbers.
It admits equality, so that of equal importances the leftmost still comes first.

A row with fewer candidates than another is filled up with weights of zero. These displace no column: they stand to the
right of the candidates, whose importances are not negative, and the row has at least k candidates, the columns of K.

Shapes in this file: weight (d, f); norms of prompts and contrast (T, f), T steps; k known columns and c candidates in
each of d rows, c being what the row with most candidates has.
"""

from __future__ import annotations

import numpy as np
import torch

STEPS_PER_BLOCK = 10
"""Steps that share their candidates. More of them need fewer selections, among more candidates: norms drift further."""


def memorized_at_steps(
    weight: torch.Tensor, norms: torch.Tensor, null_norms: torch.Tensor, budget: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which weights `memorized` marks at each step, `budget` being how many of a row of W may be.

    Args:
        norms: a_j of the prompts, (T, f).
        null_norms: a_j of the contrast, (T, f).

    Returns:
        As `LayerMask` has them: the columns of the marked weights, by step, then row, ascending; and how many of them
        each row has at each step, (T, d).
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
        # Filling has magnitude zero and is never marked: not 0 > 0.
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
    """The columns that the inequality leaves for a block, (d, c), ascending; and which of these are no filling."""
    at_most = magnitude * norms.amax(0)  # (d, f)
    at_least = (known_magnitudes * norms.amin(0)[known]).amin(1, keepdim=True)  # (d, 1)
    possible = at_most >= at_least
    row_counts = possible.sum(1, keepdim=True)
    is_candidate = torch.arange(int(row_counts.max()), device=magnitude.device) < row_counts
    columns = torch.zeros(is_candidate.shape, dtype=torch.long, device=magnitude.device)
    columns[is_candidate] = possible.nonzero()[:, 1]
    return columns, is_candidate


def _largest(scores: torch.Tensor, budget: int) -> torch.Tensor:
    """Which of the last axis are the `budget` largest, of equal ones the leftmost: bool, shape of `scores`."""
    # 8 x faster than `topk`.
    smallest = torch.from_numpy(np.partition(scores.cpu().numpy(), -budget)[..., -budget, None])
    largest = scores >= smallest.to(scores.device)
    rows = scores.numel() // scores.shape[-1]
    if int(largest.sum()) > budget * rows:  # several are equal to the smallest: a stable sort has the leftmost first
        leftmost = scores.sort(dim=-1, descending=True, stable=True).indices[..., :budget]
        largest = torch.zeros_like(largest).scatter_(-1, leftmost, True)
    return largest
