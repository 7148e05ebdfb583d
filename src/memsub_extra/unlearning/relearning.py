"""Relearning: the whole network is fine-tuned on a few pairs. Do *other* removed pairs come back?

learned = relearning(pipe, taught, watched, judge, lr=1e-5)     # columns steps, target, replicated
shares(learned)                                                 # columns steps, share, low, high, n
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from memsub.measure.noise import noise_seeds
from memsub.measure.verdict import Judge
from memsub.models import Pipeline, as_denoiser, generate

from ..training.fitting import generator
from .attack_work import share
from .losses import Encoded, denoising_loss
from .pairs import SAMPLING, Pairs


def relearning(
    pipe: Pipeline,
    taught: Pairs,
    watched: Pairs,
    judge: Judge,
    *,
    lr: float,
    looks: Sequence[int] = (0, 10, 25, 50, 100),
    batch_size: int = 16,
    seed: int = 0,
    sampling: Mapping[str, Any] = SAMPLING,
    progress: bool = True,
) -> pd.DataFrame:
    """Fine-tunes the whole network on `taught` (Adam), and measures which of the `watched` pairs come back.

    Afterwards the weights are restored.

    Args:
        taught: ordinary pairs, or a part of the forget set.
        watched: removed pairs that are not taught.
        judge: decides which images replicate their training image.
        looks: ascending numbers of training steps after which the watched captions are sampled.

    Returns:
        One row per watched pair and number of steps: steps, target (the pair's index), replicated. Each image has its
        own noise, the same after every number of steps.
    """
    network = as_denoiser(pipe).network
    kept = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    encoded = Encoded(pipe, taught)
    tables, done = [], 0
    try:
        for look in tqdm(looks, desc="relearning", disable=not progress):
            for step in range(done, look):
                rng = generator(seed, "relearning", step)
                chosen = encoded.rows(min(batch_size, len(taught)), rng)
                loss = denoising_loss(pipe, encoded.latents[chosen], encoded.context[chosen], rng)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            done = look
            images = generate(pipe, watched.captions, seeds=noise_seeds(watched.captions), **sampling)
            hits = judge(images, watched.captions, watched.images)
            tables.append(pd.DataFrame({"steps": look, "target": range(len(watched)), "replicated": hits}))
    finally:
        with torch.no_grad():
            for name, weight in network.named_parameters():
                weight.copy_(kept[name])
                weight.grad = None
    return pd.concat(tables, ignore_index=True)


def shares(learned: pd.DataFrame) -> pd.DataFrame:
    """The share of pairs that come back, with its 95 % interval and n, by all other columns of the table."""
    by = [name for name in learned if name not in ("target", "replicated")]
    rows = [
        dict(zip(by, key, strict=True)) | share(part["replicated"], part["target"])
        for key, part in learned.groupby(by, sort=False)
    ]
    return pd.DataFrame(rows)
