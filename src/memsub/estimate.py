"""What a run will cost, before it begins: `python -m memsub run MODEL --dry-run`.

work(parameters)                   # what each experiment declares that it samples
disk(parameters)                   # bytes of the grid's statistics
memory(parameters)                 # peak memory of each part on a GPU, from shapes
seconds_per_step(pipe)             # one image, one step, guided, on this device
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from .activations import capture
from .attacks import EmbeddingAttack
from .denoiser import Pipeline, as_denoiser
from .experiments import EXPERIMENTS, gradient_rows
from .generation import generate, initial_noise
from .meta import Elsewhere, size
from .models import find_model
from .parameters import Parameters
from .published import UNETS, shapes


def work(p: Parameters) -> pd.DataFrame:
    """Columns part, images, network calls, and steps (guided steps of one image that the part costs).

    Each experiment by itself: what two of them share is sampled once, so that a run takes a little less.
    """
    rows = []
    for experiment in EXPERIMENTS.values():
        found = [w for w in experiment.cost(p) if w.images]
        rows.append(
            {
                "part": f"{experiment.notebook} {experiment.title}",
                "images": sum(w.images for w in found),
                "network calls": sum(-(-w.images // p.sampling.batch_size) * w.steps for w in found),
                "steps": experiment.steps(p),
            }
        )
    return pd.DataFrame(rows)


def disk(p: Parameters) -> int | None:
    """Bytes of the grid's statistics; None if the model's number of neurons is not in the registry."""
    neurons = find_model(p.model).neurons
    groups = 2 * (2 + p.grid.subsets * len(p.grid.sizes))
    return groups * p.capture.steps * neurons * 4 if neurons else None


def memory(p: Parameters) -> pd.DataFrame | None:
    """Gigabytes at once on a GPU, weights included, from the shapes of SD1.4 or SD2.0; None for other models.

    Index: parts at the batch sizes of the parameters; columns: 512 and 768 pixels. What the GPU's own libraries take is
    not in it; attention is taken to be a flash kernel.
    """
    name = find_model(p.model).name
    if name not in UNETS:
        return None
    columns: dict[str, dict[str, float]] = {}
    with tqdm(total=2 * 4, desc="memory, from shapes", leave=False) as bar:
        for side in (512, 768):
            pipe = shapes(cast(Any, name), find_model(name).gpu_dtype, side // 8)
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
    rows, batch = gradient_rows(denoiser), p.sampling.batch_size
    options: dict[str, Any] = {"steps": 1, "batch_size": batch, "progress": False}
    pictures = np.zeros((max(1, rows // p.embedding_attack.noises), *denoiser.image_shape, 3), np.uint8)

    def attack() -> None:
        start = denoiser.embed([""] * len(pictures))
        noises = p.embedding_attack.noises
        EmbeddingAttack(pipe, pictures, start, noises=noises, batch_size=rows).advance(1, range(len(pictures)))

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
        f"fine-tuning all weights (AdamW), {rows} pairs": training,
    }


@torch.no_grad()
def seconds_per_step(pipe: Pipeline, batch_size: int) -> float:
    """Seconds of one guided call of the network for one image, from a few of a batch after one of warm-up."""
    denoiser = as_denoiser(pipe)

    def call(steps: int) -> float:
        began = time.perf_counter()
        denoiser.sample([""] * batch_size, initial_noise(denoiser, [0] * batch_size), steps, 3.0)
        if denoiser.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / denoiser.calls(steps)

    call(1)
    return call(4) / batch_size


def describe(p: Parameters, pipe: Pipeline | None) -> str:
    """The estimate as text; without a pipeline at hand, without times."""
    table, lines = work(p), []
    if pipe is not None:
        seconds = seconds_per_step(pipe, min(p.sampling.batch_size, 8))
        table["minutes"] = (table["steps"] * seconds / 60).round(1)
        lines.append(f"calibration: {1000 * seconds:.1f} ms an image and step on {as_denoiser(pipe).device}")
    else:
        lines.append("no time estimate: the model is not on this machine yet")
    total = table.drop(columns="part").sum()
    lines += [table.to_string(index=False), "together: " + ", ".join(f"{v:,.6g} {k}" for k, v in total.items())]
    if statistics := disk(p):
        lines.append(f"on disk: {statistics / 1e6:,.0f} MB of statistics, besides images and masks")
    if (peak := memory(p)) is not None:
        lines += ["on a GPU, peak gigabytes from shapes (weights included):", peak.round(1).to_string()]
    return "\n".join(lines)
