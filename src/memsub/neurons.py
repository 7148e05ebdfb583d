"""Which weights are memorized: Wanda importance of prompts against that of a contrast (METHOD, steps 3 to 5).

    >>> stats, null = capture(pipe, prompts, steps=3), capture(pipe, [""], steps=3)
    >>> masks = locate(pipe, stats, null, sparsity=0.1)     # without a sparsity: the model's recommended one
    >>> masks.density().shape                               # (steps, layers)
    torch.Size([3, 4])
    >>> masks.dense("mid_block.attentions.0.transformer_blocks.0.ff.net.2", step=0).shape     # of W: (d, f)
    torch.Size([16, 64])
    >>> edit = masks.union(steps=3)

The paper's "memorized neurons" are single weights W_ij. Here a neuron j is a column of W. `memorized` defines the rule
for one layer and step. The library runs the faster `memorized_at_steps` (fast_masks.py); tests check that both agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

import torch

from .activations import ActivationStats
from .fast_masks import memorized_at_steps
from .models import Pipeline, as_denoiser, check_model, model_of
from .pruning import Edit


def importance(weight: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """S_ij = |W_ij| a_j (Wanda, Sun et al. 2023; METHOD, step 3): weight (d, f) and norms (f,) to float32 (d, f)."""
    return weight.float().abs() * norms


def row_budget(sparsity: float, f: int) -> int:
    """Weights of a row of W that may be memorized: floor(s f), at least one."""
    return max(1, int(sparsity * f + 1e-9))  # 0.29 * 100 is a little less than 29 in floating point


def memorized(weight: torch.Tensor, norms: torch.Tensor, null_norms: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The rule (METHOD, step 4): a weight is memorized if its importance S_ij for the prompts is among the k largest of
    row i of W, k = floor(s f), and larger than its importance for the contrast. Ties go to the leftmost columns.

    Args:
        weight: (d, f).
        norms: a_j of the prompts, (f,).
        null_norms: a_j of the contrast, (f,).
        sparsity: METHOD's s.

    Returns:
        bool (d, f).
    """
    scores, null_scores = importance(weight, norms), importance(weight, null_norms)
    first = scores.sort(dim=1, descending=True, stable=True).indices[:, : row_budget(sparsity, weight.shape[1])]
    largest = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, first, True)
    return largest & (scores > null_scores)


@dataclass
class LayerMask:
    """Memorized weights of one layer at every step, stored as their columns.

    Attributes:
        shape: (d, f) of the layer's weight.
        columns: int16 or int32, the column j of each memorized weight, sorted by step, then row, then column.
        counts: int32 (steps, d), the number of memorized weights of each row of W.
    """

    shape: tuple[int, int]
    columns: torch.Tensor
    counts: torch.Tensor

    def flat(self, step: int) -> torch.Tensor:
        """Positions i f + j of the weights memorized at a step, ascending, int64."""
        before, here = int(self.counts[:step].sum()), int(self.counts[step].sum())
        rows = torch.arange(self.shape[0], device=self.counts.device).repeat_interleave(self.counts[step])
        return rows * self.shape[1] + self.columns[before : before + here]


def layer_mask(weight: torch.Tensor, norms: torch.Tensor, null_norms: torch.Tensor, sparsity: float) -> LayerMask:
    """The rule of `memorized` at each step: weight (d, f), norms of prompts and contrast (steps, f)."""
    d, f = weight.shape
    return LayerMask((d, f), *memorized_at_steps(weight, norms, null_norms, row_budget(sparsity, f)))


