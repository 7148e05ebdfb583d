"""Which weights are memorized: Wanda importance of prompts against that of a contrast (METHOD, steps 3 to 5).

memorized(weight, ours, theirs, sparsity)    # the rule, for one layer and one step
masks = locate(pipe, stats, null)            # ... for all of them; sparsity: the model's recommended one
masks.density()                              # (steps, layers)
masks.dense("down_blocks.0...", step=0)      # bool (d, f)
edit = masks.union(steps=10)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .activations import ActivationStats
from .denoiser import Pipeline, as_denoiser, check_model
from .files import load_tensors, save_artifact
from .models import model_of
from .pruning import Edit


def importance(weight: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """S_ij = |W_ij| a_j (Wanda, Sun et al. 2023; METHOD, step 3): weight (d, f), norms (f,) or (..., d, f)."""
    return weight.float().abs() * norms


def row_budget(sparsity: float, f: int) -> int:
    """Weights of a row of f that may be memorized: floor(s f), at least one."""
    return max(1, int(sparsity * f + 1e-9))  # 0.29 * 100 is a little less than 29 in floating point


def memorized(weight: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The rule (METHOD, step 4): among the floor(s f) largest of its row, and larger than for the contrast.

    Of equal ones the leftmost come first. Weight (d, f), norms of prompts and contrast (f,) to bool (d, f).
    """
    scores, null_scores = importance(weight, ours), importance(weight, theirs)
    first = scores.sort(dim=1, descending=True, stable=True).indices[:, : row_budget(sparsity, weight.shape[1])]
    largest = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, first, True)
    return largest & (scores > null_scores)


@dataclass
class LayerMask:
    """Memorized weights of one layer, for every step: where they are, not a bit for each weight.

    Attributes:
        shape: (d, f) of the layer's weight.
        columns: int16 (or int32), the column j of each memorized weight, by step, then row, ascending.
        counts: int32 (steps, d), how many each row holds.
    """

    shape: tuple[int, int]
    columns: torch.Tensor
    counts: torch.Tensor

    def flat(self, step: int) -> torch.Tensor:
        """Ascending positions i f + j of the weights memorized at a step, int64."""
        start, held = int(self.counts[:step].sum()), int(self.counts[step].sum())
        rows = torch.arange(self.shape[0]).repeat_interleave(self.counts[step])
        return rows * self.shape[1] + self.columns[start : start + held]


