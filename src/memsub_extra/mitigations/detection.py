"""Detection before sampling: scores of the first steps that separate memorized from other captions, by name.

    scores = first_step_scores(pipe, captions)        # name of the score to (captions,)
    step_scores(pipe, captions, calls=10)             # the same for each call: (captions, calls)
    area, curve = roc(scores["text magnitude"], first_step_scores(pipe, others)["text magnitude"])

A score is a function of a network call: of the initial noise and both predictions, each (n, channels, height, width),
to (n,). Another package adds one by the entry points "memsub.scores"; the tables of notebook 05 then include it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch

from memsub.models import (
    Conditioning,
    Kind,
    Pipeline,
    as_captions,
    as_denoiser,
    check_finite,
    check_request,
    draws_noise,
    initial_noise,
    model_input,
    noise_schedule,
    row_generators,
    step_options,
)
from memsub.registry import Registry

Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
SCORES: Registry[Score] = Registry(
    "memsub.scores",
    "score",
    {
        "text magnitude": "memsub_extra.mitigations.detection:text_magnitude",
        "noise change": "memsub_extra.mitigations.detection:noise_change",
    },
)


def defined_for(*kinds: Kind) -> Callable[[Score], Score]:
    """Marks a score as defined for these prediction types only; for others it raises an error. Default: all types."""

    def mark(score: Score) -> Score:
        score.kinds = kinds  # type: ignore[attr-defined]
        return score

    return mark


def text_magnitude(start: torch.Tensor, unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    """||eps(x_t, t, prompt) - eps(x_t, t, empty)||, shape (n,): how much the text changes the prediction.

    Large for memorized prompts (Wen et al., ICLR 2024, eq. 3). Other prediction types scale the difference by a factor
    that depends only on the step, so the ranking of prompts is the same.
    """
    return (conditional - unconditional).float().flatten(1).norm(dim=1)


@defined_for("epsilon", "v_prediction")
def noise_change(start: torch.Tensor, unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    """||eps(x_t, t, prompt) - x_T||, shape (n,): with a memorized image, the model replaces the noise at once.

    After the denoising confidence score of Webster (2023).
    """
    return (conditional - start).float().flatten(1).norm(dim=1)


def first_latents(scheduler: Any, noise: torch.Tensor) -> torch.Tensor:
    """The initial latents of a sampler from standard normal noise; `set_timesteps` must have been called."""
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)


def first_step_scores(pipe: Pipeline, prompts: Sequence[str], **options: Any) -> dict[str, np.ndarray]:
    """`step_scores` with its options, averaged over the calls: name to (prompts,)."""
    return {name: of_calls.mean(1) for name, of_calls in step_scores(pipe, prompts, **options).items()}


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
    """Scores of captions at each of the first `calls` network calls, averaged over seeds.

    All captions get the same noises, so that a score is a function of the caption alone.

    Args:
        scores: names in `SCORES`; default all.
        batch_size: noises at a time; a network call has twice as many rows.

    Returns:
        Name to (prompts, calls).

    Raises:
        ValueError: no prompts, an unknown score, a score that is not defined for the prediction type, several calls
            of a sampler whose noise no seed fixes, or a number below 1.
        FloatingPointError: a score is NaN or infinite.
    """
    prompts = as_captions(prompts)
    check_request(prompts, steps, batch_size, guidance_scale, seeds=seeds, calls=calls)
    denoiser = as_denoiser(pipe)
    functions = {name: SCORES.find(name) for name in (SCORES if scores is None else scores)}
    _check_defined(functions, noise_schedule(denoiser).kind)
    noisy = calls > 1 and draws_noise(denoiser)
    results: dict[str, list[np.ndarray]] = {name: [] for name in functions}
    size = max(1, batch_size // seeds)
    for part in (prompts[i : i + size] for i in range(0, len(prompts), size)):
        text = denoiser.embed(part).repeat(seeds)
        context = Conditioning.cat([denoiser.embed([""]).expand(len(text)), text])
        of_rows = np.repeat(range(seeds), len(part)).tolist()
        start = initial_noise(denoiser, of_rows)
        options = step_options(denoiser.scheduler, row_generators(denoiser, of_rows) if noisy else None)
        denoiser.scheduler.set_timesteps(steps)
        x = first_latents(denoiser.scheduler, start)
        of_calls: dict[str, list[torch.Tensor]] = {name: [] for name in functions}
        for t in denoiser.scheduler.timesteps[:calls]:
            inputs = model_input(denoiser.scheduler, torch.cat([x, x]), t)
            unconditional, conditional = denoiser.predict(inputs, t, context).chunk(2)
            for name, score in functions.items():
                of_calls[name].append(score(start, unconditional, conditional).float())
            guided = unconditional + guidance_scale * (conditional - unconditional)
            x = denoiser.scheduler.step(guided, t, x, **options).prev_sample
        for name, each in of_calls.items():
            results[name].append(torch.stack(each, 1).view(seeds, len(part), -1).mean(0).cpu().numpy())
    together = {name: np.concatenate(parts) for name, parts in results.items()}
    for name, values in together.items():
        check_finite(values, f"the score {name!r} of a caption")
    return together


def _check_defined(scores: dict[str, Score], kind: Kind) -> None:
    for name, score in scores.items():
        if kind not in (kinds := getattr(score, "kinds", get_args(Kind))):
            others = [other for other, s in scores.items() if kind in getattr(s, "kinds", get_args(Kind))]
            raise ValueError(
                f"the score {name!r} is defined for networks that predict {' or '.join(kinds)}; this one predicts "
                f"{kind}: give scores={others}."
            )


def roc(positive: np.ndarray, negative: np.ndarray) -> tuple[float, pd.DataFrame]:
    """Area under the ROC curve of a score, and the curve: columns true_positives and false_positives (rates)."""
    from sklearn.metrics import roc_auc_score, roc_curve

    truth = np.repeat([1, 0], [len(positive), len(negative)])
    scores = np.concatenate([positive, negative])
    false_positives, true_positives, _ = roc_curve(truth, scores)
    curve = pd.DataFrame({"false_positives": false_positives, "true_positives": true_positives})
    return float(roc_auc_score(truth, scores)), curve
