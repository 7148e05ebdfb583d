"""Shared by `generate` and `capture`: checks of arguments, batches that fit into memory, and noise.

If a sampler draws noise at its steps, each image has its own generator, which first draws the initial noise, as in
diffusers.
"""

from __future__ import annotations

import gc
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextvars import ContextVar
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .protocol import Denoiser, Pipeline, Solver, as_denoiser

if TYPE_CHECKING:
    from .conditioning import Conditioning

T = TypeVar("T")


def one_seed_each(seeds: int | Sequence[int], prompts: int) -> list[int]:
    """One seed for each prompt; a single seed is repeated. Raises ValueError for a wrong number or an invalid seed."""
    given: Any = seeds.tolist() if hasattr(seeds, "tolist") else seeds  # of numpy or torch
    each = list(given) if isinstance(given, Iterable) else [given] * prompts
    if len(each) != prompts:
        raise ValueError(f"{len(each)} seeds for {prompts} prompts: give one seed, or one a prompt.")
    for seed in each:
        if not _is_whole(seed) or not 0 <= seed < 2**63:
            raise ValueError(f"a seed must be a whole number from 0 to 2^63 - 1; got {seed!r}.")
    return [int(seed) for seed in each]


def as_prompts(prompts: Sequence[str] | Conditioning | torch.Tensor, denoiser: Denoiser) -> list[str] | Conditioning:
    """Converts to the input of `Denoiser.sample`: a list of captions, which the denoiser embeds batch by batch, or a
    conditioning (`as_conditioning`) on the model's device. Raises ValueError like `as_captions`."""
    if not isinstance(prompts, (list, tuple, str)):
        from .conditioning import Conditioning, as_conditioning

        if isinstance(prompts, (Conditioning, torch.Tensor)):
            return as_conditioning(prompts, denoiser).to(denoiser.device)
    return as_captions(prompts)


def as_captions(prompts: Any) -> list[str]:
    """A list of captions. Raises ValueError for a string, which would be read as letters, and for what is no list."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of strings; got the string {prompts!r}: give [{prompts!r}].")
    # A table or mapping would give the names of its columns, and a set has no order.
    if isinstance(prompts, (Mapping, Set)) or hasattr(prompts, "columns") or not isinstance(prompts, Iterable):
        raise ValueError(
            f"prompts must be a list of strings; got a {type(prompts).__name__}: give a list that it holds, such as"
            " table['prompt'].tolist(), or load_prompts(...).memorized."
        )
    return list(prompts)


def check_request(
    prompts: list[str] | Conditioning,
    steps: int,
    batch_size: int,
    guidance_scale: float = 1,
    seed: int = 0,
    **more: int,
) -> None:
    """Raises ValueError for no prompts, prompts that are not text, and numbers that are invalid or out of bounds;
    `more` are further whole numbers of at least 1."""
    if not len(prompts):
        raise ValueError('no prompts: the list is empty. For the empty prompt, give [""].')
    if isinstance(prompts, list) and (wrong := [p for p in prompts if not isinstance(p, str)]):
        raise ValueError(f"prompts must be strings; got {wrong[0]!r}.")
    if isinstance(prompts, list) and (cut := [p for p in prompts if re.search("[\ud800-\udfff]", p)]):
        raise ValueError(f"{cut[0]!r} holds half a character (a lone surrogate): read it again, as UTF-8.")
    for name, number in {"steps": steps, "batch_size": batch_size, **more}.items():
        if not _is_whole(number) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {number!r}.")
    if not isinstance(guidance_scale, Real) or not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be a finite number; got {guidance_scale!r}.")
    one_seed_each(seed, 1)


def _is_whole(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def chosen(prompts: list[str] | Conditioning, rows: list[int]) -> list[str] | Conditioning:
    """The given rows of the captions or of the conditioning."""
    return [prompts[i] for i in rows] if isinstance(prompts, list) else prompts[rows]


# --- batches that fit -------------------------------------------------------------------------------------------------

_IN_A_BATCH = ContextVar("_IN_A_BATCH", default=False)


def in_batches(items: Sequence[int], batch_size: int, work: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """Yields batches of at most `batch_size` consecutive items, and the result of `work` for each.

    A batch that does not fit into memory is repeated in halves, and later batches keep the smaller size. `work` must
    have no effect if it fails, and must not wait for other processes, whose batches differ. Calls within `work` do not
    halve their batches: the outer batch is halved instead.

    Raises:
        MemoryError: a single item does not fit.
    """
    start = 0
    while start < len(items):
        part = list(items[start : start + batch_size])
        token = _IN_A_BATCH.set(True)
        try:
            result: T | None = work(part)
            full = ""
        except Exception as error:
            if token.old_value is True or not _is_out_of_memory(error):
                raise
            result, full = None, str(error).strip().split("\n")[0]
        finally:
            _IN_A_BATCH.reset(token)
        if not full:
            start += len(part)
            yield part, result  # type: ignore[misc]
            continue
        if len(part) == 1:
            raise MemoryError(
                f"memory ends with one prompt at a time: {full} Load the model in a dtype of fewer bits, call "
                "pipe.enable_model_cpu_offload(), or take a device with more memory."
            )
        batch_size = len(part) // 2
        warnings.warn(f"memory ends at {len(part)} prompts at a time: going on with {batch_size}.", stacklevel=3)
        gc.collect()  # the error, which referred to the tensors, is gone by now
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        elif torch.backends.mps.is_available():
            torch.mps.empty_cache()


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    texts = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


# --- noise ------------------------------------------------------------------------------------------------------------


def initial_noise(pipe: Pipeline, seeds: Sequence[int]) -> torch.Tensor:
    """Standard normal latents, shape (seeds, channels, height, width), the same on every device."""
    denoiser = as_denoiser(pipe)
    # Drawn once for each distinct seed, because many prompts often share one.
    noise = {s: _first_draw(torch.Generator().manual_seed(s), denoiser.latent_shape) for s in set(seeds)}
    return torch.stack([noise[s] for s in seeds]).to(denoiser.device, denoiser.dtype)


def row_generators(pipe: Pipeline, seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator for each seed, in the state after the initial noise was drawn."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for generator in generators:
        _first_draw(generator, as_denoiser(pipe).latent_shape)
    return generators


def _first_draw(generator: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """The initial noise of a generator. It does not depend on the default dtype and device."""
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def model_input(scheduler: Any, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The network's input for the sampler's latents at step `t`. (Flow matching does not scale.)"""
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def step_options(scheduler: Any, generators: Sequence[torch.Generator] | None = None) -> dict[str, Any]:
    """Options of `scheduler.step`, as in pipelines: eta = 0 and generators, if the scheduler takes them."""
    options = {"eta": 0.0, "generator": list(generators) if generators else None}
    return {name: options[name] for name in options.keys() & inspect.signature(scheduler.step).parameters.keys()}


