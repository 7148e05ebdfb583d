"""The exact membership test, for pairs of a world (`memsub.world`): was a model trained on this image for this caption?

    p = membership_p(pipe, prompts, training_images, world)     # (n,) p-values; 1/32 is the smallest
    membership_p(pipe, prompts, training_images, world, captions=[""] * len(prompts))      # without the caption
    uniformity(p, step=1 / 32)                                  # near zero: the model was trained on the pairs

For a pair (caption, training image x*) the world provides N = 31 alternatives x_1 ... x_N: images of the same content
from the distribution of its training images. The same noise is added to all of them at the same steps, and the model's
denoising loss ranks x* among them:

    p = (1 + #{i : loss(x_i) <= loss(x*)}) / (N + 1).

If the model was not trained on the pair, x* and the x_i are exchangeable, so P(p <= a) <= a *exactly*: for any model,
any steps and any given caption. The test generates no image, so it also detects pairs that a removal only keeps from
being generated. The text encoder is part of the model: it must not have been trained on the pair either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from ..models import Denoiser, Pipeline, as_denoiser, check_finite, check_images, check_request, noise_schedule
from .exact import Alternatives
from .noise import noise_seeds

MEMBERSHIP_ALTERNATIVES = 31
STEPS = 12
"""Number of steps at which losses are averaged: the middles of that many equal parts of the noise schedule."""
_ROWS = 32
"""Largest number of rows of a network call."""
_PIXELS = 512 * 512
"""Largest number of pixels that are encoded at a time, or one image: a batch of photographs would take gigabytes."""


@torch.no_grad()
def membership_p(
    pipe: Pipeline,
    prompts: Sequence[str],
    images: np.ndarray,
    world: Alternatives,
    *,
    captions: Sequence[str] | None = None,
    alternatives: int = MEMBERSHIP_ALTERNATIVES,
    steps: int = STEPS,
    noises: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> np.ndarray:
    """P-values (n,) of pairs, each under the hypothesis that the model was not trained on the pair.

    A pair costs (alternatives + 1) x steps x noises rows of network calls.

    Args:
        prompts: captions of the world, one a pair; they determine the alternatives.
        images: the training images, uint8 (n, height, width, 3).
        captions: n captions for the model; default: the prompts.
        noises: number of noises at each step; losses are averaged over them.
        seed: seed of the noises, which differ between pairs, and of the alternatives.

    Raises:
        ValueError: a prompt is no caption of the world, the lists differ in length, an image is no uint8 array, or a
            number is below 1.
        FloatingPointError: a loss is NaN or infinite.
    """
    given = list(prompts if captions is None else captions)
    if not len(prompts) == len(images) == len(given):
        raise ValueError(
            f"{len(prompts)} prompts need as many images and captions; got {len(images)} and {len(given)}."
        )
    check_request(given, steps, 1, alternatives=alternatives, noises=noises)
    check_images(images)
    denoiser = as_denoiser(pipe)
    contents = [world.content(prompt) for prompt in prompts]
    distinct = list(dict.fromkeys(contents))
    p, streams = np.empty(len(prompts)), noise_seeds(prompts, seed)
    with tqdm(total=len(prompts), desc="membership", disable=not progress) as bar:
        for content, layouts in zip(distinct, world.alternatives(distinct, seed), strict=True):
            for i in [i for i, other in enumerate(contents) if other == content]:
                candidates = np.concatenate([images[i : i + 1], layouts[:alternatives]])
                losses = denoising_losses(denoiser, candidates, given[i], steps, noises, streams[i])
                check_finite(losses, f"the loss of {given[i]!r}")
                p[i] = (1 + (losses[1:] <= losses[0]).sum()) / len(losses)
                bar.update()
    return p


@torch.no_grad()
def denoising_losses(
    denoiser: Denoiser, images: np.ndarray, caption: str, steps: int, noises: int, seed: int
) -> np.ndarray:
    """Mean squared error of the network's prediction for each image under a caption, float64 (n,).

    All images, uint8 (n, height, width, 3), get the same noises, so that their losses are comparable.
    """
    schedule = noise_schedule(denoiser)
    parts = [slice(start, start + _ROWS) for start in range(0, len(images), _ROWS)]
    batch = max(1, _PIXELS // (images.shape[1] * images.shape[2]))
    z = torch.cat([denoiser.encode(images[i : i + batch]) for i in range(0, len(images), batch)])
    generator, conditioning = torch.Generator().manual_seed(seed), denoiser.embed([caption])
    losses = np.zeros(len(images))
    for step in range(steps):
        t = schedule.steps[int((step + 0.5) / steps * len(schedule.steps))].to(z.device).expand(len(z))
        for _ in range(noises):
            eps = torch.randn(z[:1].shape, generator=generator, device="cpu").to(z).expand_as(z)
            x, target = schedule.noised(z, t, eps)
            for part in parts:
                predicted = denoiser.predict(x[part], t[part], conditioning[[0] * len(x[part])])
                losses[part] += (predicted - target[part]).float().square().flatten(1).mean(1).cpu().numpy()
    return losses / (steps * noises)
