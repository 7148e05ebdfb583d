"""The edit: feed-forward weights to set to zero (METHOD, step 7), or any weights and their new values.

    >>> edit = locate(pipe, stats, null).union(steps=3)
    >>> with pruned(pipe, edit):                            # the weights come back bit for bit
    ...     images = generate(pipe, prompts, steps=2)
    >>> edit.save("edit.safetensors")                       # a small file, tied to the model's fingerprint
    >>> early = locate(pipe, stats, null).union(steps=1)
    >>> len((edit | early).positions) == len((edit - early).positions) == len((edit & early).positions)
    True
    >>> edit.apply(pipe)                                    # for good; then pipe.save_pretrained(...)

An edit is applied completely or not at all: everything is checked before the first weight is written. It belongs to the
weights and the dtype of one network: the same weights in another dtype count as another model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .models import Pipeline, as_denoiser, check_model, check_plain, named_modules, only_shapes

_Keep = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass
class Edit:
    """New values for some weights: METHOD's edit U_l sets all of its weights to zero.

    Attributes:
        positions: layer name to flat positions in the layer's weight, ascending integers (i f + j in a linear map).
        shapes: layer name to the weight's shape, (d, f) for a linear map.
        provenance: how it was made; `model` is the fingerprint of the network that it belongs to.
        values: layer name to the new values at its positions, float16; default zeros.
    """

    positions: dict[str, torch.Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    provenance: dict
    values: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.values = {n: self.values.get(n, torch.zeros_like(p, dtype=torch.half)) for n, p in self.positions.items()}

    @property
    def density(self) -> float:
        """Share of the weights of its layers that it sets (METHOD: of the second maps of all feed-forward blocks)."""
        return sum(map(len, self.positions.values())) / sum(map(math.prod, self.shapes.values()))

    @property
    def fingerprint(self) -> str:
        """sha256 of shapes, positions and values. (`provenance["model"]` is the fingerprint of the model.)"""
        whole, none = hashlib.sha256(), torch.zeros(0, device="cpu")
        for layer, shape in sorted(self.shapes.items()):
            positions = self.positions.get(layer, none).cpu().to(torch.int64).contiguous()
            values = self.values.get(layer, none).cpu().to(torch.float16).contiguous()
            whole.update(f"{layer} {tuple(shape)} {len(positions)}".encode())
            whole.update(positions.numpy().tobytes())
            whole.update(values.numpy().tobytes())
        return whole.hexdigest()

    def check(self) -> None:
        """Raises ValueError if a shape, positions or values are invalid; the message names the first such layer."""
        for layer, positions in self.positions.items():
            if problem := _problem(self.shapes.get(layer), positions, self.values[layer]):
                raise ValueError(f"layer {layer} of this edit: {problem}.")

    def apply(self, pipe: Pipeline) -> None:
        """Sets the weights, in place.

        Raises:
            ValueError: the edit belongs to another model, sets no weights, or is invalid. No weight was changed.
        """
        layers = self._layers(pipe)
        before = self._read(layers)
        try:
            self._write(layers, self.values)
        except BaseException:  # such as a Ctrl-C between two layers
            self._write(layers, before)
            raise

    def _layers(self, pipe: Pipeline) -> dict[str, Any]:
        """The modules whose weights the edit sets, after all checks. (Offloading replaces weights at every call.)"""
        check_model(pipe, self.provenance["model"], "this edit was made for")
        self.check()
        if not any(map(len, self.positions.values())):
            raise ValueError(
                "this edit sets no weights: it would change nothing. Locate again, with a larger sparsity."
            )
        network = as_denoiser(pipe).network
        modules, shapes_alone, layers = named_modules(network), only_shapes(network), {}
        for layer in self.positions:
            module = modules.get(layer)
            if module is None or not isinstance(getattr(module, "weight", None), torch.Tensor):
                raise ValueError(f"this edit sets layer {layer}, but the network has no weight of that name.")
            layers[layer] = check_plain(layer, module, shapes_alone, linear=isinstance(module, torch.nn.Linear))
            if (shape := tuple(layers[layer].weight.shape)) != tuple(self.shapes[layer]):
                shapes = f"{tuple(self.shapes[layer])}, but that of the network is {shape}"
                raise ValueError(f"this edit sets layer {layer} of shape {shapes}.")
        return layers

    def _read(self, layers: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The present values at the edit's positions."""
        held = {}
        for layer, module in layers.items():
            view, index = _addressed(module.weight, self.positions[layer])
            held[layer] = view[index].view(module.weight.dtype)
        return held

    def _write(self, layers: Mapping[str, Any], values: Mapping[str, torch.Tensor]) -> None:
        """Writes one value to each of the edit's positions."""
        for layer, module in layers.items():
            # Inference mode is required to write weights that were loaded in it.
            with torch.inference_mode(module.weight.is_inference()):
                view, index = _addressed(module.weight, self.positions[layer])
                view[index] = values[layer].to(module.weight).view(view.dtype)

    def _combine(self, other: Edit, name: str, keep: _Keep, right_wins: bool = False) -> Edit:
        """`keep` selects from the positions of both edits. If both set a position, the left value counts by default."""
        if not isinstance(other, Edit):
            raise ValueError(f"an Edit combines with another; got {other!r:.80}: of a file, give Edit.load(path).")
        ours, theirs = self.provenance["model"], other.provenance["model"]
        if ours != theirs:
            raise ValueError(f"edits of two models do not combine: {ours[:12]} and {theirs[:12]}.")
        shapes = {**self.shapes, **other.shapes}
        none, positions, values = torch.zeros(0, dtype=torch.long, device="cpu"), {}, {}
        for layer, shape in shapes.items():
            positions[layer] = keep(*(edit.positions.get(layer, none).long() for edit in (self, other)))
            flat = torch.zeros(math.prod(shape), dtype=torch.float16, device="cpu")
            for edit in (self, other) if right_wins else (other, self):  # the last one's value counts
                flat[edit.positions.get(layer, none).long()] = edit.values.get(layer, flat[:0])
            values[layer] = flat[positions[layer]]
        return Edit(positions, shapes, {"model": ours, name: [self.provenance, other.provenance]}, values)

    def __or__(self, other: Edit) -> Edit:
        """The union. If both edits set a weight, the right value counts; `&` and `-` keep the left value."""
        return self._combine(other, "union", lambda a, b: torch.cat([a, b]).unique(), right_wins=True)

    def __and__(self, other: Edit) -> Edit:
        return self._combine(other, "intersection", lambda a, b: a[torch.isin(a, b)])

    def __sub__(self, other: Edit) -> Edit:
        return self._combine(other, "difference", lambda a, b: a[~torch.isin(a, b)])

    def only(self, layers: Iterable[str]) -> Edit:
        """The part of the edit in the layers whose names begin with one of `layers` (such as "down_blocks").

        Raises ValueError if no layer's name begins so.
        """
        wanted = tuple(layers)
        if missing := [start for start in wanted if not any(name.startswith(start) for name in self.positions)]:
            names = ", ".join(self.positions)
            raise ValueError(f"no layer's name begins with {missing[0]!r}; the layers are: {names}.")
        positions = {n: p if n.startswith(wanted) else p[:0] for n, p in self.positions.items()}
        values = {n: v if n.startswith(wanted) else v[:0] for n, v in self.values.items()}
        return Edit(positions, self.shapes, self.provenance | {"only": list(wanted)}, values)

    def save(self, path: str | Path) -> None:
        """Writes positions and values to a safetensors file, atomically. Layers set as a whole need no positions."""
        from .io.files import save_artifact

        whole = [n for n, p in self.positions.items() if len(p) == math.prod(self.shapes[n]) > 0]
        tensors = {n: p.to(torch.int32) for n, p in self.positions.items() if n not in whole}
        tensors |= {f"{n}.values": v for n, v in self.values.items() if v.any()}
        about = {"shapes": dict(self.shapes), "whole": whole, "provenance": self.provenance}
        save_artifact(tensors, path, "Edit", about)

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no edit, or an invalid one; the message names the file, and the layer.
        """
        from .io.artifacts import as_written, edit_parts

        edit = cls(**edit_parts(path))
        with as_written(path, "edit"):
            edit.check()
        whole = {n for n, p in edit.positions.items() if len(p) == math.prod(edit.shapes[n])}  # 32 bits, for memory
        edit.positions = {n: p if n in whole else p.long() for n, p in edit.positions.items()}
        return edit


def _addressed(weight: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """A view of a weight, and the index of flat positions in it, for any device and memory format."""
    weight, positions = weight.detach(), positions.to(weight.device, torch.long)
    if weight.element_size() == 1:  # PyTorch cannot set single elements of 8-bit floats
        weight = weight.view(torch.uint8)
    if weight.is_contiguous():
        return weight.view(-1), (positions,)
    # For example channels_last, which stores elements in another order than positions count them.
    return weight, torch.unravel_index(positions, weight.shape)


def _problem(shape: tuple[int, ...] | None, positions: torch.Tensor, values: torch.Tensor) -> str:
    """What is wrong with a layer's part of an edit; empty if nothing is."""
    if shape is None:
        return "its shape is missing"
    if positions.ndim != 1 or positions.dtype not in _INTEGERS:
        return f"positions must be integers in one row; got {positions.dtype} of shape {tuple(positions.shape)}"
    if values.shape != positions.shape:
        return f"{len(positions)} positions need as many values; got {tuple(values.shape)}"
    if not values.is_floating_point() or values.element_size() == 1:
        return f"values must be float16, as a file holds them; got {values.dtype}"
    if not values.isfinite().all():
        return "some of its values are not finite"
    if not len(positions):
        return ""
    if (positions[1:] <= positions[:-1]).any():
        return "positions must ascend, each of them once"
    if positions[0] < 0 or positions[-1] >= math.prod(shape):
        return (
            f"positions must lie between 0 and {math.prod(shape) - 1}; got {int(positions[0])} to {int(positions[-1])}"
        )
    return ""


@contextmanager
def pruned(pipe: Pipeline, edit: Edit | None) -> Iterator[Pipeline]:
    """The pipeline with the edit applied (None: unchanged). On leaving, also by an exception, the weights are restored.

    Contexts cannot be nested, because the inner edit would meet an edited model: apply `a | b`. Raises as `Edit.apply`.
    """
    if edit is None:
        yield pipe
        return
    if not isinstance(edit, Edit):
        raise ValueError(f"an Edit is expected; got {edit!r:.80}: of a file, give Edit.load(path).")
    layers = edit._layers(pipe)
    before = edit._read(layers)
    try:
        edit._write(layers, edit.values)
        yield pipe
    finally:
        edit._write(layers, before)
