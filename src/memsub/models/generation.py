"""Seeded, batched sampling of images.

    >>> generate(pipe, ["a red heart on a plain green background"], seeds=3, steps=2).shape
    (1, 32, 32, 3)
    >>> images = generate(pipe, prompts, seeds=range(len(prompts)), steps=2)    # a different noise for each prompt
    >>> sample = partial(generate, pipe, steps=8, solver="multistep")           # a Sample, as metrics require it

An image depends only on its prompt and its seed, not on its batch or its place in the list. (Batches of different sizes
can differ by rounding.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, get_args

import numpy as np
import torch
from tqdm.auto import tqdm

from ..io.distributed import gathered, is_main, shard
from .protocol import Pipeline, Solver, as_denoiser
from .sampling import (
    as_prompts,
    check_request,
    chosen,
    draws_noise,
    in_batches,
    initial_noise,
    one_seed_each,
    row_generators,
)

if TYPE_CHECKING:
    from .conditioning import Conditioning


class Sample(Protocol):
    """Samples one image for each prompt (or row of a conditioning) and seed: `generate` with other arguments set."""

    def __call__(self, prompts: Any, *, seeds: Sequence[int]) -> np.ndarray: ...


def generate(
    pipe: Pipeline,
    prompts: Sequence[str] | Conditioning | torch.Tensor,
    *,
    seeds: int | Sequence[int] = 0,
    steps: int = 50,
    guidance_scale: float = 7.5,
    solver: Solver = "own",
    batch_size: int = 64,
    progress: bool = True,
) -> np.ndarray:
    """Samples one image a prompt. Under `accelerate launch` each process samples a share, and all return every image.

    Args:
        prompts: captions, their `Conditioning`, or their embeddings (prompts, tokens, width).
        seeds: one seed for all prompts (they share the initial noise), or one a prompt.
        solver: the pipeline's own scheduler, or a multistep solver that needs fewer steps (`multistep`).
        batch_size: images per batch; halved if they do not fit into memory. Guidance doubles the rows of network calls.

    Returns:
        uint8, shape (prompts, height, width, 3).

    Raises:
        ValueError: no prompts, a prompt that is not text, a wrong number of seeds, a batch size or steps below 1, an
            unknown solver, or a sampler whose noise no seed fixes.
        MemoryError: a single image does not fit into memory.
    """
    denoiser = as_denoiser(pipe)
    prompts = as_prompts(prompts, denoiser)
    check_request(prompts, steps, batch_size, guidance_scale)
    if solver not in get_args(Solver):
        raise ValueError(f"unknown solver {solver!r}; expected one of {', '.join(get_args(Solver))}.")
    noisy, seeds = draws_noise(denoiser, solver), one_seed_each(seeds, len(prompts))
    mine = shard(range(len(prompts)))  # one process: all of them
    images: dict[int, np.ndarray] = {}

    def sampled(part: list[int]) -> np.ndarray:
        own = [seeds[i] for i in part]
        options: Any = {"generators": row_generators(denoiser, own)} if noisy else {}
        noise = initial_noise(denoiser, own)
        latents = denoiser.sample(chosen(prompts, part), noise, steps, guidance_scale, solver, **options)
        return denoiser.decode(latents)

    with tqdm(total=len(mine), desc="sampling", unit="image", disable=not (progress and is_main())) as bar:
        for part, made in in_batches(mine, batch_size, sampled):
            images |= dict(zip(part, made, strict=True))
            bar.update(len(part))
    images = gathered(images)
    return np.stack([images[i] for i in range(len(prompts))])


def as_pixels(images: torch.Tensor) -> np.ndarray:
    """uint8 (B, height, width, 3) of images (B, 3, height, width) in [0, 1]; raises FloatingPointError for NaN."""
    pixels = images.permute(0, 2, 3, 1).float().cpu().numpy()
    check_finite(pixels, "an image")
    return (pixels * 255).round().astype(np.uint8)


def check_images(images: np.ndarray, name: str = "images") -> None:
    """Raises ValueError for anything but a non-empty uint8 array (n, height, width, 3)."""
    if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3):
        what = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(f"{name} must be a uint8 array of shape (n, height, width, 3); got {what}.")
    if not len(images):
        raise ValueError(f"{name} is empty.")


def check_finite(values: torch.Tensor | np.ndarray, what: str) -> None:
    """Raises FloatingPointError for NaN or infinity. A comparison with NaN is false, which would pass for a verdict."""
    finite = torch.isfinite(values) if isinstance(values, torch.Tensor) else np.isfinite(values)
    if not finite.all():
        raise FloatingPointError(f"{what} is not finite: try another dtype, such as bfloat16 or float32, or sampler.")
