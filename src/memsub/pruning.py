"""The edit: a set of feed-forward weights to set to zero (METHOD, step 7).

edit = locate(pipe, stats, null).union(steps=10)
with pruned(pipe, edit): ...                 # restores the weights bit for bit
edit.apply(pipe)                             # for good; then pipe.save_pretrained(...)
edit.save("edit.safetensors")                # a small file of coordinates, tied to the model's fingerprint
(edit | other), (edit & other), (edit - other)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from .denoiser import Pipeline, as_denoiser, check_model
from .files import load_tensors, save_artifact


@dataclass
class Edit:
    """Weights to set to zero.

    Attributes:
        positions: layer name to ascending positions i f + j in the layer's weight, int64.
        shapes: layer name to (d, f).
        provenance: what made it, `model` being the fingerprint of the network it belongs to.
    """

    positions: dict[str, torch.Tensor]
    shapes: dict[str, tuple[int, int]]
    provenance: dict

    @property
    def density(self) -> float:
        """Share of all second feed-forward weights that the edit sets to zero."""
        return sum(map(len, self.positions.values())) / sum(d * f for d, f in self.shapes.values())

    def apply(self, pipe: Pipeline) -> None:
        """Sets the weights to zero, in place; raises ValueError for another model, and changes nothing then."""
        with torch.no_grad():
            for weight, positions in self._weights(pipe):
                weight.view(-1)[positions] = 0

    def _weights(self, pipe: Pipeline) -> list[tuple[torch.Tensor, torch.Tensor]]:
        check_model(pipe, self.provenance["model"], "this edit was made for")
        layers = as_denoiser(pipe).layers()
        return [(layers[n].weight, p.to(layers[n].weight.device)) for n, p in self.positions.items()]

    def _combine(self, other: Edit, name: str, keep: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Edit:
        ours, theirs = self.provenance["model"], other.provenance["model"]
        if ours != theirs:
            raise ValueError(f"edits of two models do not combine: {ours[:12]} and {theirs[:12]}.")
        positions = {layer: keep(p, other.positions[layer]) for layer, p in self.positions.items()}
        return Edit(positions, self.shapes, {"model": ours, name: [self.provenance, other.provenance]})

    def __or__(self, other: Edit) -> Edit:
        return self._combine(other, "union", lambda a, b: torch.cat([a, b]).unique())

    def __and__(self, other: Edit) -> Edit:
        return self._combine(other, "intersection", lambda a, b: a[torch.isin(a, b)])

    def __sub__(self, other: Edit) -> Edit:
        return self._combine(other, "difference", lambda a, b: a[~torch.isin(a, b)])

    def only(self, layers: Iterable[str]) -> Edit:
        """The part of the edit that lies in some layers, given by the beginnings of their names ("down_blocks").

        Raises ValueError for a beginning that no layer has.
        """
        wanted = tuple(layers)
        if missing := [w for w in wanted if not any(n.startswith(w) for n in self.positions)]:
            raise ValueError(
                f"no layer's name begins with {missing[0]!r}; the layers are: {', '.join(self.positions)}."
            )
        positions = {n: p if n.startswith(wanted) else p[:0] for n, p in self.positions.items()}
        return Edit(positions, self.shapes, self.provenance | {"only": list(wanted)})

    def random(self, seed: int = 0) -> Edit:
        """As many weights of each layer, chosen at random: the control of equal density."""
        generator = torch.Generator().manual_seed(seed)
        positions = {
            n: torch.randperm(self.shapes[n][0] * self.shapes[n][1], generator=generator)[: len(p)].sort().values
            for n, p in self.positions.items()
        }
        return Edit(positions, self.shapes, {"model": self.provenance["model"], "random": [self.provenance, seed]})

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file of coordinates, atomically."""
        small = {n: p.to(torch.int32) for n, p in self.positions.items()}
        save_artifact(small, path, "Edit", {"shapes": self.shapes, "provenance": self.provenance})

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Reads what `save` wrote; raises FileNotFoundError or ValueError for another file."""
        tensors, about = load_tensors(path, "Edit")
        shapes = {n: tuple(s) for n, s in about["shapes"].items()}
        return cls({n: tensors[n].long() for n in shapes}, shapes, about["provenance"])


@contextmanager
def pruned(pipe: Pipeline, edit: Edit | None) -> Iterator[Pipeline]:
    """The pipeline with the edit applied (None: as it is); the weights come back on leaving, also by an exception.

    Raises ValueError if the edit belongs to another model.
    """
    weights = edit._weights(pipe) if edit else []
    kept = [weight.detach().view(-1)[positions].clone() for weight, positions in weights]
    try:
        if edit:
            edit.apply(pipe)
        yield pipe
    finally:
        with torch.no_grad():
            for (weight, positions), values in zip(weights, kept, strict=True):
                weight.view(-1)[positions] = values