@dataclass
class WeightMasks:
    """Memorized weights at every step and layer.

    Attributes:
        layers: layer name to its mask, in execution order.
        provenance: that of the statistics, and sparsity.
    """

    layers: dict[str, LayerMask]
    provenance: dict

    @property
    def steps(self) -> int:
        return len(next(iter(self.layers.values())).counts)

    def density(self) -> torch.Tensor:
        """Share of each layer's weights that is memorized at each step, shape (steps, layers)."""
        return torch.stack([m.counts.sum(1) / (m.shape[0] * m.shape[1]) for m in self.layers.values()], 1)

    def dense(self, layer: str, step: int) -> torch.Tensor:
        """The mask of one layer and step as booleans, shape (d, f)."""
        mask = self.layers[layer]
        out = torch.zeros(mask.shape[0] * mask.shape[1], dtype=torch.bool)
        out[mask.flat(step)] = True
        return out.view(mask.shape)

    def union(self, steps: int = 10, threshold: float = 0.0) -> Edit:
        """The weights memorized at more than `threshold * steps` of the first `steps` steps (METHOD, step 7).

        Raises ValueError for more steps than there are, fewer than one, or a threshold outside [0, 1).
        """
        if not (1 <= steps <= self.steps and 0 <= threshold < 1):
            told = f"steps must lie between 1 and {self.steps}, the steps of these masks, and threshold in [0, 1)"
            raise ValueError(f"{told}; got {steps} and {threshold}.")
        positions, shapes = {}, {}
        for name, mask in self.layers.items():
            found, times = torch.cat([mask.flat(t) for t in range(steps)]).unique(return_counts=True)
            positions[name], shapes[name] = found[times > threshold * steps], mask.shape
        return Edit(positions, shapes, self.provenance | {"union_steps": steps, "threshold": threshold})

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, atomically."""
        parts = ("columns", "counts")
        tensors = {f"{name}.{part}": getattr(mask, part) for name, mask in self.layers.items() for part in parts}
        shapes = {name: mask.shape for name, mask in self.layers.items()}
        save_artifact(tensors, path, "WeightMasks", {"shapes": shapes, "provenance": self.provenance})

    @classmethod
    def load(cls, path: str | Path) -> WeightMasks:
        """Reads what `save` wrote; raises FileNotFoundError or ValueError for another file."""
        tensors, about = load_tensors(path, "WeightMasks")
        layers = {
            n: LayerMask(tuple(s), tensors[f"{n}.columns"], tensors[f"{n}.counts"]) for n, s in about["shapes"].items()
        }
        return cls(layers, about["provenance"])


def locate(
    pipe: Pipeline,
    stats: ActivationStats,
    null: ActivationStats,
    sparsity: float | None = None,
    group: str | None = None,
) -> WeightMasks:
    """Finds the memorized weights of one group of prompts against a contrast.

    Args:
        stats: of the memorized prompts; name the `group` if there are several.
        null: of the contrast, one group: the empty prompt (the paper's), or ordinary prompts.
        sparsity: share s of each row's weights that may be memorized at a step, at least one weight a row; default the
            one recommended for this model (`memsub.models.MODELS`), 1 % for a model that is not listed.

    Raises:
        ValueError: the sparsity is not in (0, 1], or the statistics are another model's or were made differently.
    """
    sparsity = model_of(pipe).sparsity if sparsity is None else sparsity
    if not 0 < sparsity <= 1:
        raise ValueError(f"sparsity must lie in (0, 1]; got {sparsity}.")
    check_model(pipe, stats.provenance["model"], "these statistics were captured from")
    stats.check_made_like(null)
    found = {}
    norms, null_norms = stats.norms(group), null.norms()
    for name, linear in as_denoiser(pipe).layers().items():
        weight = linear.weight.detach()
        ours, theirs = (of[name].to(weight.device) for of in (norms, null_norms))
        found[name] = memorized_at_steps(weight, ours, theirs, sparsity)
    located = {"sparsity": sparsity, "prompts": stats.prompts, "null": null.prompts}
    return WeightMasks(found, stats.provenance | located)


# --- the same rule at many steps, fast --------------------------------------------------------------------------

_BLOCK = 10
"""Steps that share their candidates: norms drift slowly, so that few columns can come first at any of them."""


def memorized_at_steps(weight: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor, sparsity: float) -> LayerMask:
    """What `memorized` gives for each step, norms (steps, f), without sorting every row at every step."""
    magnitude = weight.float().abs()
    d, f = magnitude.shape
    k = row_budget(sparsity, f)
    columns, counts = [], []
    first = (magnitude * ours[0]).topk(k, dim=1, sorted=False).indices
    candidates, among = torch.arange(f, device=weight.device).expand(d, f), magnitude
    for norms in zip(ours.split(_BLOCK), theirs.split(_BLOCK), strict=True):
        known, reached = candidates.gather(1, first), among.gather(1, first)
        candidates, there = _candidates(magnitude, norms[0], known, reached)
        among, flat = magnitude.gather(1, candidates).mul_(there), candidates.view(-1)
        scores, null_scores = (importance(among, n.index_select(1, flat).view(-1, *among.shape)) for n in norms)
        kth = torch.from_numpy(np.partition(scores.cpu().numpy(), -k)[..., -k, None])  # eight times as fast as `topk`
        largest = scores >= kth.to(scores.device)
        if int(largest.sum()) > k * d * len(scores):  # ties at the k-th: the leftmost of them, the same every time
            leftmost = scores.sort(dim=2, descending=True, stable=True).indices[..., :k]
            largest = torch.zeros_like(largest).scatter_(2, leftmost, True)
        kept = (largest & (scores > null_scores)).cpu()
        columns.append(flat.to(torch.int16 if f <= 32767 else torch.int32).cpu()[np.flatnonzero(kept) % len(flat)])
        counts.append(kept.sum(2, dtype=torch.int32))
        first = scores[-1].topk(k, dim=1, sorted=False).indices
    return LayerMask((d, f), torch.cat(columns), torch.cat(counts))


def _candidates(
    magnitude: torch.Tensor, norms: torch.Tensor, known: torch.Tensor, reached: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns, ascending, that can be among the k largest of their row at any of some steps.

    What a column reaches at most must not be below what the k `known` columns, of magnitude `reached`, reach at least:
    so a full selection is needed once, not once a step. Returns columns (d, c), c those of the row that has most, and
    which of them are there, not filling.
    """
    floor = (reached * norms.amin(0)[known]).amin(1, keepdim=True)
    possible = magnitude * norms.amax(0) >= floor
    held = possible.sum(1, keepdim=True)
    there = torch.arange(int(held.max()), device=held.device) < held
    columns = torch.zeros(there.shape, dtype=torch.long, device=held.device)
    columns[there] = possible.nonzero()[:, 1]
    return columns, there
