"""`Denoiser`: the interface through which the library uses any text-to-image model.

    >>> denoiser = as_denoiser(pipe)        # takes a StableDiffusionPipeline or a Denoiser
    >>> list(denoiser.layers())[0]          # the second feed-forward maps by name, in execution order
    'down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2'
    >>> conditioning = denoiser.embed(["a red heart"])
    >>> predicted = denoiser.predict(torch.zeros(1, 4, 8, 8), torch.tensor(500), conditioning)

An adapter is a class with these members, for one kind of pipeline. A package lists it in its pyproject.toml:

    [project.entry-points."memsub.adapters"]
    NameOfThePipelinesClass = "my_package:AdapterClass"

Capture and pruning require network, scheduler, device, dtype, latent_shape, source, layers, calls, call_rows and
sample; `generate` also requires decode. Metrics, attacks, baselines and runs require the other members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

from ..registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers import PreTrainedTokenizerBase

    from .conditioning import Conditioning


Solver = Literal["own", "multistep"]
"""The solver of a sampling: the model's own scheduler, or `multistep` on its noise schedule."""


@runtime_checkable
class Denoiser(Protocol):
    """A diffusion model that samples latents for text.

    Shapes: B rows of a batch, (C, H, W) of a latent.

    Attributes:
        network: the module whose layers are captured and edited.
        tokenizer: tokenizer of captions.
        scheduler: a scheduler with the interface of diffusers: `set_timesteps`, `timesteps`, `step`, `config`, ...
        device, dtype: those of the network.
        latent_shape: (C, H, W).
        image_shape: (height, width) in pixels.
        source: folder or hub id that it was loaded from; empty if unknown.
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

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of captions, one row a caption."""
        ...

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The network's prediction (see `models.prediction`) for noisy latents (B, C, H, W), in the same shape.

        `t` is a step of the schedule, or one step a row, (B,).
        """
        ...

    def calls(self, steps: int) -> int:
        """Number of network calls of a sampling in `steps` steps. (PNDM in SD1.4 makes one call more than steps.)"""
        ...

    def call_rows(self, prompts: int, guidance_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """For each row of a call on so many prompts: the index of its prompt, and whether it is conditional; (B,)."""
        ...

    def sample(
        self,
        prompts: list[str] | Conditioning,
        latents: torch.Tensor,
        steps: int,
        guidance_scale: float,
        solver: Solver = "own",
        generators: Sequence[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """Denoised latents (B, C, H, W) of captions, or of their conditioning, from initial noise of the same shape.

        It calls the module `network` (so that hooks run) `calls(steps)` times, with rows in the order of `call_rows`,
        and does not catch exceptions, because one of them is used to end a sampling early. `generators`, one a latent,
        give the noise of `scheduler.step`; they are None for samplers that draw no noise.
        """
        ...

    def encode(self, images: np.ndarray) -> torch.Tensor:
        """Encodes uint8 images (B, height, width, 3) to scaled latents (B, C, H, W)."""
        ...

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Decodes scaled latents (B, C, H, W) to uint8 (B, height, width, 3); raises FloatingPointError for NaN."""
        ...

    def parts(self) -> Mapping[str, torch.nn.Module]:
        """All modules that an image depends on, including the network, by name."""
        ...


Pipeline: TypeAlias = "StableDiffusionPipeline | Denoiser"

ADAPTERS: Registry[Callable[[Any], Denoiser]] = Registry(
    "memsub.adapters",
    "kind of pipeline",
    {"StableDiffusionPipeline": "memsub.models.stable_diffusion:StableDiffusionDenoiser"},
)
"""Class name of a pipeline to its adapter. (Names, because importing diffusers takes seconds.)"""


def as_denoiser(pipe: Pipeline) -> Denoiser:
    """The denoiser of a pipeline; a denoiser is returned unchanged. Raises TypeError if there is no adapter."""
    for kind in type(pipe).__mro__:
        if kind.__name__ in ADAPTERS:
            return ADAPTERS[kind.__name__](pipe)
    if isinstance(pipe, Denoiser):
        return pipe
    raise TypeError(
        f"{type(pipe).__name__} is no pipeline that memsub knows; expected {', '.join(ADAPTERS)}, or a "
        "memsub.models.Denoiser."
    )


def rows_of_call(prompts: int, guided: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`Denoiser.call_rows` for models whose guided calls have the unconditional half first, as in diffusers."""
    import torch

    once = torch.arange(prompts, device="cpu")  # whatever the default device is
    if not guided:
        return once, torch.ones(prompts, dtype=torch.bool, device="cpu")
    return once.repeat(2), torch.tensor([False, True], device="cpu").repeat_interleave(prompts)
