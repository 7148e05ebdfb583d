"""Hooks on a network's layers. They require that one network call calls every layer once.

    >>> denoiser, rows = as_denoiser(pipe), []
    >>> with hooked(denoiser, denoiser.layers(), lambda name, hidden, output: rows.append(len(hidden)), rows=2):
    ...     denoiser.sample(["a red heart"], initial_noise(denoiser, [0]), 3, 7.5).shape
    torch.Size([1, 4, 8, 8])
    >>> rows                                # three calls, four layers each: the two halves of one prompt
    [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]

A layer that is not called, or gets other rows, would make sums and edits silently wrong. So every call is checked when
it ends. The chunked feed-forward of diffusers calls a layer several times, on parts of its rows or of its tokens; the
block says which, and the parts are joined. Compiled code calls no hooks, so the network runs uncompiled meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from threading import get_ident
from typing import Any, Literal

import torch

from .plain import named_modules, uncompiled
from .protocol import Denoiser

Joint = Literal["rows", "tokens"]
"""How the parts of a layer's call are joined: parts of rows are concatenated, parts of tokens are added up."""
See = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor | None]
"""Takes layer name, input and output, both (rows, tokens, width). A returned tensor replaces the output."""


class _Enough(Exception):
    """Ends sampling after the last network call that is required."""


@contextmanager
def hooked(
    denoiser: Denoiser,
    layers: Mapping[str, torch.nn.Module],
    see: See,
    *,
    rows: int | None = None,
    begin: Callable[[], None] = lambda: None,
    end: Callable[[dict[str, Joint]], None] = lambda joints: None,
    first: int | None = None,
) -> Iterator[None]:
    """Within it, `see` is called for every layer. On leaving, also by an exception, the hooks are removed.

    Only calls of the present thread count: another thread may use the same network meanwhile.

    Args:
        layers: layers of the denoiser's network, by name.
        rows: number of rows of every network call; None: the number of the first call.
        begin: called before each network call.
        end: called after each network call, with the joint of each layer that was called in parts.
        first: stop sampling after this many network calls, and continue after the `with` block.

    Raises:
        RuntimeError: a network call did not call every layer once; the message names layer, call and likely causes.
    """
    network = uncompiled(denoiser.network)
    calls, thread = _Calls(network, layers, rows), get_ident()

    def ours(hook: Callable) -> Callable:
        return lambda *args: hook(*args) if get_ident() == thread else None

    def before(module: Any, args: Any, kwargs: Any) -> None:
        begin()
        calls.begin()

    def after(module: Any, args: Any, output: Any) -> None:
        end(calls.end())
        if calls.number + 1 == first:
            raise _Enough

    def layer_hook(name: str) -> Callable:
        def called(module: Any, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
            calls.add(name, len(args[0]))
            return see(name, args[0], output)

        return called

    handles = [network.register_forward_pre_hook(ours(before), with_kwargs=True)]
    handles += [network.register_forward_hook(ours(after))]
    handles += [layer.register_forward_hook(ours(layer_hook(name))) for name, layer in layers.items()]
    try:
        with uncompiled_calls(), suppress(_Enough):
            yield
    finally:
        for handle in handles:
            handle.remove()


def uncompiled_calls() -> AbstractContextManager:
    """Within it, modules under `torch.compile` run uncompiled, so that their hooks are called."""
    # Compiled modules have imported dynamo already. Importing it takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def is_of_weight(layer: torch.nn.Linear, hidden: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Whether a linear map's output is the product with its weight, checked for one token: a bool on the device."""
    x, y = hidden.flatten(0, -2)[:1], output.detach().flatten(0, -2)[:1]
    bias = None if layer.bias is None else layer.bias.detach().to(x.dtype)
    expected = torch.nn.functional.linear(x, layer.weight.detach().to(x.dtype), bias)
    tolerance = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 0.05
    return ~((y - expected).abs().amax() > tolerance * expected.abs().amax())  # NaN is reported elsewhere


class _Calls:
    """The layers that network call `number` has called so far; `parts`: layer name to the rows of each of its calls."""

    def __init__(self, network: torch.nn.Module, layers: Mapping[str, torch.nn.Module], rows: int | None):
        self.rows, self.number, self.within = rows, -1, False
        self.parts: dict[str, list[int]] = {name: [] for name in layers}
        self.blocks = _chunked_blocks(network, layers)

    def begin(self) -> None:
        self.number, self.within = self.number + 1, True
        self.parts = {name: [] for name in self.parts}

    def add(self, name: str, rows: int) -> None:
        if self.within:  # gradient checkpointing calls layers again after the network call
            self.parts[name].append(rows)

    def end(self) -> dict[str, Joint]:
        """The joint of each layer that was called in parts; raises RuntimeError like `hooked`."""
        self.within = False
        if self.rows is None and self.parts:
            self.rows = sum(next(iter(self.parts.values())))
        return {name: joint for name, parts in self.parts.items() if (joint := self._joint(name, parts))}

    def _joint(self, name: str, parts: list[int]) -> Joint | None:
        if parts == [self.rows]:
            return None
        block = self.blocks.get(name)
        if len(parts) > 1 and block is not None and block._chunk_size is not None:
            if block._chunk_dim % 3 == 0 and sum(parts) == self.rows:
                return "rows"
            if block._chunk_dim % 3 == 1 and set(parts) == {self.rows}:
                return "tokens"
        if len(parts) == 1:
            raise RuntimeError(
                f"layer {name} was called on {parts[0]} rows in network call {self.number}, where {self.rows} were "
                "expected: the sampler splits its batches, or a cache leaves out half of them (switch it off, "
                "`disable_cache()`). Use `batch_size=1`, or a sampler that calls the network once a step."
            )
        raise RuntimeError(
            f"layer {name} was called {len(parts)} times in network call {self.number}, where one call of every layer "
            "is expected. Likely causes: blocks that are cached or skipped (switch it off, `disable_cache()`); fused "
            "projections (`unfuse_qkv_projections()`); feed-forward layers in chunks that diffusers did not make "
            "(`set_chunk_feed_forward(None)`); a compiled or exported network that calls no hooks (load the pipeline "
            "again without it)."
        )


def _chunked_blocks(network: torch.nn.Module, layers: Mapping[str, torch.nn.Module]) -> dict[str, Any]:
    """The transformer block of each feed-forward layer that may be called in chunks."""
    modules, blocks = named_modules(network), {}
    for name in layers:
        block, _, rest = name.rpartition(".ff")
        if rest and hasattr(modules.get(block), "_chunk_size"):
            blocks[name] = modules[block]
    return blocks
