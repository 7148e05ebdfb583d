"""Relearning: the whole network is fine-tuned on a few pairs. Do *other* removed pairs come back?

relearning(pipe, taught, watched, judge, lr=1e-5)       # columns steps, share, low, high, n
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

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
    """Fine-tunes the whole network on `taught` (Adam) and measures how many of the `watched` pairs come back.

    The weights are as before afterwards.

    Args:
        taught: ordinary pairs, or a part of the forget set.
        watched: removed pairs that are not taught.
        judge: says which images replicate their training image.
        looks: training steps, ascending, after which the watched captions are sampled.

    Returns:
        Columns steps, share, low, high (95 % interval), n.
    """
    network = as_denoiser(pipe).network
    kept = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    encoded = Encoded(pipe, taught)
    rows, done = [], 0
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
            images = generate(pipe, watched.captions, seeds=0, **sampling)
            hits = int(judge(images, watched.captions, watched.images).sum())
            rows.append({"steps": look} | share(hits, len(watched)))
    finally:
        with torch.no_grad():
            for name, weight in network.named_parameters():
                weight.copy_(kept[name])
                weight.grad = None
    return pd.DataFrame(rows)
