"""Peak memory of a run on a GPU, before it begins, from the shapes of SD1.4 or SD2.0.

memory(parameters)                          # gigabytes of each part, at 512 and 768 pixels
describe(parameters)                        # lines of the cost estimate, scaled by measured memory
of_run(parameters)                          # ... for the parts of a run, at the size of its model
parts(pipe, parameters)                     # one step of each part that fills a GPU, as functions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from memsub.activations import capture
from memsub.models import Pipeline, as_denoiser, find_model, generate
from memsub_extra.attacks import EmbeddingAttack
from memsub_extra.run.parameters import Parameters

from ..hardware import decode_one_by_one
from ..notebooks.check import MEASURED
from ..notebooks.rows import gradient_rows
from .device import Elsewhere, size
from .shapes import UNETS, shapes

SIDES = (512, 768)
"""Sides of the images in pixels."""
TRAINING = "fine-tuning"
"""Beginning of the name of the one part in `parts` that is no part of a run."""


def describe(p: Parameters) -> str:
    """Lines for the cost estimate; empty for models other than SD1.4 and SD2.0."""
    peak = memory(p)
    if peak is None:
        return ""
    text = (MEASURED * peak).round(1).to_string()
    return f"on a GPU, peak gigabytes from shapes (weights included), times {MEASURED}:\n{text}"


def of_run(p: Parameters) -> pd.Series | None:
    """Gigabytes of each part of a run, at its model's image size, times `MEASURED`; None if `memory` is None."""
    name = find_model(p.model).name
    if name not in UNETS:
        return None
    peak = memory(p, sides=(8 * UNETS[name]["sample_size"],))
    assert peak is not None  # `memory` is None only for other models
    of_parts = MEASURED * peak.iloc[:, 0]
    return of_parts[[part for part in of_parts.index if not part.startswith(TRAINING)]]


def memory(p: Parameters, sides: Sequence[int] | None = None) -> pd.DataFrame | None:
    """Gigabytes at once on a GPU, weights included, from the shapes of SD1.4 or SD2.0; None for other models.

    Index: parts at the batch sizes of the parameters; columns: 512 and 768 pixels, or other `sides`. The memory of GPU
    libraries is not included; attention is assumed to be a flash kernel.
    """
    name = find_model(p.model).name
    if name not in UNETS:
        return None
    columns: dict[str, dict[str, float]] = {}
    sides = sides or SIDES
    with tqdm(total=len(sides) * 4, desc="memory, from shapes", leave=False) as bar:
        for side in sides:
            pipe = shapes(cast(Any, name), getattr(torch, find_model(name).gpu_dtype), side // 8)
            decode_one_by_one(pipe)  # as a run does
            columns[f"{side} pixels"] = {}
            for part, work in parts(pipe, p).items():
                with Elsewhere(number=max(512, side)) as device:
                    work()
                columns[f"{side} pixels"][part] = (device.peak + size(as_denoiser(pipe).parts().values())) / 1e9
                bar.update()
    return pd.DataFrame(columns)


def parts(pipe: Pipeline, p: Parameters) -> dict[str, Callable[[], object]]:
    """One step of each part that fills a GPU."""
    denoiser = as_denoiser(pipe)
    batch = p.sampling.batch_size
    rows = gradient_rows(denoiser, batch)
    options: dict[str, Any] = {"steps": 1, "batch_size": batch, "progress": False}
    images = np.zeros((max(1, rows // p.embedding_attack.noises), *denoiser.image_shape, 3), np.uint8)

    def attack() -> None:
        start = denoiser.embed([""] * len(images))
        noises = p.embedding_attack.noises
        EmbeddingAttack(pipe, images, start, noises=noises, batch_size=rows).advance(1, range(len(images)))

    def training() -> None:
        context, latents = denoiser.embed([""] * rows), torch.zeros(rows, *denoiser.latent_shape).to(denoiser.device)
        optimizer = torch.optim.AdamW(denoiser.network.parameters())
        predicted = denoiser.predict(latents.to(denoiser.dtype), torch.zeros(rows).to(denoiser.device), context)
        predicted.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        f"sampling, {batch} images": lambda: generate(pipe, [""] * batch, **options),
        f"capture, {batch} prompts": lambda: capture(pipe, [""] * batch, **options),
        f"embedding attack, {rows} rows": attack,
        f"{TRAINING} all weights (AdamW), {rows} pairs": training,
    }
