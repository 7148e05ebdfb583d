"""The adapter for diffusers' `StableDiffusionPipeline`, of any UNet with `FeedForward` blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .contents import refused
from .plain import check_no_cache, check_plain, named_modules, only_shapes, uncompiled
from .protocol import Solver, rows_of_call
from .sampling import stepped_by

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from .conditioning import Conditioning


class StableDiffusionDenoiser:
    """See `Denoiser`. The scheduler is always the pipeline's present one. Everything else is looked up once, because
    diffusers searches all modules for device and dtype: make a new denoiser after `pipe.to(...)`, or for another UNet.
    """

    def __init__(self, pipe: StableDiffusionPipeline):
        if lacking := [part for part in ("unet", "vae", "scheduler") if getattr(pipe, part, pipe) is None]:
            raise ValueError(f"this pipeline has no {', '.join(lacking)}: load it whole.")
        network = uncompiled(pipe.unet)
        inside = hasattr(network, "merge_and_unload") or "down_blocks" in dict(network.named_children())
        if not (inside and hasattr(network, "config")):
            raise ValueError(
                f"pipe.unet is a {type(network).__name__}, where a UNet is expected, with blocks and configuration of "
                "its own: put the one that it wraps in its place, such as by pipe.unet = pipe.unet.module."
            )
        for sentence in self.refuses(_configs(pipe)):
            raise ValueError(f"this {type(pipe).__name__}: {sentence}")
        self.pipe = pipe
        self.network, self.tokenizer = network, pipe.tokenizer
        size = pipe.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = (pipe.unet.config.in_channels, height, width)
        self.image_shape = (height * pipe.vae_scale_factor, width * pipe.vae_scale_factor)
        self.source = str(pipe.config.get("_name_or_path") or "")
        limit_captions(pipe.tokenizer, getattr(pipe, "text_encoder", None))

    refuses = staticmethod(partial(refused, loaded=True))  # configurations by part to sentences

    @property
    def scheduler(self) -> Any:
        return self.pipe.scheduler

    @cached_property
    def device(self) -> torch.device:
        return self.pipe._execution_device  # an offloaded pipeline computes on another device than it stores weights

    @cached_property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def _called(self) -> Any:
        """The network that the pipeline calls, which may be compiled."""
        return self.pipe.unet if uncompiled(self.pipe.unet) is self.network else self.network

    def layers(self) -> dict[str, torch.nn.Linear]:
        """As in the protocol.

        Raises:
            ValueError: the UNet has no `FeedForward` block, has one whose second map is not plain (`check_plain`), or
                requires the images of an IP-Adapter.
        """
        from diffusers.models.attention import FeedForward

        unet = self.network
        if hasattr(unet, "merge_and_unload"):
            raise ValueError("this UNet lies in a PeftModel: call pipe.unet = pipe.unet.merge_and_unload() first.")
        if getattr(unet, "encoder_hid_proj", None) is not None:
            raise ValueError("this UNet needs an image beside the prompt: call pipe.unload_ip_adapter() first.")
        names = {module: name for name, module in named_modules(unet).items()}
        # Modules are registered in the order down, up, mid, and executed in the order down, mid, up.
        blocks = [*unet.down_blocks, *([unet.mid_block] if unet.mid_block is not None else []), *unet.up_blocks]
        forwards = [m for block in blocks for m in block.modules() if isinstance(m, FeedForward)]
        if not forwards:
            raise ValueError(
                f"this {type(unet).__name__} holds no FeedForward blocks: there is nothing to capture or prune."
            )
        if exported := [name for name, m in named_modules(unet).items() if isinstance(m, torch.jit.ScriptModule)]:
            raise ValueError(f"{exported[0]} of this UNet is exported (TorchScript) and calls no hooks: load it again.")
        shapes = only_shapes(unet)
        layers = {f"{names[m]}.net.2": m.net[2] for m in forwards}
        return {name: check_plain(name, layer, shapes) for name, layer in layers.items()}

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """As in the protocol, without gradients; raises ValueError like `_check_text`."""
        from .conditioning import Conditioning

        self._check_text()
        with torch.no_grad(), evaluated(self.pipe.text_encoder):
            return Conditioning(self.pipe.encode_prompt(list(prompts), self.device, 1, False)[0])

    def _check_text(self) -> None:
        """Raises ValueError if the pipeline lacks a tokenizer or text encoder."""
        if lacking := [part for part in ("text_encoder", "tokenizer") if getattr(self.pipe, part) is None]:
            raise ValueError(
                f"this pipeline has no {' and no '.join(lacking)}, which captions and the unconditional half of a "
                "guided call take: give one that has them, or embeddings (a Conditioning) and guidance_scale=1."
            )

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """As in the protocol; raises ValueError like `_checked`. A network that takes the guidance scale gets 7.5."""
        options: dict[str, Any] = {"encoder_hidden_states": self._checked(conditioning).to(self.dtype)}
        if width := self.network.config.time_cond_proj_dim:
            scale = self.pipe.get_guidance_scale_embedding(torch.full((len(latents),), 7.5 - 1), embedding_dim=width)
            options["timestep_cond"] = scale.to(latents)
        with evaluated(self.network):
            return self._called(latents, t, return_dict=False, **options)[0]

    def _checked(self, conditioning: Conditioning) -> torch.Tensor:
        """The token embeddings; raises ValueError for further inputs or another width, as of another model."""
        if more := [name for name in conditioning.tensors() if name != "embeddings"]:
            raise ValueError(
                f"Stable Diffusion takes token embeddings alone; this conditioning has {', '.join(more)} too."
            )
        width, expected = conditioning.embeddings.shape[-1], self.network.config.cross_attention_dim
        if width != expected:
            raise ValueError(f"embeddings of {width} numbers a token are another model's: this one takes {expected}.")
        return conditioning.embeddings

    def calls(self, steps: int) -> int:
        """As in the protocol. PNDM in SD1.4 (`skip_prk_steps`) makes one call more than steps."""
        self.scheduler.set_timesteps(steps)
        return len(self.scheduler.timesteps)

    def call_rows(self, prompts: int, guidance_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """As in the protocol; diffusers puts the unconditional half first."""
        return rows_of_call(prompts, self._guided(guidance_scale))

    def _guided(self, guidance_scale: float) -> bool:
        """Whether a call has two halves; it has one if the network takes the scale as an input."""
        return guidance_scale > 1 and self.network.config.time_cond_proj_dim is None

    def _call_arguments(self, prompts: list[str] | Conditioning, guidance_scale: float) -> dict[str, Any]:
        """Arguments of the pipeline for some prompts; raises ValueError like `_checked` and `_check_text`."""
        captions = isinstance(prompts, (list, tuple, str))
        if captions or self._guided(guidance_scale):
            self._check_text()
        return {"prompt": prompts} if captions else {"prompt_embeds": self._checked(prompts)}  # type: ignore[arg-type]

    def sample(
        self,
        prompts: list[str] | Conditioning,
        latents: torch.Tensor,
        steps: int,
        guidance_scale: float,
        solver: Solver = "own",
        generators: Sequence[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """As in the protocol; raises ValueError like `_checked`."""
        text = self._call_arguments(prompts, guidance_scale)
        options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "output_type": "latent"}
        options["generator"] = list(generators) if generators else None
        check_no_cache(self.network)
        # A copy with a scheduler of its own: another thread may sample from the same pipeline.
        pipe, own, handles = copy.copy(self.pipe), self.pipe.scheduler, []
        scheduler = stepped_by(own, solver)
        if self._called is self.network and self.network._compiled_call_impl is None:
            # Compiled code would keep the hook forever, and would be recompiled at every step.
            steps_on = _steps_on(self.device, own.config.num_train_timesteps)
            handles.append(self.network.register_forward_pre_hook(steps_on))
            scheduler = _on_host(scheduler)
        if self.pipe.text_encoder is not None and self.pipe.text_encoder.dtype != self.dtype:
            handles.append(self.network.register_forward_pre_hook(_cast_to(self.dtype), with_kwargs=True))
        try:
            pipe.scheduler = scheduler if scheduler is not own else copy.copy(own)
            with evaluated(self.network, self.pipe.text_encoder):
                return pipe(**text, latents=latents, **options).images
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> torch.Tensor:
        from .generation import check_images

        check_images(images)
        vae = self.pipe.vae
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device, vae.dtype) / 127.5 - 1
        with evaluated(vae):
            encoded = vae.encode(x)
        latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents  # AutoencoderTiny
        return latents * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        vae = self.pipe.vae
        latents = latents.to(vae.dtype) / vae.config.scaling_factor
        with evaluated(vae):  # some decoders draw noise: the same for every row
            x = vae.decode(latents, return_dict=False, generator=[torch.Generator().manual_seed(0) for _ in latents])[0]
        from .generation import as_pixels

        return as_pixels((x / 2 + 0.5).clamp(0, 1))

    def parts(self) -> Mapping[str, torch.nn.Module]:
        """As in the protocol, without a text encoder if the pipeline has none."""
        encoders = {name: getattr(self.pipe, name, None) for name in ("text_encoder", "text_encoder_2")}
        return {"unet": self.network, "vae": self.pipe.vae} | {name: part for name, part in encoders.items() if part}


def _configs(pipe: Any) -> dict[str, dict[str, Any]]:
    """Configurations of a pipeline's parts, as saved in a folder; "" is model_index.json."""
    kinds = {name: type(uncompiled(part)) for name, part in pipe.components.items() if part is not None}
    index = {name: [kind.__module__.split(".")[0], kind.__name__] for name, kind in kinds.items()}
    configs: dict[str, Any] = {name: getattr(pipe.components[name], "config", None) for name in kinds}
    configs |= {name: config.to_dict() for name, config in configs.items() if hasattr(config, "to_dict")}
    return {"": index} | {name: dict(config) for name, config in configs.items() if isinstance(config, Mapping)}


