"""The whole method once on a real pipeline, as small as it can be: `python -m tools.real_run MODEL --out FOLDER`.

    python -m tools.real_run sd14 --out runs/real                           # Stable Diffusion 1.4: 10 GB of disk
    python -m tools.real_run hf-internal-testing/tiny-sd-pipe --out runs/real       # from a hub, a few megabytes
    python -m tools.real_run path/to/folder --out runs/real --weights random

With two captions and four steps it captures, locates, prunes, saves, loads the saved files, and generates. The result
shows that the chain works on these files, and nothing about memorization. docs/results/ collects the `result.json` of
the folder. A scheduled workflow runs it where the hub can be reached (.github/workflows/real-weights.yml).
"""

from __future__ import annotations

import argparse
import gc
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import memsub
from memsub.io.images import save_image
from memsub.models import Pipeline, as_denoiser, fingerprint
from memsub.pruning import Edit
from memsub_extra.hardware import decode_one_by_one, hardware, peak_gigabytes
from tools import results

CAPTIONS = ("a red heart on a green field", "a blue fish beside a tree")
"""Captions of no published list, so that nothing has to be fetched, and no list is republished."""
SETTINGS: dict[str, Any] = {"captions": len(CAPTIONS), "steps": 4, "guidance_scale": 7.5, "sparsity": 0.01, "seed": 0}
WRITTEN = {"edit.safetensors", "pruned", "images", "result.json"}
"""Files and folders that a run writes."""
CLOSE = 2
"""Largest difference, in levels of 0 to 255, of images between two loads of the same weights."""


def real_run(model: str, out: Path, weights: str | None = None, remark: str = "") -> results.Result:
    """Runs the chain on a model, and returns which checks held.

    Args:
        model: as for `memsub.load_pipeline`.
        out: folder for edit, pruned pipeline, images and `result.json`; files of an earlier run are removed first.
        weights: kind of the weights; default: by the model's name.

    Raises:
        ValueError: memsub does not take this model, or the folder holds other files.
    """
    began = time.monotonic()
    if out.is_dir() and (others := {path.name for path in out.iterdir()} - WRITTEN):
        raise ValueError(f"--out {out} holds other files, such as {min(others)}: name a new folder.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    pipe = memsub.load_pipeline(model)
    decode_one_by_one(pipe)
    device = as_denoiser(pipe).device
    before, whole = fingerprint(pipe), _images(pipe)
    edit = _located(pipe)
    edit.save(out / "edit.safetensors")
    loaded = Edit.load(out / "edit.safetensors")
    checks = {
        "the edit sets weights": any(map(len, edit.positions.values())),
        "the edit's file holds the edit": loaded.fingerprint == edit.fingerprint,
    }
    with memsub.pruned(pipe, loaded):
        pruned_images = _images(pipe)
    checks["after pruning, the weights are as before"] = fingerprint(pipe) == before
    checks["the same seeds give the same images again"] = _apart(_images(pipe), whole) <= CLOSE
    loaded.apply(pipe)
    pruned_weights = fingerprint(pipe)
    pipe.save_pretrained(out / "pruned", safe_serialization=True)
    del pipe
    gc.collect()  # two pipelines of a billion weights may not fit into memory
    again = memsub.load_pipeline(out / "pruned")
    decode_one_by_one(again)
    images = _images(again)
    checks["the saved pipeline holds the pruned weights"] = fingerprint(again) == pruned_weights
    checks["it gives the pruned model's images"] = _apart(images, pruned_images) <= CLOSE
    checks["pruning changes what is generated"] = _apart(pruned_images, whole) > 0
    checks["images are no constant"] = bool(np.ptp(images) > 0)
    for name, of_one in {"unedited": whole, "pruned": images}.items():
        for i, image in enumerate(of_one):
            save_image(image, out / "images" / f"{name}-{i}.png")
    result = results.Result(
        kind="smoke",
        model=Path(model).name if results.weights_of(model) == "own" else model,
        weights=weights or results.weights_of(model),
        date=time.strftime("%Y-%m-%d"),
        machine=results.machine(hardware(device)),
        settings=SETTINGS | {"edit_density": round(edit.density, 6)},
        checks=checks,
        minutes=round((time.monotonic() - began) / 60, 2),
        gigabytes=round(peak_gigabytes(), 2),
        remark=remark,
    )
    result.save(out / "result.json")
    return result


def _images(pipe: Pipeline) -> np.ndarray:
    """One image for each caption."""
    options = {"steps": SETTINGS["steps"], "guidance_scale": SETTINGS["guidance_scale"], "batch_size": 1}
    return memsub.generate(pipe, list(CAPTIONS), seeds=range(len(CAPTIONS)), progress=False, **options)


def _located(pipe: Pipeline) -> Edit:
    """METHOD's edit, located on both captions at all steps."""
    options: dict[str, Any] = {"steps": SETTINGS["steps"], "guidance_scale": SETTINGS["guidance_scale"]}
    options |= {"seed": SETTINGS["seed"], "batch_size": 1, "progress": False}
    stats, null = memsub.capture(pipe, list(CAPTIONS), **options), memsub.capture(pipe, [""], **options)
    return memsub.locate(pipe, stats, null, SETTINGS["sparsity"]).union(SETTINGS["steps"])


def _apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference between two sets of images, in levels of 0 to 255."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.real_run", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a name, a folder, a file, or a hub id")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/real"), help="folder (runs/real); emptied of earlier runs"
    )
    parser.add_argument("--weights", choices=["published", "random", "embedded", "own"], help="what they are")
    parser.add_argument("--remark", default="", help="a sentence of yours, without names")
    args = parser.parse_args()
    torch.manual_seed(0)
    result = real_run(args.model, args.out, args.weights, args.remark)
    for check, held in result.checks.items():
        print(f"{'yes' if held else 'NO '}  {check}")
    print(f"{args.out / 'result.json'}: {result.minutes} minutes, {result.gigabytes} GB on {result.machine.hardware}")
    if not all(result.checks.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
