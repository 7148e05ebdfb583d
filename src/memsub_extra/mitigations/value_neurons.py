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
"""Rows of network calls for the score of one prompt: two seeds, with and without text."""
Neurons = dict[str, torch.Tensor]
"""Layer name to a mask of its neurons for each prompt: bool, (prompts, neurons)."""


def value_layers(denoiser: Denoiser) -> dict[str, torch.nn.Linear]:
    """Value projections of cross-attention in the down and mid blocks, by module name.

    An adapter whose network names its modules differently may have a method `value_layers` that returns them.

    Raises:
        ValueError: the network has none, or one that is not plain or is fused with others.
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
    """Within it, the value neurons of each prompt output zero.

    The rows of UNet calls must be these prompts in order, once or repeated (as with guidance).

    Raises:
        ValueError: the UNet is called with other rows.
        RuntimeError: a UNet call does not call each of the layers once.
    """
    denoiser, rows = as_denoiser(pipe), set()
    layers = value_layers(denoiser)

    def silence(layer: str, text: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        mask = neurons[layer]
        rows.add(len(output))  # half a batch with guidance has as many rows as a whole batch without it
        if len(output) % len(mask) or len(rows) > 1:
            raise ValueError(f"neurons of {len(mask)} prompts do not fit a UNet call on {len(output)} rows.")
        return output.masked_fill(mask.to(output.device).repeat(len(output) // len(mask), 1)[:, None], 0)

    with hooked(denoiser, {name: layers[name] for name in neurons}, silence):
        yield


@dataclass
class ValueStatistics:
    """Statistics of value neurons and of the memorization score over prompts that are not memorized.

    Attributes:
        mean, std: of activations, layer name to (neurons,).
        score_mean, score_std: of the memorization score.
    """

    mean: dict[str, torch.Tensor]
    std: dict[str, torch.Tensor]
    score_mean: float
    score_std: float


def _activations(pipe: Pipeline, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Mean absolute activation over the prompt's tokens, layer to (prompts, neurons). It depends only on the text."""
    denoiser = as_denoiser(pipe)
    text, layers = denoiser.embed(prompts).embeddings, value_layers(denoiser)
    with torch.no_grad():
        # In an offloaded model, weights and embeddings are on different devices.
        outputs = {name: layer(text.to(layer.weight.device)) for name, layer in layers.items()}
    return {name: output.float().abs().mean(1).cpu() for name, output in outputs.items()}


def memorization_score(pipe: Pipeline, prompts: Sequence[str], batch_size: int = 16) -> torch.Tensor:
    """Norm of the text's contribution to the first noise prediction, averaged over two seeds, shape (prompts,).

    NeMo compares the first step between seeds by SSIM, whose windows do not fit small latents. On the embedded model, a
    cosine instead of SSIM separates memorized from other captions less well (AUC 0.83) than this score of Wen et al.
    (0.95).
    """
    return torch.from_numpy(first_step_scores(pipe, prompts, scores=[SCORE], seeds=2, batch_size=2 * batch_size)[SCORE])


def value_statistics(pipe: Pipeline, prompts: Sequence[str], batch_size: int = 16) -> ValueStatistics:
    """Computes the statistics of value neurons from prompts that are not memorized.

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
    """Finds the value neurons of each memorized prompt (NeMo, Hintersdorf et al., NeurIPS 2024, section 4).

    First selection: neurons whose activation is `z` standard deviations or more from the mean. z decreases until
    silencing these neurons brings the memorization score below a threshold. Refinement: first layers, then neurons are
    removed from the selection if the score stays below the threshold. (Here also halves of layers, quarters
    and so on: the same result with fewer calls.) A prompt with a score below the threshold gets no neurons.

    Args:
        spread: the threshold, in standard deviations of the score above its mean on prompts that are not memorized
            (NeMo: 1). Smaller values silence more neurons.
        z: standard deviations of the first selection.
        z_step: decrement of z.
        z_min: smallest z.
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
    """Number of scores that the cost estimate assumes for the refinement of one prompt.

    Whole layers are tried first. A part that is required is split in two halves, down to neurons, so each remaining
    neuron costs two scores for each halving. If all neurons remained, there would be tens of thousands of scores. NeMo
    reports one or a few neurons a prompt; the embedded model has up to 43, mostly in the same parts. The bound assumes
    16 neurons in separate parts, which covers the number counted there (220 scores in both searches of a prompt).
    """
    halvings = (max(d.shape[1] for d in deviation.values()) - 1).bit_length()
    return len(deviation) + 2 * 16 * halvings


class _Search:
    """The state of the search for the neurons of each prompt.

    Args:
        threshold: prompts with a score above it count as memorized.
        deviation: standard deviations of each activation from its mean, layer to (prompts, neurons).
    """

    def __init__(self, pipe: Pipeline, prompts: list[str], threshold: float, deviation: dict[str, torch.Tensor]):
        self.pipe, self.prompts, self.threshold, self.deviation = pipe, prompts, threshold, deviation
        self.neurons: Neurons = {name: torch.zeros_like(d, dtype=torch.bool) for name, d in deviation.items()}
        self.refined = torch.zeros(0, dtype=torch.long)  # prompts that silencing brings below the threshold

    def memorized(self, rows: torch.Tensor, neurons: Neurons) -> torch.Tensor:
        """Which of the prompts `rows` score above the threshold with `neurons` silenced; layer to (rows, neurons)."""
        if not len(rows):
            return torch.zeros(0, dtype=torch.bool)
        with deactivated(self.pipe, neurons):
            return memorization_score(self.pipe, [self.prompts[i] for i in rows], len(rows)) > self.threshold

    def select(self, deviations: Sequence[float]) -> None:
        """Selects neurons beyond the first of these deviations that brings a prompt below the threshold."""
        everything = torch.arange(len(self.prompts))
        over = first = everything[self.memorized(everything, {})]
        for z in deviations:
            if not len(over):
                break
            for name, d in self.deviation.items():
                self.neurons[name][over] = d[over] > z
            over = over[self.memorized(over, {name: mask[over] for name, mask in self.neurons.items()})]
        # Prompts that stay above the threshold keep all selected neurons.
        self.refined = first[~torch.isin(first, over)]

    def refine(self) -> None:
        """Removes neurons that are not required: first in whole layers, then in halves, and so on to single neurons."""
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
        """Removes these neurons of a layer from the selection of prompts that do not require them."""
        without = {layer: mask[rows] for layer, mask in self.neurons.items()}
        without[name][:, part] = False
        unneeded = ~self.memorized(rows, without)
        self.neurons[name][rows[unneeded]] = without[name][unneeded]


@lru_cache(maxsize=1)  # the same at every strength
def _of_ordinary(context: Context) -> ValueStatistics:
    return value_statistics(context.pipe, context.ordinary, context.batch_size)


def _make(context: Context, deviations: float | None) -> Sample:
    """Silences the neurons of each prompt during sampling. They are found as published, or at a given deviation."""

    def sample(prompts: Sequence[str], *, seeds: Sequence[int]) -> np.ndarray:
        statistics = _of_ordinary(context)
        # Nearly every score exceeds this threshold, so z falls to z_min: all neurons beyond it are silenced.
        strength = {} if deviations is None else {"spread": -2.0, "z_min": deviations}
        # Several processes would split a batch, and its parts would not match the masks: one prompt at a time.
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
