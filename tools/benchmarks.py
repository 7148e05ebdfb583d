"""Speed and memory, measured: `python -m tools.benchmarks [NAME ...]`.

    capture     capturing activations against plain generation of the same prompts
    grid        the paper's grid in one pass against one subset after the other, prompt by prompt
    masks       memorized neurons of one set at SD1.4 size against reading |W| once a step; disk and memory
    overlap     pairwise IoU of ten such sets
    edit        generation with an edit applied against without
    network     one call in bfloat16, and compiled (needs a C++ compiler), against float32
    memory      peak memory of capture against generation, SD1.4's UNet in bfloat16

Each ratio compares the medians of repetitions that alternate within one run, so that a slow machine slows both sides
equally.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from memsub.activations import capture
from memsub.io.files import save_json
from memsub.models import Pipeline, as_denoiser, generate, initial_noise, load_pipeline
from memsub.neurons import WeightMasks, layer_mask, locate
from memsub.overlap import pairwise_iou, subsets
from memsub.prompts import load_prompts
from memsub.pruning import pruned
from tools.fullsize import UNETS, random_pipeline

GUIDANCE = 3.0


def alternate(
    functions: Sequence[Callable[[], object]], repetitions: int, within: Sequence[Callable] | None = None
) -> list[float]:
    """Median seconds of each function. They are called in turns, after a warm-up; entering contexts is not timed."""
    seconds: list[list[float]] = [[] for _ in functions]
    for repetition in range(repetitions + 1):
        for function, times, context in zip(functions, seconds, within or [nullcontext] * len(functions), strict=True):
            with context():
                began = time.perf_counter()
                function()
                took = time.perf_counter() - began
            if repetition:
                times.append(took)
    return [statistics.median(times) for times in seconds]


def bench_capture(pipe: Pipeline, steps: int = 20, repetitions: int = 9) -> dict[str, float]:
    """Capture against generation with the same prompts, batch, steps and latents; neither decodes images."""
    prompts = load_prompts("tiny").memorized[:32]
    groups = {str(i): chosen for i, chosen in enumerate(subsets(len(prompts), 8, 10))}

    def plain() -> None:
        as_denoiser(pipe).sample(prompts, initial_noise(pipe, [0] * len(prompts)), steps, GUIDANCE)

    def captured() -> None:
        capture(
            pipe, prompts, groups=groups, steps=steps, guidance_scale=GUIDANCE, batch_size=len(prompts), progress=False
        )

    generation, captures = alternate([plain, captured], repetitions)
    return {"generation_s": generation, "capture_s": captures, "ratio": captures / generation}


def bench_grid(pipe: Pipeline, steps: int = 2, sample: int = 30) -> dict[str, float]:
    """The paper's grid (10 subsets each of 10, 20, ..., 50 prompts), in one pass and prompt by prompt.

    Prompt by prompt, the empty prompt runs as often as the others. The 3,000 runs are extrapolated from `sample` runs.
    """
    prompts = load_prompts("tiny").memorized
    groups = {
        f"{size}/{i}": chosen
        for size in (10, 20, 30, 40, 50)
        for i, chosen in enumerate(subsets(len(prompts), size, 10))
    }
    options: dict[str, Any] = {"steps": steps, "guidance_scale": GUIDANCE, "progress": False}
    capture(pipe, prompts[:2], **options)
    began = time.perf_counter()
    capture(pipe, prompts, groups=groups, batch_size=50, **options)
    capture(pipe, [""], **options)
    one_pass = time.perf_counter() - began
    began = time.perf_counter()
    for i in range(sample):
        _prompt_by_prompt(pipe, prompts[i] if i % 2 else "", steps)
    runs = 2 * sum(map(len, groups.values()))
    each = (time.perf_counter() - began) / sample * runs
    return {"one_pass_s": one_pass, "prompt_by_prompt_s": each, "runs": runs, "ratio": each / one_pass}


def _prompt_by_prompt(pipe: Pipeline, prompt: str, steps: int) -> None:
    """Captures as the released code does: a hook computes the gated map again, and copies each result to the host."""
    copied: list = []

    def hook(module: Any, args: tuple, output: torch.Tensor) -> None:
        hidden = module.net[0](args[0])
        unit = hidden / hidden.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        copied.append(unit.square().sum((0, 1)).cpu().numpy())

    denoiser = as_denoiser(pipe)
    modules: dict[str, Any] = dict(denoiser.network.named_modules())
    handles = [modules[name.removesuffix(".net.2")].register_forward_hook(hook) for name in denoiser.layers()]
    try:
        denoiser.sample([prompt], initial_noise(pipe, [0]), steps, GUIDANCE)
    finally:
        for handle in handles:
            handle.remove()


def sd14_layers(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights (d, f) of SD1.4's 16 second feed-forward maps: 5 of each width, and one more of the largest."""
    generator = torch.Generator().manual_seed(seed)
    widths = UNETS["sd14"]["block_out_channels"]
    order = [widths[0]] * 2 + [widths[1]] * 2 + [widths[2]] * 3 + [widths[2]] * 3 + [widths[1]] * 3 + [widths[0]] * 3
    return {f"layer {i:02d}": torch.randn(d, 4 * d, generator=generator) * 0.02 for i, d in enumerate(order)}


