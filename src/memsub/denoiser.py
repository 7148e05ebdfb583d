"""What the library needs of a text-to-image model, in one protocol: nothing else names a pipeline's parts.

    denoiser = as_denoiser(pipe)                # of a StableDiffusionPipeline, or of what is a Denoiser already
    denoiser.layers()                           # the second feed-forward maps by name, in execution order
    denoiser.embed(["a red heart"])             # (1, tokens, width)
    denoiser.predict(latents, t, embeddings)    # what the network predicts for a batch
    fingerprint(pipe)                           # of the network's weights: what edits and statistics belong to

Another kind of model is one class with these methods and one line in `ADAPTERS`.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
import torch

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import PreTrainedTokenizerBase


Solver = Literal["own", "multistep"]
"""What sampling is stepped by: the model's own scheduler, or `multistep` of its noise schedule."""


@runtime_checkable
class Denoiser(Protocol):
    """A diffusion model that draws latents for text.

    Attributes:
        network: the module whose weights are looked at and edited.
        tokenizer: of its captions.
        scheduler: diffusers' interface: `set_timesteps`, `timesteps`, `step`, `alphas_cumprod`, ...
        device, dtype: of the network.
        latent_shape: (channels, height, width).
        image_shape: (height, width) in pixels.
        source: the folder or hub id it was loaded from; empty if unknown.
    """

    network: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    scheduler: Any
    device: torch.device
    dtype: torch.dtype
    latent_shape: tuple[int, int, int]
    image_shape: tuple[int, int]
    source: str

    def layers(self) -> dict[str, torch.nn.Linear]:
        """The second maps of the feed-forward blocks by module name, in execution order."""
        ...

    def value_layers(self) -> dict[str, torch.nn.Linear]:
        """Value projections of the cross-attention on the way down and in the middle, by module name."""
        ...

    def blocks(self) -> dict[str, torch.nn.Module]:
        """Residual blocks and transformers by module name: each maps features to features of the same resolution."""
        ...

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings, shape (prompts, tokens, width)."""
        ...

    def predict(self, latents: torch.Tensor, t: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """What the network predicts (noise or v) for noisy latents, shape of `latents`; `t` is one, or one a row."""
        ...

    def calls(self, steps: int) -> int:
        """Network calls that sampling in `steps` steps makes."""
        ...

    def call_rows(self, prompts: int, guidance_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """For each row of a network call on so many prompts: which prompt it is of, and whether it is conditional."""
        ...

    def sample(
        self,
        prompts: list[str] | torch.Tensor,
        latents: torch.Tensor,
        steps: int,
        guidance_scale: float,
        solver: Solver = "own",
    ) -> torch.Tensor:
        """Denoised latents of captions, or of their embeddings, from initial noise: shape of `latents`."""
        ...

    def encode(self, images: np.ndarray) -> torch.Tensor:
        """Scaled latents of uint8 images (n, height, width, 3)."""
        ...

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """uint8 images (n, height, width, 3) of scaled latents."""
        ...

    def parts(self) -> Mapping[str, torch.nn.Module]:
        """Every module that an image depends on, the network included."""
        ...


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
            ValueError: the UNet holds no `FeedForward` block.
        """
        from diffusers.models.attention import FeedForward

        unet = self.network
        names = {module: name for name, module in unet.named_modules()}
        # The order of registration is down, up, mid; that of execution is down, mid, up.
        blocks = [*unet.down_blocks, *([unet.mid_block] if unet.mid_block is not None else []), *unet.up_blocks]
        found = [m for block in blocks for m in block.modules() if isinstance(m, FeedForward)]
        if not found:
            raise ValueError(
                f"this {type(unet).__name__} holds no FeedForward blocks: there is nothing to capture or prune."
            )
        return {f"{names[m]}.net.2": m.net[2] for m in found}

    def value_layers(self) -> dict[str, torch.nn.Linear]:
        """As the protocol.

        Raises:
            ValueError: there are none.
        """
        found = {
            name: module
            for name, module in self.network.named_modules()
            if name.endswith("attn2.to_v") and name.startswith(("down_blocks", "mid_block"))
        }
        if not found:
            raise ValueError(
                f"this {type(self.network).__name__} has no cross-attention in its down and middle blocks."
            )
        return found

    def blocks(self) -> dict[str, torch.nn.Module]:
        """As the protocol."""
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        kinds = (ResnetBlock2D, Transformer2DModel)
        return {name: module for name, module in self.network.named_modules() if isinstance(module, kinds)}

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """As the protocol; without gradients."""
        with torch.no_grad():
            return self.pipe.encode_prompt(list(prompts), self.device, 1, False)[0]

    def predict(self, latents: torch.Tensor, t: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """As the protocol."""
        return self.network(latents, t, encoder_hidden_states=embeddings.to(self.dtype), return_dict=False)[0]

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
        prompts: list[str] | torch.Tensor,
        latents: torch.Tensor,
        steps: int,
        guidance_scale: float,
        solver: Solver = "own",
    ) -> torch.Tensor:
        """As the protocol."""
        given = {"prompt_embeds": prompts} if isinstance(prompts, torch.Tensor) else {"prompt": prompts}
        options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "output_type": "latent"}
        own = self.pipe.scheduler
        handle = self.network.register_forward_pre_hook(_steps_on(self.device, own.config.num_train_timesteps))
        try:
            self.pipe.scheduler = _on_host(multistep(own) if solver == "multistep" else own)
            return self.pipe(**given, latents=latents, **options).images
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


