"""The adapter for diffusers' `StableDiffusionPipeline`, of any UNet with `FeedForward` blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .conditioning import Conditioning
from .protocol import Solver
from .sampling import multistep

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class StableDiffusionDenoiser:
    """The adapter for diffusers' `StableDiffusionPipeline`, of any UNet with `FeedForward` blocks."""

    def __init__(self, pipe: StableDiffusionPipeline):
        self.pipe = pipe
        self.network, self.tokenizer, self.scheduler = pipe.unet, pipe.tokenizer, pipe.scheduler
        size = pipe.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = (pipe.unet.config.in_channels, height, width)
        self.image_shape = (height * pipe.vae_scale_factor, width * pipe.vae_scale_factor)
        self.source = str(pipe.config.get("_name_or_path") or "")

    @cached_property
    def device(self) -> torch.device:
        """Looked up once: diffusers goes through all modules for it."""
        return self.pipe.device

    @cached_property
    def dtype(self) -> torch.dtype:
        """As `device`."""
        return self.network.dtype

    def layers(self) -> dict[str, torch.nn.Linear]:
        """As the protocol.

        Raises:
            ValueError: the UNet holds no `FeedForward` block, or one whose second map is not plain (`check_plain`).
        """
        from diffusers.models.attention import FeedForward

        unet = self.network
        names = {module: name for name, module in unet.named_modules()}
        # The order of registration is down, up, mid; that of execution is down, mid, up.
        blocks = [*unet.down_blocks, *([unet.mid_block] if unet.mid_block is not None else []), *unet.up_blocks]
        forwards = [m for block in blocks for m in block.modules() if isinstance(m, FeedForward)]
        if not forwards:
            raise ValueError(
                f"this {type(unet).__name__} holds no FeedForward blocks: there is nothing to capture or prune."
            )
        layers = {f"{names[m]}.net.2": m.net[2] for m in forwards}
        shapes = only_shapes(unet)
        for name, layer in layers.items():
            check_plain(name, layer, shapes)
        return layers

    def value_layers(self) -> dict[str, torch.nn.Linear]:
        """As the protocol.

        Raises:
            ValueError: the UNet has none.
        """
        layers = {
            name: module
            for name, module in self.network.named_modules()
            if name.endswith("attn2.to_v") and name.startswith(("down_blocks", "mid_block"))
        }
        if not layers:
            raise ValueError(
                f"this {type(self.network).__name__} has no cross-attention in its down and middle blocks."
            )
        return layers

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """As the protocol; without gradients."""
        with torch.no_grad():
            return Conditioning(self.pipe.encode_prompt(list(prompts), self.device, 1, False)[0])

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """As the protocol; raises ValueError as `_embeddings`."""
        embeddings = _embeddings(conditioning).to(self.dtype)
        return self.network(latents, t, encoder_hidden_states=embeddings, return_dict=False)[0]

    def calls(self, steps: int) -> int:
        """As the protocol: PNDM makes one call more than steps."""
        self.scheduler.set_timesteps(steps)
        return len(self.scheduler.timesteps)

    def call_rows(self, prompts: int, guidance_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """As the protocol: diffusers puts the unconditional half first."""
        once = torch.arange(prompts)
        if guidance_scale <= 1:
            return once, torch.ones(prompts, dtype=torch.bool)
        return once.repeat(2), torch.tensor([False, True]).repeat_interleave(prompts)

    def sample(
        self,
        prompts: list[str] | Conditioning,
        latents: torch.Tensor,
        steps: int,
        guidance_scale: float,
        solver: Solver = "own",
    ) -> torch.Tensor:
        """As the protocol; raises ValueError as `_embeddings`."""
        text: dict[str, Any] = {"prompt": prompts}  # the pipeline embeds captions itself
        if isinstance(prompts, Conditioning):
            text = {"prompt_embeds": _embeddings(prompts)}
        options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "output_type": "latent"}
        own = self.pipe.scheduler
        handle = self.network.register_forward_pre_hook(_steps_on(self.device, own.config.num_train_timesteps))
        try:
            self.pipe.scheduler = _on_host(multistep(own) if solver == "multistep" else own)
            return self.pipe(**text, latents=latents, **options).images
        finally:
            self.pipe.scheduler = own
            handle.remove()

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> torch.Tensor:
        """As the protocol."""
        vae = self.pipe.vae
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device, vae.dtype) / 127.5 - 1
        return vae.encode(x).latent_dist.mean * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """As the protocol."""
        vae = self.pipe.vae
        x = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        x = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return (x * 255).round().astype(np.uint8)

    def parts(self) -> Mapping[str, torch.nn.Module]:
        """As the protocol."""
        return {"unet": self.network, "vae": self.pipe.vae, "text_encoder": self.pipe.text_encoder}


def _embeddings(conditioning: Conditioning) -> torch.Tensor:
    """The token embeddings.

    Raises:
        ValueError: it holds more than these, as another model's conditioning does; the UNet has no use for that.
    """
    if more := [name for name in conditioning.tensors() if name != "embeddings"]:
        raise ValueError(f"Stable Diffusion takes token embeddings alone; this conditioning has {', '.join(more)} too.")
    return conditioning.embeddings


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
    elif type(layer) is not torch.nn.Linear:
        what, first = kind, "load the model without quantization, with torch's own layers"
    elif type(weight) is torch.Tensor:  # as pruning and weight normalization of torch.nn.utils leave it
        what, first = "computed at each call", "call torch.nn.utils.prune.remove(layer, 'weight') or its like first"
    elif type(weight) is not torch.nn.Parameter or weight.dtype not in FLOATS:
        what, first = f"stored as {type(weight).__name__} of {weight.dtype}", "load the model in a plain floating dtype"
    elif weight.is_meta and not shapes:
        what, first = "offloaded", "load the model without sequential offloading"
    else:
        return
    raise ValueError(f"layer {name} is no plain linear map with a floating weight, but {what}: {first}.")


def _on_host(scheduler: Any) -> Any:
    """The scheduler with its time steps left on the host.

    diffusers puts them on the device and looks each up in tables on the host: a transfer back, for which the device is
    waited, two or three times a network call. From the host there is none.
    """
    host = copy.copy(scheduler)
    host.set_timesteps = lambda steps, device=None, **options: type(host).set_timesteps(host, steps, **options)
    return host


def _steps_on(device: torch.device, steps: int) -> Callable[[Any, tuple], tuple]:
    """A hook that gives a network its time step on the device, from one table: a copy a call is waited for."""
    table = torch.arange(steps, device=device)

    def hook(module: torch.nn.Module, args: tuple) -> tuple:
        if len(args) < 2 or not isinstance(args[1], torch.Tensor) or args[1].is_floating_point():
            return args
        return (args[0], table[int(args[1])], *args[2:])

    return hook
