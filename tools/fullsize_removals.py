"""A step of every removal on SD1.4's and SD2.0's UNets with random weights: `python -m tools.fullsize_removals`.

Only time and memory matter, not the edits. Each removal runs in a separate process, in bfloat16, with gradient
checkpointing and Adafactor, on sixteen pairs. Latents have the published size on a GPU, and 8 x 8 elsewhere.
`--out` is the file of rows that `python -m tools.figures --fullsize` reads.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memsub.io import distributed
from memsub.models import as_denoiser
from memsub.prompts import load_prompts
from memsub_extra.hardware import hardware, peak_gigabytes
from memsub_extra.prompt_lists.wordings import wordings_of
from memsub_extra.unlearning import pruning
from memsub_extra.unlearning.pairs import Pairs
from memsub_extra.unlearning.removals import REMOVALS
from tools.fullsize import UNETS, random_pipeline, rows_in_processes

PAIRS = 16
FEWER: dict[str, dict[str, Any]] = {
    "adversarial pruning": {"rounds": 1, "iterations": 1},
    "adversarial fine-tuning": {"iterations": 1},
    "adversarial distillation": {"iterations": 1},
}
"""Options by the beginning of a name. Trainings take one step; regrowth and its control two, one with a teacher."""


def one(model: Any, name: str) -> dict[str, Any]:
    """Makes the edit of one removal; returns its row, with seconds, gigabytes and millions of set weights."""
    device = distributed.device()
    side = UNETS[model]["sample_size"] if device.type == "cuda" else 8
    pipe = random_pipeline(model, sample_size=side, dtype=torch.bfloat16).to(device)
    denoiser = as_denoiser(pipe)
    pipe.unet.enable_gradient_checkpointing()
    pruning.CAPTURE["steps"] = 10  # the steps that the edit unites
    rng, prompts = np.random.default_rng(0), load_prompts("tiny")

    def pairs(kind: str) -> Pairs:
        images = rng.integers(0, 256, (PAIRS, *denoiser.image_shape, 3), dtype=np.uint8)
        return Pairs(prompts.of(kind)[:PAIRS], images, wordings_of(prompts.rows(kind))[:PAIRS])

    options = next((few for start, few in FEWER.items() if name.startswith(start)), {})
    if REMOVALS[name].objective:
        options = options | {"epochs": 1, "optimizer": "adafactor"}
        if "steps" in REMOVALS[name].options:
            options = {"steps": 2, "alone": 1, "optimizer": "adafactor"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        edit = REMOVALS[name].edit(pipe, pairs("verbatim"), pairs("ordinary"), folder=folder, progress=False, **options)
    weights = sum(map(len, edit.positions.values())) / 1e6
    took = {"seconds": time.monotonic() - began, "gigabytes": peak_gigabytes(), "million_weights": weights}
    return {"model": model, "removal": name, "on": hardware(device), "side": side, **took}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.fullsize_removals", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=list(UNETS), default=list(UNETS))
    parser.add_argument("--only", nargs="*", default=list(REMOVALS), help="names of removals (default: all)")
    parser.add_argument("--out", type=Path, help="file for the rows, JSON; those that it holds are kept")
    parser.add_argument("--here", action="store_true", help="in this process: for one model and one removal")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(one(args.models[0], args.only[0])), flush=True)
        return
    jobs = [
        ({"model": model, "removal": name}, ["--models", model, "--only", name])
        for model in args.models
        for name in args.only
    ]
    rows_in_processes("tools.fullsize_removals", jobs, args.out)


if __name__ == "__main__":
    main()
