"""Cross-attention value neurons (NeMo, Hintersdorf et al., NeurIPS 2024): found and silenced for each prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from ..denoiser import Pipeline, as_denoiser
from ..detection import first_step_scores
from ..distributed import processes
from ..generation import Sample
from .base import Baseline, Context

SCORE = "text magnitude"
Neurons = dict[str, torch.Tensor]
"""Layer name to a mask of its neurons for each prompt: bool, (prompts, neurons)."""


@contextmanager
def deactivated(pipe: Pipeline, neurons: Neurons) -> Iterator[None]:
    """While open, each prompt's value neurons output zero.

    The UNet must be called with those prompts in their order, once or, as under guidance, several times over.
    """
    layers = as_denoiser(pipe).value_layers()

    def silence(mask: torch.Tensor):
        def hook(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            if len(output) % len(mask):
                raise ValueError(f"neurons of {len(mask)} prompts do not fit a UNet call on {len(output)} rows.")
            return output.masked_fill(mask.to(output.device).repeat(len(output) // len(mask), 1)[:, None], 0)

        return hook

    handles = [layers[name].register_forward_hook(silence(mask)) for name, mask in neurons.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class ValueStatistics:
    """What the value neurons, and the memorization score, are on prompts that are not memorized.

    Attributes:
        mean, std: activation, layer name to (neurons,).
        score_mean, score_std: memorization score.
    """

    mean: dict[str, torch.Tensor]
    std: dict[str, torch.Tensor]
    score_mean: float
    score_std: float


def _activations(pipe: Pipeline, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Mean absolute activation over the prompt's tokens, layer to (prompts, neurons). It depends on the text alone."""
    denoiser = as_denoiser(pipe)
    context = denoiser.embed(prompts)
    with torch.no_grad():
        return {name: layer(context).float().abs().mean(1).cpu() for name, layer in denoiser.value_layers().items()}


def memorization_score(pipe: Pipeline, prompts: Sequence[str], batch_size: int = 16) -> torch.Tensor:
    """Length of the text's share of the noise predicted first, mean over two seeds, shape (prompts,).

    NeMo compares the first step's change between seeds by SSIM, whose windows do not fit small latents, and a cosine in
    its place tells memorized captions of the embedded model from others less well (AUC 0.83) than this score of Wen et
    al. (0.95).
    """
    return torch.from_numpy(first_step_scores(pipe, prompts, scores=[SCORE], seeds=2, batch_size=2 * batch_size)[SCORE])


def value_statistics(pipe: Pipeline, prompts: Sequence[str], batch_size: int = 16) -> ValueStatistics:
    """What the value neurons do on prompts that are not memorized.

    Raises:
        ValueError: fewer than two prompts.
    """
    if len(prompts) < 2:
        raise ValueError(f"statistics need two prompts or more; got {len(prompts)}.")
    activations = _activations(pipe, prompts)
    scores = memorization_score(pipe, prompts, batch_size)
    return ValueStatistics(
        {name: a.mean(0) for name, a in activations.items()},
        {name: a.std(0).clamp_min(1e-8) for name, a in activations.items()},
        float(scores.mean()),
        float(scores.std()),
    )


def find_value_neurons(
    pipe: Pipeline,
    prompts: Sequence[str],
    statistics: ValueStatistics,
    *,
    spread: float = 1.0,
    z: float = 5.0,
    z_step: float = 0.25,
    z_min: float = 1.0,
) -> Neurons:
    """The value neurons that carry each memorized prompt (NeMo, Hintersdorf et al., NeurIPS 2024, section 4).

    First selection: neurons whose activation is out of distribution by `z` deviations; z falls until silencing them
    brings the memorization score under a threshold. Refinement: a layer, then a neuron, is left out if the score stays
    under the threshold without it (here also parts of a layer, half as large at each round, which finds the same with
    fewer calls). Each prompt is searched by itself; one whose score is under the threshold has no neurons.

    Args:
        spread: the threshold in deviations of the score above its mean on prompts that are not memorized (NeMo: 1).
            Smaller silences more.
    """
    activations = _activations(pipe, prompts)
    deviation = {n: (a - statistics.mean[n]).abs() / statistics.std[n] for n, a in activations.items()}
    threshold = statistics.score_mean + spread * statistics.score_std
    found = {n: torch.zeros_like(d, dtype=torch.bool) for n, d in deviation.items()}

    def memorized(rows: torch.Tensor, neurons: Neurons) -> torch.Tensor:
        """Which of `rows` score over the threshold without `neurons`, (rows, neurons) a layer."""
        if not len(rows):
            return torch.zeros(0, dtype=torch.bool)
        with deactivated(pipe, neurons):
            return memorization_score(pipe, [prompts[i] for i in rows], len(rows)) > threshold

    def leave_out(name: str, rows: torch.Tensor, neurons: slice) -> None:
        """Takes these neurons of one layer back for prompts that do not need them silenced."""
        without = {n: m[rows] for n, m in found.items()}
        without[name][:, neurons] = False
        unneeded = ~memorized(rows, without)
        found[name][rows[unneeded]] = without[name][unneeded]

    everything = torch.arange(len(prompts))
    over = everything[memorized(everything, {})]
    first = over
    while len(over):
        for name, d in deviation.items():
            found[name][over] = d[over] > z
        over = over[memorized(over, {n: m[over] for n, m in found.items()})]
        if z <= z_min:
            break
        z -= z_step
    refined = first[~torch.isin(first, over)]  # of prompts that stay over the threshold every neuron is needed
    widest = max(mask.shape[1] for mask in found.values())
    for halvings in range((widest - 1).bit_length() + 1):  # whole layers, half layers, ..., neurons: few are needed
        for name, mask in found.items():
            size = -(-mask.shape[1] // 2**halvings)
            for start in range(0, mask.shape[1], size):
                rows = refined[mask[refined, start : start + size].any(1)]
                if len(rows):
                    leave_out(name, rows, slice(start, start + size))
    return found


@lru_cache(maxsize=1)  # the same at every strength
def _of_ordinary(context: Context) -> ValueStatistics:
    return value_statistics(context.pipe, context.ordinary, context.batch_size)


def _make(context: Context, deviations: float | None) -> Sample:
    """Finds and silences each prompt's neurons before it is sampled: as published, or down to some deviations."""

    def sample(prompts: Sequence[str], *, seeds: Sequence[int]) -> np.ndarray:
        statistics = _of_ordinary(context)
        # With a threshold that nearly every prompt exceeds, silenced is what lies that many deviations out.
        strength = {} if deviations is None else {"spread": -2.0, "z_min": deviations}
        images = []
        # A share of a batch would not know which neurons are its own.
        size = min(context.batch_size, 32) if processes() == 1 else 1
        for i in range(0, len(prompts), size):
            part = prompts[i : i + size]
            with deactivated(context.pipe, find_value_neurons(context.pipe, part, statistics, **strength)):
                images.append(context.sample(part, seeds=seeds[i : i + size]))
        return np.concatenate(images)

    return sample


BASELINE = Baseline(
    "neurons in cross-attention, found for each prompt",
    "deviations a neuron lies out",
    _make,
    (None, 0.5, 0.0),
    lambda deviations: "as published" if deviations is None else f"{deviations:g} deviations",
)
