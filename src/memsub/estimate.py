"""What a run will cost, before it begins: `python -m memsub run MODEL --dry-run`.

work(parameters)                   # what each experiment declares that it samples
disk(parameters)                   # bytes of the grid's statistics
seconds_per_step(pipe)             # one image, one step, guided, on this device
"""

from __future__ import annotations

import time

import pandas as pd
import torch

from .denoiser import Pipeline, as_denoiser
from .experiments import EXPERIMENTS
from .generation import initial_noise
from .models import find_model
from .parameters import Parameters


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
                "steps": round(sum(w.images * w.steps * w.weight for w in found)),
            }
        )
    return pd.DataFrame(rows)


def disk(p: Parameters) -> int | None:
    """Bytes of the grid's statistics; None if the model's number of neurons is not in the registry."""
    neurons = find_model(p.model).neurons
    groups = 2 * (2 + p.grid.subsets * len(p.grid.sizes))
    return groups * p.capture.steps * neurons * 4 if neurons else None


@torch.no_grad()
def seconds_per_step(pipe: Pipeline, batch_size: int) -> float:
    """Seconds of one guided denoising step of one image, from two steps of a batch after one of warm-up."""
    denoiser = as_denoiser(pipe)

    def steps(n: int) -> float:
        began = time.perf_counter()
        denoiser.sample([""] * batch_size, initial_noise(denoiser, [0] * batch_size), n, 3.0)
        if denoiser.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    steps(1)
    return steps(2) / 2 / batch_size


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
    if size := disk(p):
        lines.append(f"on disk: {size / 1e6:,.0f} MB of statistics, besides images and masks")
    return "\n".join(lines)
