"""Seeded, batched sampling.

    generate(pipe, ["a red heart on a plain green background"], seeds=3)
    generate(pipe, prompts, seeds=range(len(prompts)), batch_size=64)       # a noise of its own for each prompt
    sample = partial(generate, pipe, steps=8, solver="multistep")           # a Sample: what metrics are given

An image depends on its prompt and its seed alone: not on the batch it was sampled in, nor on its place in the list
(to the last digits of float arithmetic, which can differ between batch sizes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, get_args

import numpy as np
import torch
from tqdm.auto import tqdm

from .denoiser import Pipeline, Solver, as_denoiser
from .distributed import gathered, is_main, shard


class Sample(Protocol):
    """Samples one image a prompt or embedding, with a seed each: `generate` with all else filled in, or a baseline."""

    def __call__(self, prompts: Any, *, seeds: Sequence[int]) -> np.ndarray: ...


def one_seed_each(seeds: int | Sequence[int], prompts: int) -> list[int]:
    """A seed a prompt: one for all, or as given.

    Raises:
        ValueError: another number of seeds than of prompts.
    """
    each = [int(seeds)] * prompts if isinstance(seeds, (int, np.integer)) else [int(s) for s in seeds]
    if len(each) != prompts:
        raise ValueError(f"{len(each)} seeds for {prompts} prompts: give one seed, or one a prompt.")
    return each


def check_request(prompts: list[str] | torch.Tensor, steps: int, batch_size: int, first: int | None = None) -> None:
    """Raises ValueError for no prompts, some that are not text, and steps, `first` of them or a batch size below 1."""
    if not len(prompts):
        raise ValueError('no prompts: the list is empty. For the empty prompt, give [""].')
    if isinstance(prompts, list) and (wrong := [p for p in prompts if not isinstance(p, str)]):
        raise ValueError(f"prompts must be strings; got {wrong[0]!r}.")
    if batch_size < 1 or steps < 1:
        raise ValueError(f"batch_size and steps must be at least 1; got {batch_size} and {steps}.")
    if first is not None and not 1 <= first <= steps:
        raise ValueError(f"first must lie between 1 and {steps}, the steps; got {first}.")


def chosen(prompts: list[str] | torch.Tensor, part: list[int]) -> list[str] | torch.Tensor:
    """Some of the captions, or of the embeddings."""
    return prompts[part] if isinstance(prompts, torch.Tensor) else [prompts[i] for i in part]


def generate(
    pipe: Pipeline,
    prompts: Sequence[str] | torch.Tensor,
    *,
    seeds: int | Sequence[int] = 0,
    steps: int = 50,
    guidance_scale: float = 7.5,
    solver: Solver = "own",
    batch_size: int = 64,
    progress: bool = True,
) -> np.ndarray:
    """Samples one image a prompt. Under `accelerate launch` each process takes a share, and all return every image.

    Args:
        prompts: captions, or their embeddings (prompts, tokens, width).
        seeds: one seed for all prompts (they share the initial noise), or one a prompt.
        steps: denoising steps.
        solver: the pipeline's own scheduler, or a multistep solver that needs fewer steps (`denoiser.multistep`).
        batch_size: images at a time; a network call holds twice as many under guidance.

    Returns:
        uint8, shape (prompts, height, width, 3).

    Raises:
        ValueError: no prompts, a prompt that is not text, another number of seeds, a batch size or steps below 1, or an
            unknown solver.
    """
    denoiser = as_denoiser(pipe)
    prompts = prompts.to(denoiser.device) if isinstance(prompts, torch.Tensor) else list(prompts)
    check_request(prompts, steps, batch_size)
    if solver not in get_args(Solver):
        raise ValueError(f"unknown solver {solver!r}; expected one of {', '.join(get_args(Solver))}.")
    seeds = one_seed_each(seeds, len(prompts))
    mine = shard(range(len(prompts)))  # one process: all of them
    images: dict[int, np.ndarray] = {}
    with tqdm(total=len(mine), desc="sampling", unit="image", disable=not (progress and is_main())) as bar:
        for start in range(0, len(mine), batch_size):
            part = list(mine[start : start + batch_size])
            noise = initial_noise(denoiser, [seeds[i] for i in part])
            latents = denoiser.sample(chosen(prompts, part), noise, steps, guidance_scale, solver)
            images |= dict(zip(part, denoiser.decode(latents), strict=True))
            bar.update(len(part))
    images = gathered(images)
    return np.stack([images[i] for i in range(len(prompts))])


def initial_noise(pipe: Pipeline, seeds: Sequence[int]) -> torch.Tensor:
    """Standard normal latents, shape (seeds, channels, height, width), the same on every device."""
    denoiser = as_denoiser(pipe)
    # Drawn once a distinct seed: many prompts often share one.
    noise = {s: torch.randn(denoiser.latent_shape, generator=torch.Generator().manual_seed(s)) for s in set(seeds)}
    return torch.stack([noise[s] for s in seeds]).to(denoiser.device, denoiser.dtype)
