"""Removal by training: adversarial fine-tuning, SISS and ReTrack, of all weights or of those that were located.

Each can be restricted to the positions of an edit (`only`): is the memorized subspace enough, if it is trained and not
zeroed?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..attacks import EmbeddingAttack
from ..audit import Pairs, denoising_loss
from ..controls import random_edit
from ..denoiser import Pipeline, as_denoiser, noised
from ..generation import generate
from ..pruning import Edit, pruned
from .base import Batches, Make, Removal, fine_tuned
from .pruning import prune

BATCH = 16
"""Rows of the ordinary pairs, and of those to remove, a step."""


def surrogates(pipe: Pipeline, memorized: Pairs, edit: Edit, *, seeds: int = 4, seed: int = 0) -> np.ndarray:
    """For each memorized caption a picture to draw instead: of some draws of the pruned model the one least like it.

    Likeness is that of latents, so that nothing is needed that knows the world.
    """
    denoiser, n = as_denoiser(pipe), len(memorized)
    own = denoiser.encode(memorized.images).flatten(1)
    drawn, distance = [], []
    with pruned(pipe, edit):
        for k in range(seeds):
            options: dict[str, Any] = {"steps": 10, "guidance_scale": 3.0, "progress": False}
            drawn.append(generate(pipe, memorized.captions, seeds=[seed + k * n + i for i in range(n)], **options))
            distance.append((denoiser.encode(drawn[-1]).flatten(1) - own).norm(dim=1))
    best = torch.stack(distance).argmax(0).tolist()
    return np.stack([drawn[k][i] for i, k in enumerate(best)])


def _subset(pipe: Pipeline, memorized: Pairs, ordinary: Pairs, where: str, seed: int) -> tuple[Edit, Edit | None]:
    """METHOD's edit, and the positions to train: "all" (None), those that were "located", or as many at "random"."""
    edit = prune(pipe, memorized, ordinary, seed=seed, progress=False)
    choices: dict[str, Callable[[], Edit | None]] = {
        "all": lambda: None,
        "located": lambda: edit,
        "random": lambda: random_edit(edit, seed),
    }
    if where not in choices:
        raise ValueError(f"unknown weights {where!r} to train; expected one of {', '.join(choices)}.")
    return edit, choices[where]()


