"""Seeded, batched sampling.

    >>> generate(pipe, ["a red heart on a plain green background"], seeds=3, steps=2).shape
    (1, 32, 32, 3)
    >>> images = generate(pipe, prompts, seeds=range(len(prompts)), steps=2)    # a noise of its own for each prompt
    >>> sample = partial(generate, pipe, steps=8, solver="multistep")           # a Sample: what metrics are given

An image depends on its prompt and its seed alone: not on the batch it was sampled in, nor on its place in the list
(to the last digits of float arithmetic, which can differ between batch sizes).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, get_args

import numpy as np
import torch
from tqdm.auto import tqdm

from ..io.distributed import gathered, is_main, shard
from .conditioning import Conditioning, as_prompts
from .prediction import noise_schedule
from .protocol import Denoiser, Pipeline, Solver, as_denoiser


class Sample(Protocol):
    """Samples one image a prompt or row of a conditioning, a seed each: `generate` with all else filled in."""

    def __call__(self, prompts: Any, *, seeds: Sequence[int]) -> np.ndarray: ...


def one_seed_each(seeds: int | Sequence[int], prompts: int) -> list[int]:
    """A seed a prompt: one for all, or as given; raises ValueError for another number of seeds than of prompts."""
    each = [int(seeds)] * prompts if isinstance(seeds, (int, np.integer)) else [int(s) for s in seeds]
    if len(each) != prompts:
        raise ValueError(f"{len(each)} seeds for {prompts} prompts: give one seed, or one a prompt.")
    return each


def check_request(prompts: list[str] | Conditioning, steps: int, batch_size: int) -> None:
    """Raises ValueError for no prompts, some that are not text, and steps or a batch size below 1."""
    if not len(prompts):
        raise ValueError('no prompts: the list is empty. For the empty prompt, give [""].')
    if isinstance(prompts, list) and (wrong := [p for p in prompts if not isinstance(p, str)]):
        raise ValueError(f"prompts must be strings; got {wrong[0]!r}.")
    if batch_size < 1 or steps < 1:
        raise ValueError(f"batch_size and steps must be at least 1; got {batch_size} and {steps}.")


def chosen(prompts: list[str] | Conditioning, rows: list[int]) -> list[str] | Conditioning:
    """Some of the captions, or some rows of the conditioning."""
    return prompts[rows] if isinstance(prompts, Conditioning) else [prompts[i] for i in rows]


def generate(
    pipe: Pipeline,
    prompts: Sequence[str] | Conditioning | torch.Tensor,
    *,
    seeds: int | Sequence[int] = 0,
    steps: int = 50,
    guidance_scale: float = 7.5,
    solver: Solver = "own",
    batch_size: int = 64,
    progress: bool = True,
) -> np.ndarray:
    """Samples one image a prompt. Under `accelerate launch` each process takes a share, and all return every image.

    Args:
        prompts: captions, their `Conditioning`, or their embeddings (prompts, tokens, width).
        seeds: one seed for all prompts (they share the initial noise), or one a prompt.
        solver: the pipeline's own scheduler, or a multistep solver that needs fewer steps (`multistep`).
        batch_size: images at a time; a network call holds twice as many under guidance.

    Returns:
        uint8, shape (prompts, height, width, 3).

    Raises:
        ValueError: no prompts, a prompt that is not text, another number of seeds, a batch size or steps below 1, an
            unknown solver, or one that draws noise of its own.
    """
    denoiser = as_denoiser(pipe)
    prompts = as_prompts(prompts, denoiser)
    check_request(prompts, steps, batch_size)
    if solver not in get_args(Solver):
        raise ValueError(f"unknown solver {solver!r}; expected one of {', '.join(get_args(Solver))}.")
    check_deterministic(denoiser, solver)
    seeds = one_seed_each(seeds, len(prompts))
    mine = shard(range(len(prompts)))  # one process: all of them
    images: dict[int, np.ndarray] = {}
    with tqdm(total=len(mine), desc="sampling", unit="image", disable=not (progress and is_main())) as bar:
        for start in range(0, len(mine), batch_size):
            part = list(mine[start : start + batch_size])
            noise = initial_noise(denoiser, [seeds[i] for i in part])
            latents = denoiser.sample(chosen(prompts, part), noise, steps, guidance_scale, solver)
            images |= dict(zip(part, denoiser.decode(latents), strict=True))
            bar.update(len(part))
    images = gathered(images)
    return np.stack([images[i] for i in range(len(prompts))])


def initial_noise(pipe: Pipeline, seeds: Sequence[int]) -> torch.Tensor:
    """Standard normal latents, shape (seeds, channels, height, width), the same on every device."""
    denoiser = as_denoiser(pipe)
    # Sampled once a distinct seed: many prompts often share one.
    noise = {s: torch.randn(denoiser.latent_shape, generator=torch.Generator().manual_seed(s)) for s in set(seeds)}
    return torch.stack([noise[s] for s in seeds]).to(denoiser.device, denoiser.dtype)


def model_input(scheduler: Any, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What the network is given of the sampler's latents at step `t`. (Flow matching scales nothing.)"""
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def first_latents(scheduler: Any, noise: torch.Tensor) -> torch.Tensor:
    """What a sampling begins with, of standard normal noise; `set_timesteps` must have been called."""
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)