def sd14_norms(layers: dict[str, torch.Tensor], steps: int, seed: int) -> dict[str, torch.Tensor]:
    """Column norms (steps, f) like captured ones: a log-normal level for each neuron, and a slow walk over steps."""
    common = torch.Generator().manual_seed(0)  # levels of neurons that all sets share
    of_set = torch.Generator().manual_seed(1 + seed)
    norms = {}
    for name, weight in layers.items():
        f = weight.shape[1]
        level = torch.randn(f, generator=common) + 0.3 * torch.randn(f, generator=of_set)
        walk = 0.05 * torch.randn(steps, f, generator=of_set).cumsum(0)
        norms[name] = (level + walk).exp()
    return norms


def _masks(layers: dict[str, torch.Tensor], ours: dict, theirs: dict, sparsity: float) -> WeightMasks:
    return WeightMasks({n: layer_mask(w, ours[n], theirs[n], sparsity) for n, w in layers.items()}, {"model": ""})


def bench_masks(steps: int = 50, sparsity: float = 0.01, repetitions: int = 5) -> dict[str, float]:
    """The masks of one set from given norms and weights, against reading |W| (its sum) once per step."""
    layers = sd14_layers()
    ours, theirs = sd14_norms(layers, steps, 0), sd14_norms(layers, steps, 1000)
    magnitudes = [w.abs() for w in layers.values()]

    def read() -> None:
        for _ in range(steps):
            for magnitude in magnitudes:
                magnitude.sum()

    find = partial(_masks, layers, ours, theirs, sparsity)
    reading, seconds = alternate([read, find], repetitions)
    with tempfile.TemporaryDirectory() as folder:
        find().save(Path(folder) / "masks.safetensors")
        size = (Path(folder) / "masks.safetensors").stat().st_size / 1e6
    return {
        "masks_s": seconds,
        "reading_s": reading,
        "ratio": seconds / reading,
        "set_mb": size,
        "peak_gb": _peak_gb(),
    }


def bench_overlap(sets: int = 10, steps: int = 50, sparsity: float = 0.01) -> dict[str, float]:
    """Pairwise IoU of ten sets at SD1.4 size."""
    layers = sd14_layers()
    theirs = sd14_norms(layers, steps, 1000)
    masks = [_masks(layers, sd14_norms(layers, steps, seed), theirs, sparsity) for seed in range(sets)]
    began = time.perf_counter()
    iou = pairwise_iou(masks)
    seconds = time.perf_counter() - began
    return {"overlap_s": seconds, "mean_iou": float(iou.mean()), "peak_gb": _peak_gb()}


def bench_edit(pipe: Pipeline, repetitions: int = 7, steps: int = 10) -> dict[str, float]:
    """Generation with an edit of 5 % of the weights, against generation without it."""
    prompts = load_prompts("tiny").memorized[:32]
    options: dict[str, Any] = {"steps": steps, "guidance_scale": GUIDANCE, "progress": False}
    stats, null = (capture(pipe, p, steps=2, progress=False) for p in (prompts, [""]))
    edit = locate(pipe, stats, null, 0.05).union(2)

    def sample() -> None:
        generate(pipe, prompts, **options)

    plain, edited = alternate([sample, sample], repetitions, [nullcontext, lambda: pruned(pipe, edit)])
    return {"unedited_s": plain, "edited_s": edited, "ratio": edited / plain}