@dataclass
class WeightMasks:
    """Memorized weights at every step and layer.

    Attributes:
        layers: layer name to its mask, in execution order.
        provenance: the provenance of the statistics, and the sparsity.
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
        out = torch.zeros(mask.shape[0] * mask.shape[1], dtype=torch.bool, device="cpu")
        out[mask.flat(step)] = True
        return out.view(mask.shape)

    def union(self, steps: int = 10, threshold: float = 0.0) -> Edit:
        """The weights memorized at more than `threshold * steps` of the first `steps` steps (METHOD, step 7: r, tau).

        Raises:
            ValueError: the masks have fewer steps, the threshold is outside [0, 1), or no weight is memorized at more
                than `threshold * steps` steps.
        """
        valid = isinstance(steps, Integral) and isinstance(threshold, Real)
        if not (valid and 1 <= steps <= self.steps and 0 <= threshold < 1):
            raise ValueError(
                f"steps must be a whole number between 1 and {self.steps}, the steps of these masks, and threshold in "
                f"[0, 1); got {steps!r} and {threshold!r}."
            )
        positions, shapes = {}, {}
        for name, mask in self.layers.items():
            marked, times = torch.cat([mask.flat(step) for step in range(steps)]).unique(return_counts=True)
            positions[name], shapes[name] = marked[times > threshold * steps], mask.shape
        if not any(map(len, positions.values())):
            raise ValueError(
                f"no weight is memorized at more than {threshold * steps:g} of the first {steps} steps, at sparsity "
                f"{self.provenance.get('sparsity')}: an edit of no weights changes nothing. Lower the threshold, raise "
                "steps or sparsity, or check that the prompts are other ones than the contrast."
            )
        return Edit(positions, shapes, self.provenance | {"union_steps": steps, "threshold": threshold})

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, atomically."""
        from .io.files import save_artifact

        parts = ("columns", "counts")
        tensors = {f"{name}.{part}": getattr(mask, part) for name, mask in self.layers.items() for part in parts}
        shapes = {name: mask.shape for name, mask in self.layers.items()}
        save_artifact(tensors, path, "WeightMasks", {"shapes": shapes, "provenance": self.provenance})

    @classmethod
    def load(cls, path: str | Path) -> WeightMasks:
        """Reads a file that `save` wrote; raises FileNotFoundError, or ValueError for any other file."""
        from .io.artifacts import mask_parts

        layers, provenance = mask_parts(path)
        return cls({name: LayerMask(*parts) for name, parts in layers.items()}, provenance)


def locate(
    pipe: Pipeline,
    stats: ActivationStats,
    null: ActivationStats,
    sparsity: float | None = None,
    group: str | None = None,
) -> WeightMasks:
    """Finds the memorized weights of one group of prompts against a contrast, at every captured step.

    Args:
        stats: statistics of the memorized prompts.
        null: statistics of the contrast, one group: the empty prompt (as in the paper), or ordinary prompts.
        sparsity: share s of each row of W that may be memorized at a step; at least one weight a row may. Default: the
            value in `memsub.models.MODELS` of the model's name or folder; 1 % for a model that is not listed.
        group: the group of `stats`; required if there are several.

    Raises:
        ValueError: the sparsity is not in (0, 1], or the statistics are none, belong to another model, or were made
            differently.
    """
    if wrong := [given for given in (stats, null) if not hasattr(given, "check_made_like")]:
        raise ValueError(f"statistics expected, as `capture` returns them; got a {type(wrong[0]).__name__}.")
    sparsity = model_of(pipe).sparsity if sparsity is None else sparsity
    if not isinstance(sparsity, Real) or not 0 < sparsity <= 1:
        raise ValueError(f"sparsity must be a number in (0, 1]; got {sparsity!r}.")
    check_model(pipe, stats.provenance["model"], "these statistics were captured from")
    stats.check_made_like(null)
    layers = {}
    norms, null_norms = stats.norms(group), null.norms()
    for name, linear in as_denoiser(pipe).layers().items():
        weight = linear.weight.detach()
        layers[name] = layer_mask(weight, norms[name].to(weight.device), null_norms[name].to(weight.device), sparsity)
    provenance = stats.provenance | {"sparsity": sparsity, "prompts": stats.prompts, "null": null.prompts}
    return WeightMasks(layers, provenance)