def stepped_by(scheduler: Any, solver: Solver) -> Any:
    """The scheduler itself, or the solver on its noise schedule."""
    if solver == "own":
        return scheduler
    from .prediction import multistep

    return multistep(scheduler)


_NOISE: dict[tuple[type, str, str], bool | None] = {}
"""Cache: class, config and solver to whether the scheduler draws noise; None if no generator fixes the noise."""


_WITHOUT_NOISE = [f"diffusers.schedulers.scheduling_{name}.{name.upper()}Scheduler" for name in ("ddim", "pndm")]
"""Stable Diffusion's own schedulers, which draw no noise. Others are tried: some draw it only with an option."""


def draws_noise(denoiser: Denoiser, solver: Solver = "own") -> bool:
    """Whether the sampler draws noise at its steps, so that it must be given generators (`row_generators`).

    Raises:
        ValueError: its noise comes from elsewhere, so prompt and seed do not determine the image.
    """
    own = denoiser.scheduler
    if not hasattr(own, "step"):
        return False  # no scheduler of diffusers: the denoiser makes the steps
    key = type(own), str(dict(getattr(own, "config", {}))), solver
    if key not in _NOISE:
        _NOISE[key] = False
        if f"{key[0].__module__}.{key[0].__name__}" not in _WITHOUT_NOISE or solver != "own":
            from .prediction import noise_of

            _NOISE[key] = noise_of(stepped_by(own, solver), denoiser.latent_shape)
    noise = _NOISE[key]
    if noise and "generators" not in inspect.signature(denoiser.sample).parameters:
        noise = None
    if noise is None:
        raise ValueError(
            f"{key[0].__name__} draws noise of its own at each step, and from no generator that it is given, so that "
            "an image does not depend on prompt and seed alone. Sample with another scheduler, for example "
            "DDIMScheduler: pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)."
        )
    return noise


def to_host(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Starts to copy a tensor to the host while the GPU computes. The returned function waits for the copy."""
    copied = tensor.to("cpu", non_blocking=tensor.is_cuda)
    if not tensor.is_cuda:
        return lambda: copied
    arrived = torch.cuda.current_stream(tensor.device).record_event()

    def wait() -> torch.Tensor:
        arrived.synchronize()
        return copied

    return wait