class _Enough(Exception):
    """Ends sampling after the last network call that is wanted."""


@contextmanager
def ended_after(denoiser: Denoiser, calls: int | None) -> Iterator[None]:
    """While open, sampling ends after so many network calls, and returns nothing; with None it goes on to its end."""
    made = 0

    def count(module: torch.nn.Module, args: tuple, output: Any) -> None:
        nonlocal made
        made += 1
        if made == calls:
            raise _Enough

    handle = denoiser.network.register_forward_hook(count)
    try:
        with suppress(_Enough):
            yield
    finally:
        handle.remove()


def multistep(scheduler: Any) -> Any:
    """DPM-Solver++ (Lu et al. 2022) of second order on a scheduler's noise schedule, from pure noise on.

    Few-step samplings of diffusers' `leading` spacing begin below the top of the schedule: on the embedded model ten
    steps of it find a tenth less replicated after pruning than fifty do, eight of these as much (`tools.solvers`).
    """
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler.from_config(scheduler.config, timestep_spacing="trailing")


def _on_host(scheduler: Any) -> Any:
    """The scheduler with its time steps left on the host.

    diffusers puts them on the device and looks each up in tables on the host: a transfer back, for which the device is
    waited, two or three times a network call. From the host there is none.
    """
    found = copy.copy(scheduler)
    found.set_timesteps = lambda steps, device=None, **options: type(found).set_timesteps(found, steps, **options)
    return found


def _steps_on(device: torch.device, steps: int) -> Callable[[Any, tuple], tuple]:
    """A hook that gives a network its time step on the device, from one table: a copy a call is waited for."""
    table = torch.arange(steps, device=device)

    def hook(module: torch.nn.Module, args: tuple) -> tuple:
        if len(args) < 2 or not isinstance(args[1], torch.Tensor) or args[1].is_floating_point():
            return args
        return (args[0], table[int(args[1])], *args[2:])

    return hook


