"""What the library needs of a text-to-image model, in one protocol: nothing else names a pipeline's parts.

    >>> denoiser = as_denoiser(pipe)        # of a StableDiffusionPipeline, or of what is a Denoiser already
    >>> list(denoiser.layers())[0]          # the second feed-forward maps by name, in execution order
    'down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2'
    >>> conditioning = denoiser.embed(["a red heart"])
    >>> predicted = denoiser.predict(torch.zeros(1, 4, 8, 8), torch.tensor(500), conditioning)

Another kind of model is one class with these members, an adapter. A package names it in its pyproject.toml:

    [project.entry-points."memsub.adapters"]
    NameOfThePipelinesClass = "my_package:AdapterClass"

Capture and pruning need network, scheduler, device, dtype, latent_shape, source, layers, calls, call_rows and sample,
`generate` needs decode, too. All others are for metrics, attacks, baselines and runs alone.
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
"""What sampling is stepped by: the model's own scheduler, or `multistep` of its noise schedule."""


@runtime_checkable
class Denoiser(Protocol):
    """A diffusion model that samples latents for text.

    Shapes: B rows of a batch, (C, H, W) of a latent.

    Attributes:
        network: the module whose weights are looked at and edited.
        tokenizer: of its captions.
        scheduler: diffusers' interface: `set_timesteps`, `timesteps`, `step`, `config`, ...
        device, dtype: of the network.
        latent_shape: (C, H, W).
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

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        """What the network is conditioned on for captions, a row a caption."""
        ...

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """What the network predicts (see `models.prediction`) for noisy latents (B, C, H, W), in their shape.

        `t` is one of the schedule's steps, or one a row: (B,).
        """
        ...

    def calls(self, steps: int) -> int:
        """Network calls that sampling in `steps` steps makes; PNDM as SD1.4 has it makes one call more than steps."""
        ...

    def call_rows(self, prompts: int, guidance_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """For each row of a network call on so many prompts: which prompt it is of, and whether it is conditional."""
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
        """Denoised latents (B, C, H, W) of captions, or of their conditioning, from initial noise of that shape.

        It calls the module `network` itself, so that hooks fire, `calls(steps)` times, with rows in the order of
        `call_rows`. It lets exceptions through: one of them ends a sampling early. `generators`, one a latent, are what
        `scheduler.step` draws its noise with; samplers that draw none are not given any.
        """
        ...

    def encode(self, images: np.ndarray) -> torch.Tensor:
        """Scaled latents (B, C, H, W) of uint8 images (B, height, width, 3)."""
        ...

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """uint8 images (B, height, width, 3) of scaled latents (B, C, H, W); raises FloatingPointError for NaN."""
        ...

    def parts(self) -> Mapping[str, torch.nn.Module]:
        """Every module that an image depends on, the network included."""
        ...


Pipeline: TypeAlias = "StableDiffusionPipeline | Denoiser"

ADAPTERS: Registry[Callable[[Any], Denoiser]] = Registry(
    "memsub.adapters",
    "kind of pipeline",
    {"StableDiffusionPipeline": "memsub.models.stable_diffusion:StableDiffusionDenoiser"},
)
"""Name of a pipeline's class to what makes a denoiser of it. (By name: importing diffusers takes seconds.)"""


def as_denoiser(pipe: Pipeline) -> Denoiser:
    """The denoiser behind a pipeline; a denoiser is returned as it is. Raises TypeError for what no adapter knows."""
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
    """What `Denoiser.call_rows` returns where the unconditional half of a guided call comes first, as in diffusers."""
    import torch

    once = torch.arange(prompts, device="cpu")  # whatever device a process has set as its default
    if not guided:
        return once, torch.ones(prompts, dtype=torch.bool, device="cpu")
    return once.repeat(2), torch.tensor([False, True], device="cpu").repeat_interleave(prompts)