def limit_captions(tokenizer: Any, encoder: Any) -> None:
    """Sets the length of a tokenizer that states none to that of its text encoder; diffusers pads captions to it."""
    most = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    if tokenizer is not None and most and getattr(tokenizer, "model_max_length", most + 1) > most:
        tokenizer.model_max_length = most


@contextmanager
def evaluated(*modules: torch.nn.Module | None) -> Iterator[None]:
    """Sets modules to evaluation mode (no dropout), and restores their modes on leaving."""
    training = [m for module in modules if module is not None for m in module.modules() if m.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _cast_to(dtype: torch.dtype) -> Callable[[Any, tuple, dict], tuple[tuple, dict]]:
    """A hook that casts the inputs of the network to its dtype, if the text encoder has another dtype."""

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def hook(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return (cast(args[0]), *args[1:]), {name: cast(value) for name, value in kwargs.items()}

    return hook


# --- speed only: no device synchronization per step -------------------------------------------------------------------


def _on_host(scheduler: Any) -> Any:
    """A copy of the scheduler that keeps its time steps on the host: diffusers copies them back at every call."""
    host = copy.copy(scheduler)
    host.set_timesteps = lambda steps, device=None, **options: type(host).set_timesteps(host, steps, **options)
    return host


def _steps_on(device: torch.device, steps: int) -> Callable[[Any, tuple], tuple]:
    """A hook that takes a network's time step from one table on the device, so that no copy is needed."""
    table = torch.arange(steps, device=device)

    def hook(module: torch.nn.Module, args: tuple) -> tuple:
        if len(args) < 2 or not isinstance(args[1], torch.Tensor) or args[1].is_floating_point():
            return args
        return (args[0], table[int(args[1])], *args[2:])

    return hook