def to_host(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begins to copy a tensor to the host; what is returned waits for it. A GPU computes on meanwhile."""
    there = tensor.to("cpu", non_blocking=tensor.is_cuda)
    if not tensor.is_cuda:
        return lambda: there
    arrived = torch.cuda.current_stream(tensor.device).record_event()

    def wait() -> torch.Tensor:
        arrived.synchronize()
        return there

    return wait


ADAPTERS: dict[str, Callable[[Any], Any]] = {"StableDiffusionPipeline": StableDiffusionDenoiser}
"""Name of a pipeline's class to what makes a denoiser of it. (By name: importing diffusers takes seconds.)"""

Pipeline: TypeAlias = "StableDiffusionPipeline | Denoiser"


def as_denoiser(pipe: Pipeline) -> Denoiser:
    """The denoiser behind a pipeline; a denoiser is returned as it is.

    Raises:
        TypeError: no adapter knows this kind of pipeline; names those that are known.
    """
    for kind in type(pipe).__mro__:
        if kind.__name__ in ADAPTERS:
            return ADAPTERS[kind.__name__](pipe)
    if isinstance(pipe, Denoiser):
        return pipe
    raise TypeError(
        f"{type(pipe).__name__} is no pipeline that memsub knows; expected {', '.join(ADAPTERS)}, or a "
        "memsub.denoiser.Denoiser."
    )


def _schedule(denoiser: Denoiser, z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Shares of signal and noise at steps `t` (one a row), and whether the network predicts noise (else v)."""
    alphas = denoiser.scheduler.alphas_cumprod.to(z.device)[t.to(z.device)]
    signal, noise = (a.sqrt()[:, None, None, None].to(z) for a in (alphas, 1 - alphas))
    return signal, noise, denoiser.scheduler.config.prediction_type == "epsilon"


def noised(
    denoiser: Denoiser, z: torch.Tensor, t: torch.Tensor, eps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents with noise `eps` of steps `t` (one a row), and what the network should predict for them: noise or v."""
    signal, noise, epsilon = _schedule(denoiser, z, t)
    return signal * z + noise * eps, eps if epsilon else signal * eps - noise * z


def denoised(denoiser: Denoiser, x: torch.Tensor, t: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """The clean latents that a prediction for noisy ones stands for; the inverse of `expected`."""
    signal, noise, epsilon = _schedule(denoiser, x, t)
    return (x - noise * predicted) / signal if epsilon else signal * x - noise * predicted


def expected(denoiser: Denoiser, x: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """What the network should predict for noisy latents if they stand for these clean ones."""
    signal, noise, epsilon = _schedule(denoiser, x, t)
    eps = (x - signal * z) / noise
    return eps if epsilon else signal * eps - noise * z


_DIGESTS: WeakKeyDictionary[torch.nn.Module, dict[str, tuple[tuple[int, int], bytes]]] = WeakKeyDictionary()


def module_fingerprint(module: torch.nn.Module) -> str:
    """sha256 over a module's parameters and buffers, their names and dtypes.

    Hashing gigabytes takes seconds, so a tensor is hashed again only after it was replaced or written to. (A write
    through `weight.data` hides from PyTorch's count of writes: write under `torch.no_grad()` instead.)
    """
    known, whole = _DIGESTS.setdefault(module, {}), hashlib.sha256()
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        writes = (tensor.data_ptr(), tensor._version)
        if name not in known or known[name][0] != writes:
            digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            known[name] = writes, digest.digest()
        whole.update(known[name][1])
    return whole.hexdigest()


def fingerprint(pipe: Pipeline) -> str:
    """Of the network alone: what statistics, masks and edits belong to."""
    return module_fingerprint(as_denoiser(pipe).network)


def sampler_fingerprint(pipe: Pipeline) -> str:
    """Of everything that an image depends on besides prompt, seed, steps and guidance: modules and scheduler."""
    denoiser = as_denoiser(pipe)
    told = [f"{name} {module_fingerprint(module)}" for name, module in sorted(denoiser.parts().items())]
    config = sorted((k, str(v)) for k, v in dict(getattr(denoiser.scheduler, "config", {})).items())
    told += [type(denoiser.scheduler).__name__, repr(config)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def check_model(pipe: Pipeline, expected: str, told: str) -> None:
    """Raises ValueError naming both models if the pipeline's network is not the one with the `expected` fingerprint."""
    if (found := fingerprint(pipe)) != expected:
        raise ValueError(
            f"{told} another model: the fingerprint of its network is {expected[:12]}, that of this pipeline's is "
            f"{found[:12]} (also different if this pipeline is already edited)."
        )
