"""Cross-attention value neurons (NeMo, Hintersdorf et al., NeurIPS 2024): found and silenced for each prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from memsub.io.distributed import processes
from memsub.models import (
    Denoiser,
    Pipeline,
    Sample,
    as_denoiser,
    check_plain,
    hooked,
    in_batches,
    named_modules,
    only_shapes,
)
from memsub_extra.mitigations.base import Baseline, Context, declare
from memsub_extra.mitigations.detection import first_step_scores

SCORE = "text magnitude"
SCORE_ROWS = 4
"""Rows of a network call that the score of one prompt takes: two seeds, with and without text."""
Neurons = dict[str, torch.Tensor]
"""Layer name to a mask of its neurons for each prompt: bool, (prompts, neurons)."""


def value_layers(denoiser: Denoiser) -> dict[str, torch.nn.Linear]:
    """Value projections of the cross-attention on the way down and in the middle, by module name.

    An adapter of a network whose modules have other names may have a method `value_layers`, which then says them.

    Raises:
        ValueError: the network has none, or one that is not plain or fused with others.
    """
    if own := getattr(denoiser, "value_layers", None):
        return own()
    modules, shapes = named_modules(denoiser.network), only_shapes(denoiser.network)
    layers = {
        name: check_plain(name, module, shapes)
        for name, module in modules.items()
        if name.endswith("attn2.to_v") and name.startswith(("down_blocks", "mid_block"))
    }
    for name in layers:
        if getattr(modules[name.removesuffix(".to_v")], "fused_projections", False):
            raise ValueError(f"layer {name} is fused with others: call pipe.unfuse_qkv_projections() first.")
    if not layers:
        name = type(denoiser.network).__name__
        raise ValueError(f"this {name} has no cross-attention in its down and middle blocks.")
    return layers


@contextmanager
def deactivated(pipe: Pipeline, neurons: Neurons) -> Iterator[None]:
    """While open, each prompt's value neurons output zero.

    The UNet must be called with those prompts in their order, once or, as under guidance, several times over.

    Raises:
        ValueError: it is called on other rows.
        RuntimeError: it does not call each of the layers once.
    """
    denoiser, rows = as_denoiser(pipe), set()
    layers = value_layers(denoiser)

    def silence(layer: str, text: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        mask = neurons[layer]
        rows.add(len(output))  # half a batch under guidance has as many rows as the whole of it without
        if len(output) % len(mask) or len(rows) > 1:
            raise ValueError(f"neurons of {len(mask)} prompts do not fit a UNet call on {len(output)} rows.")
        return output.masked_fill(mask.to(output.device).repeat(len(output) // len(mask), 1)[:, None], 0)

    with hooked(denoiser, {name: layers[name] for name in neurons}, silence):
        yield


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
    text, layers = denoiser.embed(prompts).embeddings, value_layers(denoiser)
    with torch.no_grad():
        # A weight lies elsewhere than the embeddings if the model is offloaded.
        outputs = {name: layer(text.to(layer.weight.device)) for name, layer in layers.items()}
    return {name: output.float().abs().mean(1).cpu() for name, output in outputs.items()}


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
    under the threshold without it (here also parts of a layer, half as large at each round, which gives the same with
    fewer calls). Each prompt is searched by itself; one whose score is under the threshold has no neurons.

    Args:
        spread: the threshold in deviations of the score above its mean on prompts that are not memorized (NeMo: 1).
            Smaller silences more.
        z: deviations with which the first selection begins.
        z_step: by how much they fall.
        z_min: where they end.
    """
    activations = _activations(pipe, prompts)
    deviation = {name: (a - statistics.mean[name]).abs() / statistics.std[name] for name, a in activations.items()}
    selections = 1 + max(0, math.ceil((z - z_min) / z_step))
    declare(pipe, SCORE_ROWS * len(prompts) * (selections + _most_refinements(deviation)))
    search = _Search(pipe, list(prompts), statistics.score_mean + spread * statistics.score_std, deviation)
    search.select([z - i * z_step for i in range(selections)])
    search.refine()
    return search.neurons


