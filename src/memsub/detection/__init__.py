"""Detection before sampling: scores of the first steps that tell memorized captions from others, by name.

    found = first_step_scores(pipe, captions)         # name of the score to (captions,)
    step_scores(pipe, captions, calls=10)             # the same call by call: (captions, calls)
    area, curve = roc(found["text magnitude"], first_step_scores(pipe, others)["text magnitude"])

A score sees each of the first network calls: the initial noise and both predictions, each (n, channels, height, width),
and returns (n,). A new one is a file of this folder and a line in `SCORES`; it then stands in notebook 05's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..denoiser import Pipeline, as_denoiser
from ..generation import check_request, initial_noise
from .noise_change import noise_change
from .text_magnitude import text_magnitude

Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
SCORES: dict[str, Score] = {"text magnitude": text_magnitude, "noise change": noise_change}


def first_step_scores(pipe: Pipeline, prompts: Sequence[str], **options: Any) -> dict[str, np.ndarray]:
    """`step_scores`, with its options, mean over the calls: name to (prompts,)."""
    return {name: found.mean(1) for name, found in step_scores(pipe, prompts, **options).items()}


@torch.no_grad()
def step_scores(
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    scores: Sequence[str] | None = None,
    seeds: int = 4,
    steps: int = 50,
    calls: int = 1,
    guidance_scale: float = 7.5,
    batch_size: int = 64,
) -> dict[str, np.ndarray]:
    """Scores of captions at each of the first `calls` network calls, mean over seeds.

    Args:
        scores: names in `SCORES`; default all.
        batch_size: noises at a time; a network call holds twice as many.

    Returns:
        Name to (prompts, calls).

    Raises:
        ValueError: no prompts, or an unknown score.
    """
    names = list(SCORES) if scores is None else list(scores)
    if unknown := [name for name in names if name not in SCORES]:
        raise ValueError(f"unknown score {unknown[0]!r}; expected some of {', '.join(SCORES)}.")
    prompts = list(prompts)
    check_request(prompts, steps, batch_size)
    denoiser = as_denoiser(pipe)
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    size = max(1, batch_size // seeds)
    for part in (prompts[i : i + size] for i in range(0, len(prompts), size)):
        text = denoiser.embed(part).repeat(seeds, 1, 1)
        context = torch.cat([denoiser.embed([""]).expand_as(text), text])
        start = initial_noise(denoiser, np.repeat(range(seeds), len(part)).tolist())
        denoiser.scheduler.set_timesteps(steps)
        x = start * denoiser.scheduler.init_noise_sigma
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for t in denoiser.scheduler.timesteps[:calls]:
            inputs = denoiser.scheduler.scale_model_input(torch.cat([x, x]), t)
            unconditional, conditional = denoiser.predict(inputs, t, context).chunk(2)
            for name in names:
                seen[name].append(SCORES[name](start, unconditional, conditional).float())
            guided = unconditional + guidance_scale * (conditional - unconditional)
            x = denoiser.scheduler.step(guided, t, x).prev_sample
        for name, of_calls in seen.items():
            found[name].append(torch.stack(of_calls, 1).view(seeds, len(part), -1).mean(0).cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def roc(positive: np.ndarray, negative: np.ndarray) -> tuple[float, pd.DataFrame]:
    """Area under the ROC curve of a score, and the curve: columns true_positives and false_positives (rates)."""
    from sklearn.metrics import roc_auc_score, roc_curve

    truth = np.repeat([1, 0], [len(positive), len(negative)])
    scores = np.concatenate([positive, negative])
    false_positives, true_positives, _ = roc_curve(truth, scores)
    curve = pd.DataFrame({"false_positives": false_positives, "true_positives": true_positives})
    return float(roc_auc_score(truth, scores)), curve
