"""The edit: feed-forward weights to set to zero (METHOD, step 7), or any weights and their new values.

edit = locate(pipe, stats, null).union(steps=10)
with pruned(pipe, edit): ...                 # restores the weights bit for bit
edit.apply(pipe)                             # for good; then pipe.save_pretrained(...)
edit.save("edit.safetensors")                # a small file of coordinates, tied to the model's fingerprint
(edit | other), (edit & other), (edit - other)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .denoiser import Pipeline, as_denoiser, check_model
from .files import load_tensors, save_artifact
from .hub import HubMixin


@dataclass
class Edit(HubMixin):
    """New values for some weights: METHOD's edit sets all of its weights to zero.

    Attributes:
        positions: layer name to ascending positions in the layer's weight, flat (of a linear map i f + j), integers.
        shapes: layer name to the weight's shape, (d, f) of a linear map.
        provenance: what made it, `model` being the fingerprint of the network it belongs to.
        values: layer name to the values at its positions, float16; zeros where none are given.
    """

    positions: dict[str, torch.Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    provenance: dict
    values: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.values = {n: self.values.get(n, torch.zeros(len(p), dtype=torch.half)) for n, p in self.positions.items()}

    @property
    def density(self) -> float:
        """Share of the weights that the edit sets, of all in its layers: METHOD's has every second feed-forward map."""
        return sum(map(len, self.positions.values())) / sum(map(math.prod, self.shapes.values()))

    def apply(self, pipe: Pipeline) -> None:
        """Sets the weights, in place; raises ValueError for another model, and changes nothing then."""
        _set(self._weights(pipe), self.values.values())

    def _weights(self, pipe: Pipeline) -> list[tuple[torch.Tensor, torch.Tensor]]:
        check_model(pipe, self.provenance["model"], "this edit was made for")
        modules = dict(as_denoiser(pipe).network.named_modules())
        return [(modules[n].weight, p.to(modules[n].weight.device)) for n, p in self.positions.items()]

    def _combine(self, other: Edit, name: str, keep: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Edit:
        ours, theirs = self.provenance["model"], other.provenance["model"]
        if ours != theirs:
            raise ValueError(f"edits of two models do not combine: {ours[:12]} and {theirs[:12]}.")
        shapes, none, positions, values = {**self.shapes, **other.shapes}, torch.zeros(0).long(), {}, {}
        for layer, shape in shapes.items():
            positions[layer] = keep(*(edit.positions.get(layer, none).long() for edit in (self, other)))
            flat = torch.zeros(math.prod(shape), dtype=torch.float16)
            for edit in (other, self) if name != "union" else (self, other):  # the last one's value counts
                flat[edit.positions.get(layer, none)] = edit.values.get(layer, flat[:0])
            values[layer] = flat[positions[layer]]
        return Edit(positions, shapes, {"model": ours, name: [self.provenance, other.provenance]}, values)

    def __or__(self, other: Edit) -> Edit:
        """Where both set a weight, the right one's value counts; `&` and `-` keep the left one's."""
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
            raise ValueError(f"no layer's name begins with {missing[0]!r}; there are: {', '.join(self.positions)}.")
        positions = {n: p if n.startswith(wanted) else p[:0] for n, p in self.positions.items()}
        values = {n: v if n.startswith(wanted) else v[:0] for n, v in self.values.items()}
        return Edit(positions, self.shapes, self.provenance | {"only": list(wanted)}, values)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file of coordinates (none of layers that are set whole) and values, atomically."""
        whole = [n for n, p in self.positions.items() if len(p) == math.prod(self.shapes[n]) > 0]
        tensors = {n: p.to(torch.int32) for n, p in self.positions.items() if n not in whole}
        tensors |= {f"{n}.values": v for n, v in self.values.items() if v.any()}
        about = {"shapes": dict(self.shapes), "whole": whole, "provenance": self.provenance}
        save_artifact(tensors, path, "Edit", about)

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Reads what `save` wrote; raises FileNotFoundError or ValueError for another file."""
        tensors, about = load_tensors(path, "Edit")
        shapes = {n: tuple(s) for n, s in about["shapes"].items()}
        whole = {n: torch.arange(math.prod(shapes[n]), dtype=torch.int32) for n in about.get("whole", [])}
        positions = {n: whole[n] if n in whole else tensors[n].long() for n in shapes}
        values = {n: tensors[f"{n}.values"] for n in shapes if f"{n}.values" in tensors}
        return cls(positions, shapes, about["provenance"], values)


@contextmanager
def pruned(pipe: Pipeline, edit: Edit | None) -> Iterator[Pipeline]:
    """The pipeline with the edit applied (None: as it is); the weights come back on leaving, also by an exception.

    Raises ValueError if the edit belongs to another model.
    """
    weights = edit._weights(pipe) if edit else []
    kept = [weight.detach().view(-1)[positions].clone() for weight, positions in weights]
    try:
        _set(weights, edit.values.values() if edit else kept)
        yield pipe
    finally:
        _set(weights, kept)


def _set(weights: list[tuple[torch.Tensor, torch.Tensor]], values: Iterable[torch.Tensor]) -> None:
    for (weight, positions), new in zip(weights, values, strict=True):
        weight.detach().view(-1)[positions] = new.to(weight)
