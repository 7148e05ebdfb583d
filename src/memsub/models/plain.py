"""Checks that layers are plain: only layers that multiply with their `weight` can be captured and edited.

    >>> name, layer = next(iter(as_denoiser(pipe).layers().items()))
    >>> check_plain(name, layer) is named_modules(pipe.unet)[name]
    True

Names and weights do not depend on how the network is run: a layer that `torch.compile` wraps keeps its name, and an
adapter that is fused into a layer's weight is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes in which a layer can compute. (8-bit floats are for storage only.)"""
_COMPILED = "_orig_mod"
"""The attribute in which `torch.compile(module)` keeps the wrapped module."""


# --- names ------------------------------------------------------------------------------------------------------------


def uncompiled(module: Any) -> Any:
    """The original module, if this is `torch.compile(module)`; else the module itself."""
    while hasattr(module, _COMPILED):
        module = getattr(module, _COMPILED)
    return module


def plain_name(name: str) -> str:
    """The name of a module or tensor without the parts that `torch.compile` adds."""
    return ".".join(part for part in name.split(".") if part != _COMPILED) if _COMPILED in name else name


def named_modules(network: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """All modules by name; compiled modules keep their original names."""
    return {plain_name(name): module for name, module in network.named_modules()}  # of two the inner one stays


def named_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name, as if nothing were compiled and fused adapters were unloaded."""
    beneath = {plain_name(name) for name, m in module.named_modules() if without_adapter(m) is not m}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            continue  # some modules store other objects there
        parts = plain_name(name).split(".")
        owner = next((i for i in range(len(parts)) if ".".join(parts[:i]) in beneath), None) if beneath else None
        if owner is not None:
            if parts[owner] != "base_layer":
                continue  # a tensor of the adapter
            del parts[owner]
        yield ".".join(parts), tensor


def without_adapter(layer: Any) -> Any:
    """The base layer of a peft adapter that is fused into its weight or switched off; else the layer itself."""
    while hasattr(layer, "base_layer"):
        fused, off = getattr(layer, "merged", False), getattr(layer, "disable_adapters", False)
        if fused == off and getattr(layer, "active_adapters", True):  # both: the next call would unfuse it
            break
        layer = layer.base_layer
    return layer


# --- the rule ---------------------------------------------------------------------------------------------------------


def only_shapes(network: torch.nn.Module) -> bool:
    """Whether a network was made without numbers, to estimate memory: all its tensors are on the device "meta".

    An offloaded network also keeps its weights there between calls; accelerate's hooks tell it apart.
    """
    if not all(parameter.is_meta for parameter in network.parameters()):
        return False
    return not any(hasattr(module, "_hf_hook") for module in network.modules())


def check_plain(name: str, layer: torch.nn.Module, shapes: bool = False, linear: bool = True) -> Any:
    """Raises ValueError if a layer does not multiply with its `weight`, or if that cannot be set to zero in place.

    Capture and edit read and write `layer.weight`. Adapters add to it, quantization packs it, parametrizations compute
    it, and offloading moves it: then an edit would have no effect, or a wrong one.

    Args:
        shapes: allow weights on the device "meta" (`only_shapes`).
        linear: require a linear map; an edit may also set weights of other layers.

    Returns:
        The layer that holds the weight, without the wrappers of `torch.compile` and of a fused adapter.

    Raises:
        ValueError: the layer is not plain; the message names the layer, the reason, and what to call first.
    """
    layer = uncompiled(without_adapter(uncompiled(layer)))
    weight: Any = getattr(layer, "weight", None)
    kind = f"{type(layer).__module__.split('.')[0]}'s {type(layer).__name__}"
    if hasattr(layer, "base_layer"):
        what, first = kind, "fuse the adapter first: pipe.fuse_lora(), then pipe.unload_lora_weights()"
    elif torch.nn.utils.parametrize.is_parametrized(layer):
        what, first = "parametrized", "call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first"
    elif type(weight) is torch.Tensor:  # as pruning and weight normalization in torch.nn.utils leave it
        what, first = "computed at each call", "call torch.nn.utils.prune.remove(layer, 'weight') or its like first"
    elif linear and type(layer) is not torch.nn.Linear:
        what, first = kind, "load the model without quantization, with torch's own layers"
    elif _is_patched(layer):
        what, first = "one whose `forward` was replaced", "take off what replaced it, or fuse it into the weight"
    elif type(weight) is not torch.nn.Parameter or (weight.dtype not in FLOATS and not is_cast(layer)):
        what, first = f"stored as {type(weight).__name__} of {weight.dtype}", "load the model in a plain floating dtype"
    elif weight.is_meta and not shapes:
        what, first = "offloaded", "load the model without sequential offloading"
    else:
        return layer
    expected = "linear map" if linear else "layer"
    raise ValueError(f"layer {name} is no plain {expected} with a floating weight, but {what}: {first}.")


def check_no_cache(network: torch.nn.Module) -> None:
    """Raises ValueError if hooks of diffusers reuse the outputs of blocks from earlier steps."""
    for name, module in named_modules(network).items():
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        if kept := [hook for hook in hooks if any(word in hook for word in ("cache", "fbc_", "broadcast"))]:
            raise ValueError(
                f"{name} keeps what it returned at earlier steps ({kept[0]}), so that an image depends on those before "
                f"it: call disable_cache(), or HookRegistry's remove_hook({kept[0]!r}), first."
            )


def is_cast(layer: torch.nn.Module) -> bool:
    """Whether diffusers' layerwise casting stores the weight in fewer bits and casts it for each call."""
    registry = getattr(layer, "_diffusers_hook", None)
    return registry is not None and registry.get_hook("layerwise_casting") is not None


def _is_patched(layer: torch.nn.Module) -> bool:
    """Whether a script replaced the layer's `forward`. (Offloading, casting and compilation also do, without harm.)"""
    forward = vars(layer).get("forward")
    harmless = hasattr(layer, "_hf_hook") or hasattr(layer, "_diffusers_hook")
    return forward is not None and not harmless and not hasattr(forward, "_torchdynamo_orig_callable")
