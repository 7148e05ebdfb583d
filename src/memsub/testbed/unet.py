"""The embedded model's UNet: diffusers' own, with feed-forward rows of any width.

    unet = SceneUNet(**levels, widening=3)      # rows of 768 to 1,152 weights instead of 256 to 384
    unet.save_pretrained(folder)                # an ordinary diffusers folder; pipelines load it

Block types and module names are SD1.4's; diffusers itself fixes the width of a feed-forward block at four times its
level's.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward

__all__ = ["ModelMixin", "SceneUNet"]  # ModelMixin: diffusers looks it up where a pipeline's parts come from

_ROWS = 128


def _is_bare(layer: torch.nn.Module) -> bool:
    """Whether calling a layer does no more than multiply with its float32 weight, so that it need not be called."""
    if not isinstance(layer, torch.nn.Linear):
        return False
    hooks, weight = (layer._forward_pre_hooks, layer._forward_hooks), layer.weight
    plain = type(layer) is torch.nn.Linear and type(weight) is torch.nn.Parameter and weight.dtype == torch.float32
    return plain and not any(hooks) and "forward" not in layer.__dict__


class ChunkedGEGLU(GEGLU):
    """GEGLU, 128 tokens at a time where nothing is trained: what lies between its maps then stays in the CPU's cache.

    Every chunk goes through the same buffer, so that memory is allocated for the result alone. (In bfloat16 half as
    much lies between the maps, and parts gain nothing.) A projection that is more than a plain linear map (`_is_bare`),
    such as one with hooks or an adapter, is called as it is.
    """

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        on_cpu = hidden_states.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if not (on_cpu and _is_bare(self.proj)) or torch.is_grad_enabled() or hidden_states.dtype != torch.float32:
            return super().forward(hidden_states, *args, **kwargs)
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        width = self.proj.out_features // 2
        out, projected = rows.new_empty(len(rows), width), rows.new_empty(min(_ROWS, len(rows)), 2 * width)
        for part, into in zip(rows.split(_ROWS), out.split(_ROWS), strict=True):
            both = torch.mm(part, self.proj.weight.t(), out=projected[: len(part)]).add_(self.proj.bias)
            torch.mul(both[:, :width], self.gelu(both[:, width:]), out=into)
        return out.view(*hidden_states.shape[:-1], -1)


class SceneUNet(UNet2DConditionModel):
    """A UNet whose feed-forward rows are `widening` times as wide as diffusers makes them.

    Args:
        widening: 1 or more.
        levels: arguments of `UNet2DConditionModel`, such as `memsub_extra.training.stages.LEVELS`.

    Raises:
        ValueError: a widening below 1.
    """

    def __init__(self, widening: int = 1, **levels: Any):
        if widening < 1:
            raise ValueError(f"widening must be 1 or more; got {widening}.")
        super().__init__(**levels)
        self.register_to_config(widening=widening)
        for block in [m for m in self.modules() if isinstance(getattr(m, "ff", None), FeedForward)]:
            dim = block.ff.net[2].out_features
            block.ff = FeedForward(dim, inner_dim=4 * widening * dim, activation_fn="geglu")
            block.ff.net[0] = ChunkedGEGLU(dim, 4 * widening * dim)


# diffusers reads the signature to learn which entries of a config.json are arguments.
_parent = inspect.signature(UNet2DConditionModel.__init__)
_widening = inspect.Parameter("widening", inspect.Parameter.KEYWORD_ONLY, default=1)
SceneUNet.__init__.__signature__ = _parent.replace(parameters=[*_parent.parameters.values(), _widening])  # type: ignore[attr-defined]
