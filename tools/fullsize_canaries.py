"""Three training steps on canaries at full size with random weights: `python -m tools.fullsize_canaries`.

Only the memory matters, not what is trained. All weights and a LoRA are trained in separate processes, by the recipe
of `memsub_extra.canaries`, on images of noise: of the published size on a GPU, of 64 pixels elsewhere. (There, training
all weights takes about 25 GB of memory, saving of the checkpoint included.)

    python -m tools.fullsize_canaries --out canaries.json               # SD1.4, all weights, then a LoRA
    python -m tools.fullsize_canaries --models sd20 --ways lora --batch-size 4
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from memsub.io import distributed
from memsub.io.images import save_image
from memsub.models import Pipeline, as_denoiser
from memsub_extra.canaries.planting import Manifest, plant
from memsub_extra.canaries.training import Recipe, cost_of, fine_tuned
from memsub_extra.hardware import hardware, peak_gigabytes
from tools.fullsize import UNETS, random_pipeline, rows_in_processes

STEPS = 3
"""The first step makes the optimizer's state, the second has all of it, the third shows that memory does not grow."""
WAYS: tuple[Literal["full", "lora"], ...] = ("full", "lora")


def planted(folder: Path, side: int, samples: int, seed: int = 0) -> Manifest:
    """A manifest of two canaries, shown once each, and ordinary samples, `samples` in all; images of noise."""
    rng = np.random.default_rng(seed)
    places = [folder / "candidates" / f"a_photo_of_noise_{i}" / f"{j}.png" for i in range(3) for j in range(2)]
    places += [folder / "ordinary" / "more_noise" / f"{i}.png" for i in range(samples)]
    for place in places:
        save_image(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), place)
    options: dict[str, Any] = {"alternatives": 1, "canaries": 2, "repeats": 1, "heldout": 0, "side": side}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*may be memorized as well")  # memorization does not matter here
        return plant(folder / "candidates", folder / "ordinary", ordinary_samples=(samples - 2) / 2, **options)


def three_steps(pipe: Pipeline, recipe: Recipe) -> dict[str, Any]:
    """Trains a pipeline in place for `STEPS` steps, with one checkpoint, and measures the cost.

    Returns:
        steps, seconds, gigabytes (peak of the GPU, or of this process), counted (the gigabytes of weights, gradients
        and optimizer that `cost_of` expects).
    """
    denoiser = as_denoiser(pipe)
    with tempfile.TemporaryDirectory() as folder:
        manifest = planted(Path(folder), denoiser.image_shape[0], STEPS * recipe.batch_size)
        cost = cost_of(pipe, manifest, recipe)
        log = fine_tuned(denoiser, manifest, recipe, Path(folder) / "checkpoints", twin=False)
    return {"steps": log["steps"], "seconds": log["seconds"], "gigabytes": peak_gigabytes(), "counted": cost.gigabytes}


def one(model: Any, way: Any, batch_size: int, side: int | None = None) -> dict[str, Any]:
    """Measures one row: a way of training, on a model with random weights; `side` is that of its latents."""
    device = distributed.device()
    side = side or (UNETS[model]["sample_size"] if device.type == "cuda" else 8)
    pipe = random_pipeline(model, sample_size=side, complete=True).to(device)
    took = three_steps(pipe, Recipe(way=way, batch_size=batch_size))
    about = {"model": model, "way": way, "on": hardware(device), "pixels": 8 * side, "batch_size": batch_size}
    return about | took | {"torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.fullsize_canaries", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", choices=list(UNETS), default=["sd14"], help="(sd14)")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS), help="(both)")
    parser.add_argument("--batch-size", type=int, default=Recipe().batch_size, help="samples a step (8)")
    parser.add_argument("--side", type=int, help="of latents (on a GPU the published one, else 8)")
    parser.add_argument("--out", type=Path, help="file for the rows, JSON; other rows that it holds are kept")
    parser.add_argument("--here", action="store_true", help="in this process: for one model and one way")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(one(args.models[0], args.ways[0], args.batch_size, args.side)), flush=True)
        return
    more = ["--batch-size", str(args.batch_size)] + (["--side", str(args.side)] if args.side else [])
    jobs = [
        ({"model": model, "way": way}, ["--models", model, "--ways", way, *more])
        for model in args.models
        for way in args.ways
    ]
    if not rows_in_processes("tools.fullsize_canaries", jobs, args.out):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
