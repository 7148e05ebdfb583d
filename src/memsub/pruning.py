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
from diffusers import StableDiffusionPipeline

from .files import load_tensors, save_artifact
from .models import check_model, ff_layers


@dataclass
class Edit:
    """Weights to set to zero.

    Attributes:
        positions: layer name to ascending positions i f + j in the layer's weight, int64.
        shapes: layer name to (d, f).
        made: what made it, `model` being the fingerprint of the UNet it belongs to.
    """

    positions: dict[str, torch.Tensor]
    shapes: dict[str, tuple[int, int]]
    made: dict

    @property
    def density(self) -> float:
        """Share of all second feed-forward weights that the edit sets to zero."""
        return sum(map(len, self.positions.values())) / sum(d * f for d, f in self.shapes.values())

    def apply(self, pipe: StableDiffusionPipeline) -> None:
        """Sets the weights to zero, in place.

        Raises:
            ValueError: the edit belongs to another model; nothing is changed.
        """
        with torch.no_grad():
            for weight, positions in self._weights(pipe):
                weight.view(-1)[positions] = 0

    def _weights(self, pipe: StableDiffusionPipeline) -> list[tuple[torch.Tensor, torch.Tensor]]:
        check_model(pipe, self.made["model"], "this edit was made for")
        layers = ff_layers(pipe.unet)
        return [(layers[n].weight, p.to(layers[n].weight.device)) for n, p in self.positions.items()]

    def _combine(self, other: Edit, name: str, keep: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Edit:
        if self.made["model"] != other.made["model"]:
            raise ValueError(
                f"edits of two models do not combine: {self.made['model'][:12]} and {other.made['model'][:12]}."
            )
        positions = {layer: keep(p, other.positions[layer]) for layer, p in self.positions.items()}
        return Edit(positions, self.shapes, {"model": self.made["model"], name: [self.made, other.made]})

    def __or__(self, other: Edit) -> Edit:
        return self._combine(other, "union", lambda a, b: torch.cat([a, b]).unique())

    def __and__(self, other: Edit) -> Edit:
        return self._combine(other, "intersection", lambda a, b: a[torch.isin(a, b)])

    def __sub__(self, other: Edit) -> Edit:
        return self._combine(other, "difference", lambda a, b: a[~torch.isin(a, b)])

    def only(self, layers: Iterable[str]) -> Edit:
        """The part of the edit that lies in some layers, given by the beginnings of their names ("down_blocks", "mid_block").

        Raises:
            ValueError: a beginning that no layer has.
        """
        wanted = tuple(layers)
        if missing := [w for w in wanted if not any(n.startswith(w) for n in self.positions)]:
            raise ValueError(
                f"no layer's name begins with {missing[0]!r}; the layers are: {', '.join(self.positions)}."
            )
        positions = {n: p if n.startswith(wanted) else p[:0] for n, p in self.positions.items()}
        return Edit(positions, self.shapes, self.made | {"only": list(wanted)})

    def random(self, seed: int = 0) -> Edit:
        """As many weights of each layer, chosen at random: the null rival of equal density."""
        generator = torch.Generator().manual_seed(seed)
        positions = {
            n: torch.randperm(self.shapes[n][0] * self.shapes[n][1], generator=generator)[: len(p)].sort().values
            for n, p in self.positions.items()
        }
        return Edit(positions, self.shapes, {"model": self.made["model"], "random": [self.made, seed]})

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file of coordinates, atomically."""
        small = {n: p.to(torch.int32) for n, p in self.positions.items()}
        save_artifact(small, path, "Edit", {"shapes": self.shapes, "made": self.made})

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError, ValueError: no such file; it is truncated or something else.
        """
        tensors, about = load_tensors(path, "Edit")
        shapes = {n: tuple(s) for n, s in about["shapes"].items()}
        return cls({n: tensors[n].long() for n in shapes}, shapes, about["made"])


@contextmanager
def pruned(pipe: StableDiffusionPipeline, edit: Edit | None) -> Iterator[StableDiffusionPipeline]:
    """The pipeline with the edit applied (None: as it is); on leaving, also by an exception, the weights are what they were.

    Raises:
        ValueError: the edit belongs to another model.
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
