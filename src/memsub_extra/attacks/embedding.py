"""The embedding attack (Kowalczuk, Hintersdorf et al. 2025, "Finding Dori"): is a training image hidden, or gone?

start = denoiser.embed(captions)                                # or any other conditioning of this shape
attacked = embedding_attack(pipe, images, start)
generate(pipe, attacked)                                        # is the training image back?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from memsub.io.distributed import gathered, shard
from memsub.models import (
    Conditioning,
    Pipeline,
    as_conditioning,
    as_denoiser,
    check_finite,
    check_request,
    noise_schedule,
)


class EmbeddingAttack:
    """Optimizes a text embedding for each image until the model generates it, from a given start.

    Adam on the denoising loss of the image, E ||target - prediction(z_t, t, embedding)||^2 over random steps and noises
    (Kowalczuk, Hintersdorf et al. 2025, "Finding Dori"). An embedding has many numbers and might encode any image. A
    model that was not trained on the images shows how much the attack injects by itself. Each image has its own noises
    and optimizer, so the batch size does not matter.

    Args:
        images: uint8 (n, height, width, 3).
        start: initial conditioning, a row for each image: captions, a `Conditioning`, or embeddings (n, tokens, width).
            Token embeddings are optimized; pooled embeddings and other inputs stay fixed.
        lr: learning rate of Adam.
        noises: number of (step, noise) pairs for each image and iteration.
        seed: seed of the first image's steps and noises; image i, from 0, has seed + i.
        batch_size: rows of a network call; each image takes `noises` rows.

    Raises:
        ValueError: the numbers of starts and of images differ, images are no uint8 array, or a number is below 1.
    """

    def __init__(
        self,
        pipe: Pipeline,
        images: np.ndarray,
        start: Sequence[str] | Conditioning | torch.Tensor,
        *,
        lr: float = 0.1,
        noises: int = 8,
        seed: int = 0,
        batch_size: int = 64,
    ):
        check_request([""], 1, batch_size, noises=noises)
        if len(images) != len(start):
            raise ValueError(f"{len(start)} embeddings to start from for {len(images)} images: give one an image.")
        self.denoiser = as_denoiser(pipe)
        self.schedule = noise_schedule(self.denoiser)
        self.noises, self.together = noises, max(1, batch_size // noises)
        self.latents = self.denoiser.encode(images).to(self.denoiser.dtype)
        self.start = as_conditioning(start, self.denoiser).detach().to(self.denoiser.device)
        self._embeddings = [e.clone().float().requires_grad_(True) for e in self.start.embeddings]
        self._optimizers = [torch.optim.Adam([e], lr=lr) for e in self._embeddings]
        self._rngs = [torch.Generator().manual_seed(seed + i) for i in range(len(images))]

    def advance(self, iterations: int, which: Sequence[int], bar: tqdm | None = None) -> None:
        """Attacks some of the images further."""
        for first in range(0, len(which), self.together):
            part = list(which[first : first + self.together])
            for _ in range(iterations):
                self._step(part)
                if bar is not None:
                    bar.update(len(part))

    def embeddings(self, which: Sequence[int]) -> Conditioning:
        """The current embeddings of these images, one row each, for `generate`."""
        moved = torch.stack([self._embeddings[i].detach() for i in which])
        return self.start[list(which)].with_embeddings(moved.to(self.denoiser.dtype))

    def _step(self, part: list[int]) -> None:
        """One iteration for some images, B = images x noises rows at once."""
        rngs = [self._rngs[i] for i in part]
        z = self.latents[part].repeat_interleave(self.noises, 0)  # (B, C, H, W)
        steps = len(self.schedule.steps)
        indices = torch.cat([torch.randint(steps, (self.noises,), generator=rng) for rng in rngs])
        t = self.schedule.steps[indices].to(self.denoiser.device)
        eps = torch.cat([torch.randn(self.noises, *z.shape[1:], generator=rng) for rng in rngs]).to(z)
        x, target = self.schedule.noised(z, t, eps)
        attacked = [self._embeddings[i] for i in part]
        conditioning = self.start[part].with_embeddings(torch.stack(attacked)).repeat_interleave(self.noises)
        predicted = self.denoiser.predict(x, t, conditioning)
        # A sum over images: they do not share an embedding, so one must not slow the other.
        errors = (predicted - target).float().square().mean(tuple(range(1, predicted.ndim)))  # (B,)
        loss = errors.view(len(part), -1).mean(1).sum()
        for embedding, gradient in zip(attacked, torch.autograd.grad(loss, attacked), strict=True):
            embedding.grad = gradient
        for i in part:
            self._optimizers[i].step()


@torch.inference_mode(False)
@torch.enable_grad()
def embedding_attack(
    pipe: Pipeline,
    images: np.ndarray,
    start: Sequence[str] | Conditioning | torch.Tensor,
    *,
    iterations: int = 50,
    progress: bool = True,
    **options: Any,
) -> Conditioning:
    """Runs `EmbeddingAttack` (with its options) on all images; under `accelerate launch`, each process takes a share.

    Returns:
        A conditioning for `generate`, with a row for each image.

    Raises:
        ValueError: as `EmbeddingAttack`.
        FloatingPointError: an embedding is NaN or infinite.
    """
    attack = EmbeddingAttack(pipe, images, start, **options)
    denoiser, mine = attack.denoiser, shard(range(len(images)))
    with tqdm(total=len(mine) * iterations, desc="embedding attack", disable=not progress, mininterval=2) as bar:
        attack.advance(iterations, mine, bar)
    rows = gathered({i: attack.embeddings([i]).embeddings[0].cpu() for i in mine})
    moved = torch.stack([rows[i] for i in range(len(images))])
    check_finite(moved, "an attacked embedding")  # at the end: a GPU would wait for the host at every iteration
    return attack.start.with_embeddings(moved.to(denoiser.device, denoiser.dtype))
