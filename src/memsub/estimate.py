"""What a run will cost, before it begins: `python -m memsub run MODEL --dry-run`.

work(parameters)                   # prompts and images of each part, and their denoising steps
disk(parameters, neurons)          # bytes of the grid's statistics
seconds_per_step(pipe)             # one image, one step, guided, on this device
"""

from __future__ import annotations

import time

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline

from .experiments import CONTROLS
from .generation import initial_noise
from .runs import Parameters


def work(p: Parameters) -> pd.DataFrame:
    """Columns part, images (sampled, counted once a denoising run), steps (of each)."""
    sweep = len(p.sweep_sparsity) * (2 * len(p.sweep_steps) + (p.edit_steps in p.sweep_steps)) + 1
    models = p.subsets + 2 * min(CONTROLS, p.subsets) + 1
    rivals = (
        2
        + bool(p.rival_deviations)
        + len(p.sweep_sparsity)
        + len(p.rival_targets)
        + len(p.rival_tokens)
        + len(p.rival_deviations)
    )
    extracted = 2 * p.extraction_captions
    if p.model == "tiny":  # whose list has templates and a ladder of seven rungs besides
        extracted += min(20, p.extraction_captions) + 7 * min(10, max(2, p.extraction_captions // 5))
    parts = [
        ("01 capture of the grid", 2 * p.memorized + 1, p.steps),
        ("04 sweep", sweep * 2 * p.judged, p.judge_steps),
        ("04 pruned models and controls", models * 2 * p.judged, p.judge_steps),
        ("04 FID", 3 * p.fid_images, p.judge_steps),
        ("05 rivals", rivals * (p.rival_captions + p.rival_never_seen), p.judge_steps),
        ("05 extraction", 3 * extracted * p.extraction_images, p.judge_steps),
        ("05 embedding attack", 3 * 2 * 3 * p.embedding_images, p.judge_steps),
    ]
    return pd.DataFrame(parts, columns=["part", "images", "steps"])


def disk(p: Parameters, neurons: int) -> int:
    """Bytes of the grid's statistics; `neurons` is the sum over the model's feed-forward layers."""
    groups = 2 * (1 + p.subsets * len(p.sizes))
    return groups * p.steps * neurons * 4


NEURONS = {"tiny": 5_504, "sd14": 49_920, "sd20": 49_920}
"""Neurons of all 16 feed-forward layers together."""


@torch.no_grad()
def seconds_per_step(pipe: StableDiffusionPipeline, batch_size: int) -> float:
    """Seconds of one guided denoising step of one image, from two steps of a batch after one of warm-up."""

    def steps(n: int) -> float:
        began = time.perf_counter()
        latents = initial_noise(pipe, [0] * batch_size)
        pipe([""] * batch_size, latents=latents, num_inference_steps=n, guidance_scale=3.0, output_type="latent")
        if pipe.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    steps(1)
    return steps(2) / 2 / batch_size


def describe(p: Parameters, pipe: StableDiffusionPipeline | None) -> str:
    """The estimate as text; without a pipeline at hand, without times."""
    table = work(p)
    table["UNet calls"] = -(-table["images"] // p.batch_size) * table["steps"]
    lines = []
    if pipe is not None:
        seconds = seconds_per_step(pipe, min(p.batch_size, 8))
        table["minutes"] = (table["images"] * table["steps"] * seconds / 60).round(1)
        lines.append(f"calibration: {1000 * seconds:.1f} ms an image and step on {pipe.device}")
    else:
        lines.append("no time estimate: the model is not on this machine yet")
    total = table[["images", "UNet calls", *(["minutes"] if pipe is not None else [])]].sum()
    lines += [table.to_string(index=False), "together: " + ", ".join(f"{v:,.6g} {k}" for k, v in total.items())]
    if p.model in NEURONS:
        lines.append(f"on disk: {disk(p, NEURONS[p.model]) / 1e6:,.0f} MB of statistics, besides images and masks")
    return "\n".join(lines)