class _Enough(Exception):
    """Ends sampling after the last network call that is wanted."""


@contextmanager
def ended_after(denoiser: Denoiser, calls: int | None) -> Iterator[None]:
    """While open, sampling ends after so many network calls, and returns nothing; with None it runs to its end."""
    made = 0

    def count(module: torch.nn.Module, args: tuple, output: Any) -> None:
        nonlocal made
        made += 1
        if made == calls:
            raise _Enough

    handle = denoiser.network.register_forward_hook(count)
    try:
        with suppress(_Enough):
            yield
    finally:
        handle.remove()


def multistep(scheduler: Any) -> Any:
    """DPM-Solver++ (Lu et al. 2022) of second order on a scheduler's noise schedule, from pure noise on.

    On the embedded model, ten DDIM steps with `leading` spacing find a tenth fewer replications than fifty; eight steps
    of this solver find as many (`tools.solvers`). Raises ValueError for flow matching, which has no such schedule.
    """
    from diffusers import DPMSolverMultistepScheduler

    if noise_schedule(scheduler).kind == "flow":
        raise ValueError(
            f"the multistep solver cannot step {type(scheduler).__name__} (flow matching): use solver='own'."
        )
    return DPMSolverMultistepScheduler.from_config(scheduler.config, timestep_spacing="trailing")


_DETERMINISTIC: dict[tuple[type, str, str], bool] = {}
"""Class and config of a scheduler, and the solver, to whether its steps are a function of their arguments."""


def check_deterministic(denoiser: Denoiser, solver: Solver = "own") -> None:
    """Raises ValueError for a sampler that draws noise of its own: prompt and seed alone would not fix an image."""
    own = denoiser.scheduler
    if not hasattr(own, "step"):
        return  # no sampler of diffusers: the denoiser steps by itself
    key = type(own), str(dict(getattr(own, "config", {}))), solver
    if key not in _DETERMINISTIC:
        # What tells is what it does: the classes that draw noise are many, and some do only by an option.
        scheduler = multistep(own) if solver == "multistep" else own
        one, other = (_first_steps(scheduler, denoiser.latent_shape, seed) for seed in (0, 1))
        _DETERMINISTIC[key] = torch.equal(one, other)
    if not _DETERMINISTIC[key]:
        raise ValueError(
            f"{key[0].__name__} draws noise of its own at each step, so that an image does not depend on prompt and "
            "seed alone. Sample with another scheduler, for example DDIMScheduler: "
            "pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)."
        )


def _first_steps(scheduler: Any, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Latents after two steps of a copy of the scheduler, with torch's global random numbers begun at `seed`."""
    scheduler = copy.deepcopy(scheduler)
    options = {"mu": 1.0} if getattr(scheduler, "config", {}).get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(4, **options)  # more than are made: some draw no noise at the last step
    # Pipelines give eta = 0 to every scheduler that takes one.
    eta = {"eta": 0.0} if "eta" in inspect.signature(scheduler.step).parameters else {}
    x, predicted = torch.ones(1, *shape), torch.full((1, *shape), 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed a GPU, too
        for t in scheduler.timesteps[:2]:
            model_input(scheduler, x, t)  # some warn if they were not asked for it
            x = scheduler.step(predicted, t, x, **eta).prev_sample
    return x


def to_host(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begins to copy a tensor to the host; what is returned waits for it. A GPU computes on meanwhile."""
    copied = tensor.to("cpu", non_blocking=tensor.is_cuda)
    if not tensor.is_cuda:
        return lambda: copied
    arrived = torch.cuda.current_stream(tensor.device).record_event()

    def wait() -> torch.Tensor:
        arrived.synchronize()
        return copied

    return wait