def bench_network(pipe: Pipeline, rows: int = 60, repetitions: int = 5) -> dict[str, float]:
    """One call of the network in float32, compiled by `torch.compile`, and in bfloat16."""
    denoiser = as_denoiser(pipe)
    network, latents = denoiser.network, initial_noise(pipe, list(range(rows)))
    embeddings = denoiser.embed([""]).expand(rows).embeddings

    def call(model: Callable, dtype: torch.dtype = torch.float32) -> None:
        with torch.no_grad():
            model(latents.to(dtype), torch.tensor(500), encoder_hidden_states=embeddings.to(dtype))

    half, compiled = copy.deepcopy(network).to(torch.bfloat16), torch.compile(network)
    began = time.perf_counter()
    call(compiled)
    compiling = time.perf_counter() - began
    calls = [partial(call, network), partial(call, compiled), partial(call, half, torch.bfloat16)]
    seconds = alternate(calls, repetitions)
    times = {
        f"{name}_ms": 1000 * s / rows for name, s in zip(("float32", "compiled", "bfloat16"), seconds, strict=True)
    }
    ratios = {"compiled_ratio": seconds[1] / seconds[0], "bfloat16_ratio": seconds[2] / seconds[0]}
    return times | {"compiling_s": compiling} | ratios


def bench_memory(sample_size: int = 32, steps: int = 2) -> dict[str, float]:
    """Peak of the memory that capture and plain sampling allocate besides the weights: SD1.4's UNet, one prompt.

    The sums of its one group are on the host and count as well, because here the model is on the CPU.
    """
    pipe = random_pipeline("sd14", sample_size, dtype=torch.bfloat16)

    def plain() -> None:
        as_denoiser(pipe).sample([""], initial_noise(pipe, [0]), steps, 7.5)

    def captured() -> None:
        capture(pipe, [""], steps=steps, batch_size=1, progress=False)

    generation, captures = (_peak_allocated(function) for function in (plain, captured))
    weights = sum(p.numel() * p.element_size() for p in as_denoiser(pipe).network.parameters()) / 1e6
    return {
        "generation_mb": generation,
        "capture_mb": captures,
        "weights_mb": weights,
        "ratio": (weights + captures) / (weights + generation),
        "ratio_without_weights": captures / generation,
    }


def _peak_allocated(function: Callable[[], object]) -> float:
    """Peak memory in megabytes of the CPU tensors that a function makes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return max(accumulate(size for _, size in changes)) / 1e6


def _peak_gb() -> float:
    """Peak resident memory of this process so far, in gigabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


BENCHES: dict[str, tuple[Callable[..., dict[str, float]], str]] = {
    "masks": (bench_masks, "ratio ≤ 10, set_mb ≤ 100, peak_gb ≤ 4"),
    "overlap": (bench_overlap, "overlap_s ≤ 10, peak_gb ≤ 4"),
    "capture": (bench_capture, "ratio ≤ 1.05"),
    "grid": (bench_grid, "ratio ≥ 10"),
    "edit": (bench_edit, "ratio 1.00 within noise"),
    "network": (bench_network, "below 1 pays"),
    "memory": (bench_memory, "ratio ≤ 1.05"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *BENCHES], help=f"which (default: all): {', '.join(BENCHES)}")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks.json"), help="(runs/benchmarks.json)")
    args = parser.parse_args()
    measured = {}
    for name in args.names or BENCHES:
        function, aim = BENCHES[name]
        needs_pipe = name in ("capture", "grid", "edit", "network")
        measured[name] = function(load_pipeline("tiny", device="cpu")) if needs_pipe else function()
        numbers = ", ".join(f"{k} {v:.4g}" for k, v in measured[name].items())
        print(f"{name:8} {numbers}   (aim: {aim})", flush=True)
    save_json(measured, args.out)


if __name__ == "__main__":
    main()
