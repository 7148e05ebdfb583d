"""Which layers can be captured and edited: plain ones, which multiply with the weight that they show."""

from __future__ import annotations

from typing import Any

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes that a layer can be multiplied with. (Those of 8 bits are storage alone.)"""


def only_shapes(network: torch.nn.Module) -> bool:
    """Whether a network has no numbers on purpose, as for an estimate of memory: all of it lies on the device "meta".

    The weights of an offloaded network lie there, too, between its calls. It is recognized by accelerate's hooks.
    """
    if not all(parameter.is_meta for parameter in network.parameters()):
        return False
    return not any(hasattr(module, "_hf_hook") for module in network.modules())


def check_plain(name: str, layer: torch.nn.Module, shapes: bool = False) -> None:
    """Refuses a layer whose weight is not what the layer multiplies with, or cannot be set to zero in place.

    Capture and edit read and write `layer.weight`. An adapter adds to it, quantization packs it, a parametrization
    computes it, offloading takes it away: an edit would then change nothing, or something else.

    Args:
        shapes: its weight may lie on the device "meta" (`only_shapes`).

    Raises:
        ValueError: it is not plain: names layer, what it is, and what to call first.
    """
    weight: Any = getattr(layer, "weight", None)
    kind = f"{type(layer).__module__.split('.')[0]}'s {type(layer).__name__}"
    if hasattr(layer, "base_layer"):
        what, first = kind, "fuse the adapter first: pipe.fuse_lora(), then pipe.unload_lora_weights()"
    elif torch.nn.utils.parametrize.is_parametrized(layer):
        what, first = "parametrized", "call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') first"
    elif type(weight) is torch.Tensor:  # as pruning and weight normalization of torch.nn.utils leave it
        what, first = "computed at each call", "call torch.nn.utils.prune.remove(layer, 'weight') or its like first"
    elif type(layer) is not torch.nn.Linear:
        what, first = kind, "load the model without quantization, with torch's own layers"
    elif type(weight) is not torch.nn.Parameter or weight.dtype not in FLOATS:
        what, first = f"stored as {type(weight).__name__} of {weight.dtype}", "load the model in a plain floating dtype"
    elif weight.is_meta and not shapes:
        what, first = "offloaded", "load the model without sequential offloading"
    else:
        return
    raise ValueError(f"layer {name} is no plain linear map with a floating weight, but {what}: {first}.")
