"""Seeded, batched sampling.

    generate(pipe, ["a red star on a plain green background"], seeds=3)
    generate(pipe, prompts, seeds=range(len(prompts)), batch_size=64)       # a noise of its own for each prompt

An image depends on its prompt and its seed alone: not on the batch it was drawn in, nor on its place in the list
(to the last digits of float arithmetic, which can differ between batch sizes).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from tqdm.auto import tqdm

from .distributed import gathered, is_main, shard


def generate(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str] | torch.Tensor,
    *,
    seeds: int | Sequence[int] = 0,
    steps: int = 50,
    guidance_scale: float = 7.5,
    batch_size: int = 64,
    progress: bool = True,
) -> np.ndarray:
    """Draws one image a prompt. Under `accelerate launch` each process draws a share, and all return every image.

    Args:
        prompts: captions, or their embeddings (prompts, tokens, width).
        seeds: one seed for all prompts (they share the initial noise), or one a prompt.
        steps: denoising steps of the pipeline's own scheduler.
        batch_size: images at a time; a UNet call holds twice as many under guidance.

    Returns:
        uint8, shape (prompts, height, width, 3).

    Raises:
        ValueError: no prompts, a prompt that is not text, another number of seeds than of prompts, or a batch size below 1.
    """
    embedded = isinstance(prompts, torch.Tensor)
    prompts = prompts.to(pipe.device) if embedded else list(prompts)
    if not len(prompts):
        raise ValueError("no prompts to draw: the list is empty.")
    if not embedded and (wrong := [p for p in prompts if not isinstance(p, str)]):
        raise ValueError(f"prompts must be strings; got {wrong[0]!r}.")
    seeds = [seeds] * len(prompts) if isinstance(seeds, (int, np.integer)) else [int(s) for s in seeds]
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one seed, or one a prompt.")
    if batch_size < 1 or steps < 1:
        raise ValueError(f"batch_size and steps must be at least 1; got {batch_size} and {steps}.")
    mine = shard(range(len(prompts)))  # one process: all of them
    images: dict[int, np.ndarray] = {}
    with tqdm(total=len(mine), desc="generating", unit="image", disable=not (progress and is_main())) as bar:
        for start in range(0, len(mine), batch_size):
            part = list(mine[start : start + batch_size])
            drawn = pipe(
                **{"prompt_embeds": prompts[part]} if embedded else {"prompt": [prompts[i] for i in part]},
                latents=initial_noise(pipe, [seeds[i] for i in part]),
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                output_type="np",
            ).images
            images |= dict(zip(part, (drawn * 255).round().astype(np.uint8), strict=True))
            bar.update(len(part))
    images = gathered(images)
    return np.stack([images[i] for i in range(len(prompts))])


def initial_noise(pipe: StableDiffusionPipeline, seeds: Sequence[int]) -> torch.Tensor:
    """Standard normal latents, shape (seeds, channels, height, width), the same on every device."""
    config = pipe.unet.config
    size = (config.sample_size,) * 2 if isinstance(config.sample_size, int) else tuple(config.sample_size)
    shape = (config.in_channels, *size)
    # Drawn once a distinct seed: many prompts often share one.
    noise = {s: torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in set(seeds)}
    return torch.stack([noise[s] for s in seeds]).to(pipe.device, pipe.unet.dtype)