def adversarial(
    pipe: Pipeline,
    memorized: Pairs,
    ordinary: Pairs,
    *,
    folder: str | Path,
    where: str = "all",
    epochs: int = 5,
    iterations: int = 50,
    lr: float = 1e-4,
    noises: int = 2,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """Adversarial fine-tuning (Kowalczuk, Hintersdorf et al. 2025, "Finding Dori").

    For a batch of memorized pairs an inner attack optimizes embeddings y_adv towards their pictures. The step then
    lowers the loss on ordinary pairs + ||eps - eps(x~_t, t, y_adv)||^2, x~ being a surrogate picture of the same
    caption (`surrogates`): under the attacked embedding, too, another picture is drawn. The starts of the attack are in
    turn the caption, another caption, and noise.

    Args:
        where: "all" weights, the "located" ones of METHOD's edit, or as many at "random".
        iterations: of the inner attack.
    """
    denoiser = as_denoiser(pipe)
    edit, only = _subset(pipe, memorized, ordinary, where, seed)
    kept = Batches(pipe, ordinary)
    instead = denoiser.encode(surrogates(pipe, memorized, edit, seed=seed))
    own = denoiser.embed(memorized.captions)
    per_epoch = -(-len(memorized) // BATCH)

    def loss(step: int, rng: torch.Generator, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        order = torch.randperm(len(memorized), generator=torch.Generator().manual_seed(seed + step // per_epoch))
        rows = order[(step % per_epoch) * BATCH :][:BATCH]
        begin = own[rows]
        if step % 3 == 1:
            begin = own[torch.randint(len(own), (len(rows),), generator=rng)]
        elif step % 3 == 2:
            begin = torch.randn(begin.shape, generator=rng).to(begin) * own.std() + own.mean()
        attack = EmbeddingAttack(pipe, memorized.images[rows.numpy()], begin, noises=noises, seed=seed + 10_000 * step)
        attack.advance(iterations, range(len(rows)))
        attacked = attack.embeddings(range(len(rows)))
        some = kept.rows(BATCH, rng)
        ordinary_loss = denoising_loss(pipe, kept.latents[some], kept.context[some], rng)
        return ordinary_loss + denoising_loss(pipe, instead[rows], attacked, rng)

    about = {"method": "adversarial fine-tuning", "where": where, "epochs": epochs, "iterations": iterations, "lr": lr}
    steps = epochs * per_epoch
    return fine_tuned(
        pipe, loss, steps=steps, lr=lr, only=only, folder=folder, name=f"adversarial-{where}", seed=seed, about=about
    )


def siss(
    pipe: Pipeline,
    memorized: Pairs,
    ordinary: Pairs,
    *,
    folder: str | Path,
    where: str = "all",
    steps: int = 200,
    lr: float = 1e-4,
    mix: float = 0.5,
    share: float = 0.1,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """SISS (Alberti et al., ICLR 2025, "Data Unlearning in Diffusion Models"): both losses from one noised sample.

    x_t comes from the picture to keep or from the one to forget, with probability `mix` from the latter. With
    r = q(x_t | forget) / q(x_t | keep), the kept loss is weighted by 1 / ((1 - mix) + mix r), the forgotten one by
    1 / ((1 - mix) / r + mix); the gradient is that of the former minus that of the latter, rescaled to `share` of the
    former's norm. Kept is, as there for text-to-image models, another picture of the same caption (`surrogates`).
    """
    denoiser = as_denoiser(pipe)
    edit, only = _subset(pipe, memorized, ordinary, where, seed)
    keep = denoiser.encode(surrogates(pipe, memorized, edit, seed=seed))
    forget, context = denoiser.encode(memorized.images), denoiser.embed(memorized.captions)

    def loss(step: int, rng: torch.Generator, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = torch.randint(len(memorized), (BATCH,), generator=rng)
        x, a = keep[rows], forget[rows]
        alphas = denoiser.scheduler.alphas_cumprod
        t = torch.randint(len(alphas), (BATCH,), generator=rng)
        signal, noise = (v.sqrt()[:, None, None, None].to(x) for v in (alphas[t], 1 - alphas[t]))
        source = torch.where((torch.rand(BATCH, generator=rng) < mix)[:, None, None, None].to(x.device), a, x)
        x_t, _ = noised(denoiser, source, t, torch.randn(x.shape, generator=rng).to(x))
        eps_x, eps_a = (x_t - signal * x) / noise, (x_t - signal * a) / noise
        # The ratio of two densities in hundreds of dimensions: in logarithms, and bounded before it is exponentiated.
        ratio = ((eps_x.square() - eps_a.square()).flatten(1).sum(1) / 2).clamp(-30, 30).exp()
        w_x, w_a = 1 / ((1 - mix) + mix * ratio), 1 / ((1 - mix) / ratio + mix)
        predicted = denoiser.predict(x_t, t.to(x.device), context[rows])
        kept, forgotten = (
            (w * (predicted - _target(denoiser, clean, eps, t)).float().square().flatten(1).mean(1)).mean()
            for w, clean, eps in ((w_x, x, eps_x), (w_a, a, eps_a))
        )
        ours = torch.autograd.grad(kept, parameters, retain_graph=True)
        theirs = torch.autograd.grad(forgotten, parameters)
        norms = [torch.stack([g.norm() for g in of]).norm() for of in (ours, theirs)]
        scale = share * norms[0] / norms[1].clamp_min(1e-12)
        # A scalar whose value is the kept loss and whose gradient is the combination.
        return kept.detach() + sum(
            ((p - p.detach()) * (g - scale * h)).sum() for p, g, h in zip(parameters, ours, theirs, strict=True)
        )

    about = {"method": "SISS", "where": where, "steps": steps, "lr": lr, "mix": mix, "share": share}
    return fine_tuned(
        pipe, loss, steps=steps, lr=lr, only=only, folder=folder, name=f"siss-{where}", seed=seed, about=about
    )


def _target(denoiser: Any, clean: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What the network should predict for a clean latent and its noise."""
    return noised(denoiser, clean, t, eps)[1]


def retrack(
    pipe: Pipeline,
    memorized: Pairs,
    ordinary: Pairs,
    *,
    folder: str | Path,
    where: str = "all",
    steps: int = 200,
    lr: float = 1e-4,
    neighbours: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Edit:
    """ReTrack (AISTATS 2026): on noised pictures to forget, regress to where the nearest kept pictures would lead.

    v_k = (x_t - signal n_k) / noise for the `neighbours` kept latents n_k nearest to the one to forget, weighted by
    softmax(-||v_k||^2 / 2); half of that loss and half the ordinary one.
    """
    denoiser = as_denoiser(pipe)
    # The edit takes a capture of all captions, and is needed only where it says what to train.
    only = None if where == "all" else _subset(pipe, memorized, ordinary, where, seed)[1]
    kept = Batches(pipe, ordinary)
    forget, context = denoiser.encode(memorized.images), denoiser.embed(memorized.captions)
    near = torch.cdist(forget.flatten(1), kept.latents.flatten(1)).topk(neighbours, largest=False).indices

    def loss(step: int, rng: torch.Generator, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = torch.randint(len(memorized), (BATCH,), generator=rng)
        alphas = denoiser.scheduler.alphas_cumprod
        t = torch.randint(len(alphas), (BATCH,), generator=rng)
        x_t, _ = noised(denoiser, forget[rows], t, torch.randn(forget[rows].shape, generator=rng).to(forget))
        signal, noise = (v.sqrt()[:, None, None, None, None].to(x_t) for v in (alphas[t], 1 - alphas[t]))
        clean = kept.latents[near[rows]]  # (rows, neighbours, ...)
        v = (x_t[:, None] - signal * clean) / noise
        weights = (-v.flatten(2).square().sum(2) / 2).softmax(1)[:, :, None, None, None]
        target = _target(denoiser, (weights * clean).sum(1), (weights * v).sum(1), t)
        led = (denoiser.predict(x_t, t.to(x_t.device), context[rows]) - target).float().square().mean()
        some = kept.rows(BATCH, rng)
        return (led + denoising_loss(pipe, kept.latents[some], kept.context[some], rng)) / 2

    about = {"method": "ReTrack", "where": where, "steps": steps, "lr": lr, "neighbours": neighbours}
    return fine_tuned(
        pipe, loss, steps=steps, lr=lr, only=only, folder=folder, name=f"retrack-{where}", seed=seed, about=about
    )


_DORI = "Kowalczuk, Hintersdorf et al. 2025, Finding Dori"
_SISS = "Alberti et al., ICLR 2025, Data Unlearning in Diffusion Models"
_RETRACK = "ReTrack, AISTATS 2026"
_SOURCES: dict[str, tuple[Make, str]] = {
    "adversarial fine-tuning": (adversarial, _DORI),
    "SISS": (siss, _SISS),
    "ReTrack": (retrack, _RETRACK),
}
_WHERE = {"all": "all weights", "located": "the located weights", "random": "as many random weights"}
REMOVALS: dict[str, Removal] = {
    name if where == "all" else f"{name}, {told}": Removal(f"trains {told}", make, source, {"where": where})
    for name, (make, source) in _SOURCES.items()
    for where, told in _WHERE.items()
}
