"""The adapter for diffusers' `StableDiffusionPipeline`, of any UNet with `FeedForward` blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .conditioning import Conditioning
from .plain import check_plain, only_shapes
from .protocol import Solver
from .sampling import multistep

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class StableDiffusionDenoiser:
    """See `Denoiser`. The scheduler is the pipeline's present one. All else is looked up once (for device and dtype,
    diffusers goes through all modules): after `pipe.to(...)`, or with another UNet, take a new denoiser.
    """

    def __init__(self, pipe: StableDiffusionPipeline):
        self.pipe = pipe
        self.network, self.tokenizer = pipe.unet, pipe.tokenizer
        size = pipe.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = (pipe.unet.config.in_channels, height, width)
        self.image_shape = (height * pipe.vae_scale_factor, width * pipe.vae_scale_factor)
        self.source = str(pipe.config.get("_name_or_path") or "")

    @property
    def scheduler(self) -> Any:
        return self.pipe.scheduler

    @cached_property
    def device(self) -> torch.device:
        return self.pipe.device

    @cached_property
    def dtype(self) -> torch.dtype:
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
        """As the protocol; raises ValueError if the UNet has none."""
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
        """As the protocol: PNDM as SD1.4 has it (`skip_prk_steps`) makes one call more than steps."""
        self.scheduler.set_timesteps(steps)
        return len(self.scheduler.timesteps)

    def call_rows(self, prompts: int, guidance_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """As the protocol: diffusers puts the unconditional half first."""
        once = torch.arange(prompts)
        if not self._guided(guidance_scale):
            return once, torch.ones(prompts, dtype=torch.bool)
        return once.repeat(2), torch.tensor([False, True]).repeat_interleave(prompts)

    def _guided(self, guidance_scale: float) -> bool:
        """Whether a call has two halves; not where the guidance was distilled into the network (LCM)."""
        return guidance_scale > 1 and self.network.config.time_cond_proj_dim is None

    def _call_arguments(self, prompts: list[str] | Conditioning, guidance_scale: float) -> dict[str, Any]:
        """What the pipeline is called with for some prompts; raises ValueError as `_embeddings`."""
        if isinstance(prompts, Conditioning):
            return {"prompt_embeds": _embeddings(prompts)}
        return {"prompt": prompts}  # the pipeline embeds captions itself

    def sample(
        self,
        prompts: list[str] | Conditioning,
        latents: torch.Tensor,
        steps: int,
        guidance_scale: float,
        solver: Solver = "own",
    ) -> torch.Tensor:
        """As the protocol; raises ValueError as `_embeddings`."""
        text = self._call_arguments(prompts, guidance_scale)
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
        vae = self.pipe.vae
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device, vae.dtype) / 127.5 - 1
        return vae.encode(x).latent_dist.mean * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        vae = self.pipe.vae
        x = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        x = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return (x * 255).round().astype(np.uint8)

    def parts(self) -> Mapping[str, torch.nn.Module]:
        return {"unet": self.network, "vae": self.pipe.vae, "text_encoder": self.pipe.text_encoder}


def _embeddings(conditioning: Conditioning) -> torch.Tensor:
    """The token embeddings; raises ValueError for more than these, as another model's conditioning holds."""
    if more := [name for name in conditioning.tensors() if name != "embeddings"]:
        raise ValueError(f"Stable Diffusion takes token embeddings alone; this conditioning has {', '.join(more)} too.")
    return conditioning.embeddings


# --- speed only: no device synchronization per step -------------------------------------------------------------------


def _on_host(scheduler: Any) -> Any:
    """A copy of the scheduler that leaves its time steps on the host, where its tables are.

    diffusers puts them on the device and copies each back to look it up, two or three times a network call. Every such
    copy waits until the device has finished.
    """
    host = copy.copy(scheduler)
    host.set_timesteps = lambda steps, device=None, **options: type(host).set_timesteps(host, steps, **options)
    return host


def _steps_on(device: torch.device, steps: int) -> Callable[[Any, tuple], tuple]:
    """A hook that replaces a network's time step by its equal on the device, without a copy: from one table."""
    table = torch.arange(steps, device=device)

    def hook(module: torch.nn.Module, args: tuple) -> tuple:
        if len(args) < 2 or not isinstance(args[1], torch.Tensor) or args[1].is_floating_point():
            return args
        return (args[0], table[int(args[1])], *args[2:])

    return hook
