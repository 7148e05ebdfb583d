"""Stable Diffusion 1.4 and 2.0 at full size on a GPU, measured: `python -m tools.gpu --out runs/gpu.json`.

Weights are random, in float16; everything else is as published: 512 and 768 pixels, the batch sizes of the parameter
files. For each model it measures a guided step of one image, a whole image, capture and an edit against plain sampling,
the masks of one set, seconds and peak memory of each part that `memsub check --parts` estimates from shapes, and how
often the host waits for the GPU. `--out` is the file that `python -m tools.figures --gpu` reads. (The minutes of a run
follow from a step: `python -m tools.costs` writes the step's time for `memsub check` and for the same table.)
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from memsub.activations import capture
from memsub.io.files import save_json
from memsub.models import Pipeline, as_denoiser, generate, initial_noise
from memsub.neurons import locate
from memsub.prompts import load_prompts
from memsub.pruning import pruned
from memsub_extra.full_size import memory
from memsub_extra.full_size.device import size
from memsub_extra.hardware import decode_one_by_one
from memsub_extra.notebooks.batch import find_parameters
from memsub_extra.notebooks.cost import seconds_per_step
from memsub_extra.run.parameters import Parameters
from tools.benchmarks import alternate
from tools.fullsize import UNETS, random_pipeline

GUIDANCE = 7.5


def seconds(work: Callable[[], object], repetitions: int = 3) -> float:
    """Median seconds after a warm-up, until the GPU has finished."""

    def done() -> None:
        work()
        torch.cuda.synchronize()

    return alternate([done], repetitions)[0]


def peak(work: Callable[[], object]) -> float:
    """Peak gigabytes of tensors on the GPU during `work`, weights included."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 1e9


def waits(work: Callable[[], object]) -> Counter[str]:
    """Number of CUDA's synchronizing calls, in which the host waits for the GPU, by file and line."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waited = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
    return Counter(f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}" for w in waited)


def waits_a_call(work: Callable[[int], object]) -> dict[str, float]:
    """The waits that one more step adds to `work(steps)`, by file and line."""
    few, many = waits(lambda: work(2)), waits(lambda: work(6))
    return {place: (many[place] - few[place]) / 4 for place in many if many[place] != few[place]}


def ratios(pipe: Pipeline, prompts: list[str], steps: int = 10) -> dict[str, Any]:
    """Capture, and sampling with an edit, against plain sampling: the same prompts in one batch, without decoding."""
    noise = initial_noise(pipe, [0] * len(prompts))
    options: dict[str, Any] = {"guidance_scale": GUIDANCE, "batch_size": len(prompts), "progress": False}

    def sample(n: int = steps) -> None:
        as_denoiser(pipe).sample(prompts, noise, n, GUIDANCE)

    def captured(n: int = steps) -> None:
        capture(pipe, prompts, steps=n, **options)

    plain, capturing, again = seconds(sample), seconds(captured), seconds(sample)
    stats, null = (capture(pipe, p, steps=steps, **options) for p in (prompts, [""]))
    masks = locate(pipe, stats, null, 0.01)
    with pruned(pipe, masks.union(steps)):
        edited = seconds(sample)
    return {
        "plain_s": plain,
        "again_ratio": again / plain,
        "capture_ratio": capturing / plain,
        "edited_ratio": edited / plain,
        "masks_s": seconds(lambda: locate(pipe, stats, null, 0.01)),
        "sampling_waits": waits_a_call(sample),
        "capture_waits": waits_a_call(captured),
    }


def parts(pipe: Pipeline, p: Parameters) -> dict[str, dict[str, float]]:
    """Seconds and peak gigabytes of one step of each part that fills a GPU."""
    return {
        name: {"seconds": seconds(step, 1), "gigabytes": peak(step)} for name, step in memory.parts(pipe, p).items()
    }


def measured(name: Any) -> dict[str, Any]:
    """All measurements of one model."""
    parameters, _ = find_parameters(name)
    pipe = random_pipeline(name, UNETS[name]["sample_size"], dtype=torch.float16, complete=True).to("cuda")
    decode_one_by_one(pipe)  # as a run does
    prompts = load_prompts("tiny").memorized[: parameters.sampling.batch_size]
    rows, pixels = len(prompts), 8 * UNETS[name]["sample_size"]
    step = seconds_per_step(pipe, rows)
    image = seconds(lambda: generate(pipe, prompts, steps=50, batch_size=rows, progress=False), 1) / rows
    expected = memory.memory(parameters)
    assert expected is not None  # `memory` is None only for other models
    numbers = {
        "pixels": pixels,
        "rows": rows,
        "step_ms": 1000 * step,
        "image_s": image,
        "weights_gb": size(as_denoiser(pipe).parts().values()) / 1e9,
        "shapes_gb": expected[f"{pixels} pixels"].to_dict(),
    }
    return numbers | ratios(pipe, prompts) | {"parts": parts(pipe, parameters)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *UNETS], help=f"which (default: all): {', '.join(UNETS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"), help="(runs/gpu.json)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU that PyTorch sees on this machine; `memsub check sd14 --parts` estimates from shapes.")
    models: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name in args.names or UNETS:
        models[name] = measured(name)
        print(name, models[name], flush=True)
        save_json(models, args.out)


if __name__ == "__main__":
    main()
