"""Simulates a GPU from shapes alone: the transfers, waits and peak memory of a call.

    with Elsewhere() as device:                       # for a pipeline on the device "meta"
        generate(pipe, ["a red heart"], steps=2)
    device.transfers, device.waits                    # Counter: file and line to number
    device.peak                                       # most bytes at once on the device

PyTorch's meta device has shapes and no numbers. Like a GPU, it does not mix with tensors of the host. Values that a GPU
would return are replaced: copies to the host contain ones, and every scalar is the same number.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Self
from weakref import WeakKeyDictionary, finalize

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import memsub

PACKAGES = (Path(memsub.__file__).parent, Path(__file__).parents[1])
"""Folders of the packages in which lines of code are counted."""
aten = torch.ops.aten


class _Flash(TorchFunctionMode):
    """Uses flash attention, like a GPU: the matrix of scores is never in memory as a whole."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        options = kwargs or {}
        if function is torch.nn.functional.scaled_dot_product_attention:
            query, key, value = args[:3]
            if query.is_meta and options.get("attn_mask") is None and len(args) == 3:
                return aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return function(*args, **options)


class Elsewhere(TorchDispatchMode):
    """A context in which the meta device acts like a GPU.

    Attributes:
        transfers: copies of tensors to the host; waits: scalars read by the host; uploads: copies of tensors from the
            host, which also block. Each is a counter by the innermost line of the two packages in the call,
            "folder/file.py:line".
        peak: most bytes at once of tensors that were made within the context.

    Args:
        number: the value of every scalar.
        float64: whether the device supports float64. (Apple's MPS does not.)
    """

    def __init__(self, number: int = 1, float64: bool = True):
        super().__init__()
        self.number, self.float64, self.live, self.peak = number, float64, 0, 0
        self.transfers: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self._known: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(_Flash())
        self._stack.enter_context(_counted_nonzero())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        options = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.is_meta for tensor in given):
            if function is aten._local_scalar_dense.default:
                self.waits[_place()] += 1
                return self.number
            to_host = torch.device(options.get("device") or "meta").type == "cpu"
            if function is aten._to_copy.default and to_host:
                self.transfers[_place()] += 1
                return torch.ones(args[0].shape, dtype=options.get("dtype") or args[0].dtype)
            if function is aten.copy_.default and not args[0].is_meta:
                self.transfers[_place()] += 1
                return args[0].fill_(1)
        result = function(*args, **options)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_meta:
                if leaf.dtype == torch.float64 and not self.float64:
                    raise TypeError("Cannot convert a MPS Tensor to float64 dtype: the MPS framework has none.")
                self._see(leaf.untyped_storage())
                if function is aten._to_copy.default and not args[0].is_meta:
                    self.uploads[_place()] += 1
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            size = storage.nbytes()
            self._known[storage] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def _counted_nonzero() -> Any:
    """A context in which each mask on the meta device counts as all true, because its values are unknown."""
    from torch.fx.experimental import _config

    return _config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]


def _place() -> str:
    """File and line of the innermost call in the two packages, outside of this file; "elsewhere" if there is none."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if name := _relative(frame.f_code.co_filename):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@cache
def _relative(filename: str) -> str:
    """The path of a file in its package; empty for this file, and for files of other packages."""
    path = Path(filename)
    if path == Path(__file__):
        return ""
    return next((path.relative_to(p).as_posix() for p in PACKAGES if path.is_relative_to(p)), "")


def size(modules: Iterable[torch.nn.Module]) -> int:
    """Bytes of modules' parameters and buffers."""
    return sum(t.numel() * t.element_size() for m in modules for t in (*m.parameters(), *m.buffers()))