def _most_refinements(deviation: dict[str, torch.Tensor]) -> int:
    """Scores of one prompt that its refinement takes at most, for the estimate of a run's cost.

    Whole layers are tried first. A part that is needed is tried again as two halves, down to neurons, so that each of
    the neurons that stay costs two scores a halving. If every neuron stayed, that would be tens of thousands. NeMo
    reports one or a few a prompt; the embedded model has up to 43, which share most of their parts. 16 that share none
    cover what was counted there (220 scores in both searches of a prompt).
    """
    halvings = (max(d.shape[1] for d in deviation.values()) - 1).bit_length()
    return len(deviation) + 2 * 16 * halvings


class _Search:
    """The neurons of each prompt while they are looked for.

    Args:
        threshold: a score over it is a memorized prompt's.
        deviation: how far each neuron lies out, layer to (prompts, neurons).
    """

    def __init__(self, pipe: Pipeline, prompts: list[str], threshold: float, deviation: dict[str, torch.Tensor]):
        self.pipe, self.prompts, self.threshold, self.deviation = pipe, prompts, threshold, deviation
        self.neurons: Neurons = {name: torch.zeros_like(d, dtype=torch.bool) for name, d in deviation.items()}
        self.refined = torch.zeros(0, dtype=torch.long)  # prompts that silencing brings under the threshold

    def memorized(self, rows: torch.Tensor, neurons: Neurons) -> torch.Tensor:
        """Which of the prompts `rows` score over the threshold without `neurons`, layer to (rows, neurons)."""
        if not len(rows):
            return torch.zeros(0, dtype=torch.bool)
        with deactivated(self.pipe, neurons):
            return memorization_score(self.pipe, [self.prompts[i] for i in rows], len(rows)) > self.threshold

    def select(self, deviations: Sequence[float]) -> None:
        """Silences what lies out by the first of these deviations that brings a prompt under the threshold."""
        everything = torch.arange(len(self.prompts))
        over = first = everything[self.memorized(everything, {})]
        for z in deviations:
            if not len(over):
                break
            for name, d in self.deviation.items():
                self.neurons[name][over] = d[over] > z
            over = over[self.memorized(over, {name: mask[over] for name, mask in self.neurons.items()})]
        # Of prompts that stay over the threshold every neuron is needed.
        self.refined = first[~torch.isin(first, over)]

    def refine(self) -> None:
        """Leaves out what is not needed: whole layers, half layers, ..., neurons. (Few are needed.)"""
        widest = max(mask.shape[1] for mask in self.neurons.values())
        for halvings in range((widest - 1).bit_length() + 1):
            for name, mask in self.neurons.items():
                size = -(-mask.shape[1] // 2**halvings)
                for start in range(0, mask.shape[1], size):
                    part = slice(start, start + size)
                    rows = self.refined[mask[self.refined, part].any(1)]
                    if len(rows):
                        self._leave_out(name, rows, part)

    def _leave_out(self, name: str, rows: torch.Tensor, part: slice) -> None:
        """Takes these neurons of one layer back for prompts that do not need them silenced."""
        without = {layer: mask[rows] for layer, mask in self.neurons.items()}
        without[name][:, part] = False
        unneeded = ~self.memorized(rows, without)
        self.neurons[name][rows[unneeded]] = without[name][unneeded]


@lru_cache(maxsize=1)  # the same at every strength
def _of_ordinary(context: Context) -> ValueStatistics:
    return value_statistics(context.pipe, context.ordinary, context.batch_size)


def _make(context: Context, deviations: float | None) -> Sample:
    """Finds and silences each prompt's neurons before it is sampled: as published, or down to some deviations."""

    def sample(prompts: Sequence[str], *, seeds: Sequence[int]) -> np.ndarray:
        statistics = _of_ordinary(context)
        # With a threshold that nearly every prompt exceeds, silenced is what lies that many deviations out.
        strength = {} if deviations is None else {"spread": -2.0, "z_min": deviations}
        # A share of a batch would not know which neurons are its own.
        size = min(context.batch_size, 32) if processes() == 1 else 1

        def silenced(part: list[int]) -> np.ndarray:
            some = [prompts[i] for i in part]
            with deactivated(context.pipe, find_value_neurons(context.pipe, some, statistics, **strength)):
                return context.sample(some, seeds=[seeds[i] for i in part])

        return np.concatenate([images for _, images in in_batches(range(len(prompts)), size, silenced)])

    return sample


BASELINE = Baseline(
    "neurons in cross-attention, found for each prompt",
    "deviations a neuron lies out",
    _make,
    (None, 0.5, 0.0),
    lambda deviations: "as published" if deviations is None else f"{deviations:g} deviations",
)
