"""An epoch of every removal on SD1.4's and SD2.0's UNets with random weights: `python -m tools.fullsize_removals`.

What the edits do means nothing; that they are made, by how much memory and in what time, does. Each removal runs in a
process of its own, with gradient checkpointing, on latents of 8 x 8 and sixteen pairs: one step of those that train.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from memsub.audit import Pairs
from memsub.denoiser import as_denoiser
from memsub.prompts import load_prompts
from memsub.removal import REMOVALS, pruning

from .fullsize import UNETS, random_pipeline

PAIRS = 16
FEWER: dict[str, dict[str, Any]] = {
    "adversarial pruning": {"rounds": 1, "iterations": 1},
    "adversarial fine-tuning": {"iterations": 1},
    "adversarial distillation": {"iterations": 1},
}
"""By the beginning of a removal's name; all that train do it for one epoch."""


def one(model: Any, name: str) -> str:
    """Makes one removal's edit and says what it took."""
    pipe = random_pipeline(model, sample_size=8)
    denoiser = as_denoiser(pipe)
    pipe.unet.enable_gradient_checkpointing()
    pruning.CAPTURE["steps"] = 10  # those that the edit unites
    rng, prompts = np.random.default_rng(0), load_prompts("tiny")

    def pairs(kind: str) -> Pairs:
        images = rng.integers(0, 256, (PAIRS, *denoiser.image_shape, 3), dtype=np.uint8)
        return Pairs(prompts.of(kind)[:PAIRS], images)

    options = next((few for start, few in FEWER.items() if name.startswith(start)), {})
    if REMOVALS[name].objective:
        options = options | {"epochs": 1}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        edit = REMOVALS[name].edit(pipe, pairs("verbatim"), pairs("ordinary"), folder=folder, progress=False, **options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    weights = sum(map(len, edit.positions.values())) / 1e6
    return f"{model}, {name}: {time.monotonic() - began:.0f} s, {peak:.1f} GB, sets {weights:.1f} million weights"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.fullsize_removals", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=list(UNETS), default=list(UNETS))
    parser.add_argument("--only", nargs="*", default=list(REMOVALS), help="names of removals (default: all)")
    parser.add_argument("--here", action="store_true", help="in this process: for one model and one removal")
    args = parser.parse_args()
    if args.here:
        print(one(args.models[0], args.only[0]), flush=True)
        return
    for model in args.models:
        for name in args.only:
            command = [sys.executable, "-m", "tools.fullsize_removals", "--here", "--models", model, "--only", name]
            if code := subprocess.run(command, check=False, cwd=Path(__file__).parents[1]).returncode:
                print(f"{model}, {name}: failed ({code}; -9 is not enough memory)", flush=True)


if __name__ == "__main__":
    main()
