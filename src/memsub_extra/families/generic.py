"""The generic adapter: any text-to-image pipeline of diffusers whose network has `FeedForward` blocks.

    stats, null = capture(pipe, prompts), capture(pipe, [""])           # a FluxPipeline, for example
    edit = locate(pipe, stats, null).union()
    with pruned(pipe, edit):
        images = generate(pipe, prompts, steps=4, guidance_scale=3.5)
    denoiser = GenericDenoiser(pipe, height=512, width=512)             # options of the pipeline's own call
    stats = capture(denoiser, prompts)

It samples by calling the pipeline itself: the image of a seed is that of `pipe(prompt, generator=torch.Generator()
.manual_seed(seed))` in float32. So capture, locate, prune and generate work for every scheduler and prediction type.
Attacks, detection scores and most baselines require embeddings and single network calls: for these, an error says that
the family requires a specific adapter (`memsub.models.Denoiser`).

The adapter learns the properties of a pipeline from its first step, with a network that computes nothing (`_watch`):
the layout of the noise, the number of network calls a step, and which rows of a call carry the prompt. Networks with
distilled guidance (Flux, LCM) have calls of one half: all rows are conditional, and `cfg_half` "both" and "cond" give
the same.

It is registered for the classes that it was tried with (the entry points in pyproject.toml), and used for any other
`DiffusionPipeline` without an adapter, with one warning.
"""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch

from memsub.models import ADAPTERS, Conditioning, Solver, StableDiffusionDenoiser, check_plain, only_shapes
from memsub.models.generation import as_pixels
from memsub.models.plain import named_modules, uncompiled
from memsub.models.sampling import stepped_by
from memsub.models.stable_diffusion import evaluated

NETWORKS = ("unet", "transformer")
NEEDED = ("prompt", "height", "width", "num_inference_steps", "guidance_scale", "generator", "latents", "output_type")
"""Arguments of the call of a text-to-image pipeline."""
OTHER_INPUTS = ("image", "mask_image", "control_image", "video", "num_frames", "video_length")
"""Arguments of the call of a pipeline that repaints images or makes videos, optional or not."""
NOT_OF_THE_IMAGE = re.compile(r"context|txt|text|caption|audio|projector|encoder_hid_proj|image_embedder")
"""Names of `FeedForward` blocks that process no image tokens: those of a separate text stream (`ff_context` in Flux and
SD3, `txt_mlp`), and those that refine or project embeddings."""
LONG, SHORT = "a red heart on a plain green background", "a"
PROBES = [LONG, LONG, LONG], [LONG, SHORT, LONG]
"""Prompts of two calls that differ only in the second one. Both contain the longest, to which some pipelines pad."""
_TOLD: set[str] = set()
"""Classes of pipelines for which the warning was given."""


class GenericDenoiser:
    """See `Denoiser`. But `sample` returns images, (B, 3, height, width) in [0, 1], and `decode` only rounds them.

    Args:
        options: further arguments of the pipeline's call, such as height and width, or max_sequence_length.

    Raises:
        ValueError: the pipeline requires more than text, makes no images, or has no network or several networks.
    """

    def __init__(self, pipe: Any, **options: Any):
        self.pipe, self.options = pipe, options
        _check_text_to_image(pipe, options)
        self.network = uncompiled(_network(pipe))
        self.tokenizer = getattr(pipe, "tokenizer", None)
        self.source = str(pipe.config.get("_name_or_path") or "")
        self._watched: dict[float, _FirstStep] = {}
        name, kinds = type(pipe).__name__, {kind.__name__ for kind in type(pipe).__mro__} - {"DiffusionPipeline"}
        if name not in _TOLD and not any(kind in ADAPTERS for kind in kinds):
            _TOLD.add(name)
            warnings.warn(
                f"memsub was never tried with {name}: its generic adapter captures, locates, prunes and generates by "
                "the pipeline's own call. Look at what it captures before you trust it.",
                stacklevel=2,
            )

    @property
    def scheduler(self) -> Any:
        return self.pipe.scheduler

    @cached_property
    def device(self) -> torch.device:
        return self.pipe._execution_device  # of an offloaded pipeline, not where its weights rest

    @cached_property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @cached_property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one row of the pipeline's `latents`: (tokens, channels) if it packs them, as Flux does."""
        return self._first_step(1.0).latent_shape

    @cached_property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images, from the pipeline's first noise."""
        return self._first_step(1.0).image_shape

    def layers(self) -> dict[str, torch.nn.Linear]:
        """As in the protocol, for blocks that process image tokens, with or without text (see `NOT_OF_THE_IMAGE`).

        Raises:
            ValueError: the network holds no `FeedForward` of diffusers' own, or one that is not plain (`check_plain`).
        """
        from diffusers.models.attention import FeedForward

        network = self.network
        if hasattr(network, "down_blocks") and hasattr(network, "up_blocks"):
            return StableDiffusionDenoiser.layers(self)  # type: ignore[arg-type]  # needs a network alone
        forwards: dict[str, Any] = {
            name: m for name, m in named_modules(network).items() if isinstance(uncompiled(m), FeedForward)
        }
        layers = {f"{name}.net.2": m.net[2] for name, m in forwards.items() if not NOT_OF_THE_IMAGE.search(name)}
        if not layers:
            kinds = {type(m).__name__ for m in network.modules()}
            others = sorted(kind for kind in kinds if re.search("feed_?forward|mlp|glu", kind, re.IGNORECASE))
            raise ValueError(
                f"this {type(network).__name__} holds no FeedForward blocks of diffusers.models.attention: there is "
                f"nothing to capture or prune. (What it has instead: {', '.join(others) or 'nothing of the kind'}.)"
            )
        shapes = only_shapes(network)
        return {name: check_plain(name, layer, shapes) for name, layer in layers.items()}

    def calls(self, steps: int) -> int:
        """As in the protocol."""
        config = getattr(self.scheduler, "config", {})
        options = {"mu": 1.0} if config.get("use_dynamic_shifting") else {}
        self.scheduler.set_timesteps(steps, **options)
        return len(self.scheduler.timesteps)

    def call_rows(self, prompts: int, guidance_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """As in the protocol; raises ValueError for a pipeline whose calls have another order (`_FirstStep`)."""
        halves = self._first_step(guidance_scale).halves
        return torch.arange(prompts).repeat(len(halves)), torch.tensor(halves).repeat_interleave(prompts)

    def _first_step(self, guidance_scale: float) -> _FirstStep:
        if guidance_scale not in self._watched:
            self._watched[guidance_scale] = _watch(self, guidance_scale)
        return self._watched[guidance_scale]

    def sample(
        self,
        prompts: list[str] | Conditioning,
        latents: torch.Tensor,
        steps: int,
        guidance_scale: float,
        solver: Solver = "own",
        generators: Sequence[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """As in the protocol, for captions only; returns images (B, 3, height, width) in [0, 1]."""
        if isinstance(prompts, Conditioning):
            self._refuse("sampling from embeddings")
        order = self._first_step(guidance_scale).order.to(latents.device)
        # A copy with a scheduler of its own: another thread may sample from the same pipeline.
        pipe, noise = copy.copy(self.pipe), latents.flatten(1)[:, order].view(latents.shape)
        pipe.scheduler = copy.copy(stepped_by(self.pipe.scheduler, solver))
        options = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "output_type": "np"}
        options["generator"] = list(generators) if generators else None
        with evaluated(*self.parts().values()):
            images = pipe(prompt=list(prompts), latents=noise, **options | self.options).images
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Converts the images of `sample` to uint8 (B, height, width, 3)."""
        return as_pixels(latents)

    def parts(self) -> Mapping[str, torch.nn.Module]:
        components = self.pipe.components.items()
        return {name: uncompiled(part) for name, part in components if isinstance(part, torch.nn.Module)}

    # --- what this adapter does not have --------------------------------------------------------------------------

    def value_layers(self) -> dict[str, torch.nn.Linear]:
        self._refuse("what looks at value projections")

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        self._refuse("what embeds prompts itself (attacks, detection scores, baselines)")

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        self._refuse("what calls the network itself (attacks, detection scores, baselines)")

    def encode(self, images: np.ndarray) -> torch.Tensor:
        self._refuse("what encodes images (attacks, removals)")

    def _refuse(self, what: str) -> NoReturn:
        name = type(self.pipe).__name__
        raise ValueError(
            f"the generic adapter captures, locates, prunes and generates from captions; {what} needs an adapter for "
            f"{name}: a class with the methods of memsub.models.Denoiser, memsub.models.ADAPTERS[{name!r}] = it."
        )


# --- what a pipeline is -----------------------------------------------------------------------------------------------


def _check_text_to_image(pipe: Any, options: Mapping[str, Any]) -> None:
    """Raises ValueError if the pipeline requires more than text; the message says what."""
    name, takes = type(pipe).__name__, inspect.signature(pipe.__call__).parameters
    what = f"{name} is no text-to-image pipeline that memsub can drive: its call"
    if others := [other for other in OTHER_INPUTS if other in takes]:
        raise ValueError(
            f"{what} takes {', '.join(others)}. memsub takes pipelines that make one image of a prompt alone; "
            "repainting, upscaling, control images and video are other tasks."
        )
    if missing := [needed for needed in NEEDED if needed not in takes]:
        raise ValueError(f"{what} takes no {', no '.join(missing)}.")
    required = [key for key, p in takes.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if required := [key for key in required if key not in {"prompt", *options}]:
        raise ValueError(f"{what} needs {', '.join(required)} beside the prompt.")
    if unknown := [option for option in options if option not in takes]:
        raise ValueError(f"the call of {name} takes no {', no '.join(unknown)}.")


def _network(pipe: Any) -> torch.nn.Module:
    """Raises ValueError unless the pipeline has exactly one of the parts in `NETWORKS`."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    networks = [name for name in parts if re.fullmatch(r"(unet|transformer)(_\d)?|prior|decoder", name)]
    if len(networks) != 1 or networks[0] not in NETWORKS:
        raise ValueError(
            f"{type(pipe).__name__} has {' and '.join(networks) or 'neither unet nor transformer'}, where memsub "
            "captures and prunes one network, pipe.unet or pipe.transformer."
        )
    return parts[networks[0]]


# --- the first step, watched ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _FirstStep:
    """Properties of a pipeline that its first step shows.

    Attributes:
        latent_shape: shape of one row of `latents`.
        order: for each place in a row of `latents`, the index in the noise; some pipelines pack patches.
        image_shape: height and width.
        halves: for each part of a network call (a row for each prompt), whether it carries the prompts.
    """

    latent_shape: tuple[int, ...]
    order: torch.Tensor
    image_shape: tuple[int, int]
    halves: tuple[bool, ...]


@dataclass
class _Log:
    noise: list[tuple[tuple[int, ...], torch.Tensor]] = field(default_factory=list)  # shape of a row, and its order
    sizes: list[tuple[int, int]] = field(default_factory=list)
    calls: list[list[torch.Tensor]] = field(default_factory=list)  # all tensors that the network was given


class _Seen(Exception):
    """Ends the pipeline's call at the first step of the sampler."""


def _watch(denoiser: GenericDenoiser, guidance_scale: float) -> _FirstStep:
    """Runs the first step of a pipeline with a network that returns zeros, and returns its properties.

    Raises:
        ValueError: the pipeline draws its noise elsewhere or changes the given noise, calls its network several times a
            step, or not exactly one part of a call carries the prompts.
    """
    pipe = denoiser.pipe
    name = type(pipe).__name__
    if not hasattr(pipe, "prepare_latents") or "latents" not in inspect.signature(pipe.prepare_latents).parameters:
        raise ValueError(f"{name} has no prepare_latents(latents=...), by which memsub gives it a seed's noise.")
    same, other = (_logged(denoiser, prompts, guidance_scale) for prompts in PROBES)
    if len(same.calls) != 1:
        raise ValueError(
            f"{name} calls its network {len(same.calls)} times a step at guidance_scale={guidance_scale:g}, where "
            "memsub captures one call a step: sample it without guidance, guidance_scale=1."
        )
    return _FirstStep(*same.noise[0], same.sizes[0], _halves(same.calls[0], other.calls[0], name))


def _logged(denoiser: GenericDenoiser, prompts: list[str], guidance_scale: float) -> _Log:
    """Runs a pipeline on prompts with the same noise up to its first step.

    Raises:
        ValueError: the pipeline fails before its first step.
    """
    pipe, log = denoiser.pipe, _Log()
    options = {"num_inference_steps": 4, "guidance_scale": guidance_scale, "output_type": "latent"}
    with ExitStack() as stack:
        stack.enter_context(_replaced(pipe, "prepare_latents", _noted_noise(pipe, log)))
        stack.enter_context(_replaced(denoiser.network, "forward", _noted_call(log)))
        stack.enter_context(_replaced(pipe.scheduler, "step", _end))
        stack.enter_context(_replaced(pipe, "_progress_bar_config", {"disable": True}))
        stack.enter_context(suppress(_Seen))
        try:
            pipe(prompt=prompts, generator=[_generator() for _ in prompts], **options | denoiser.options)
        except (ValueError, MemoryError, torch.OutOfMemoryError, _Seen):  # clear messages; _Seen is no error
            raise
        except Exception as error:  # whatever else the pipeline does with its network
            raise ValueError(
                f"{type(pipe).__name__} cannot be watched: its first step, with a network that gives zeros, ends in "
                f"{type(error).__name__}: {error}. If pipe(prompt) itself works, it needs an adapter of its own."
            ) from error
    return log


def _halves(same: list[torch.Tensor], other: list[torch.Tensor], name: str) -> tuple[bool, ...]:
    """Which parts of a call carry the prompts: their second row changes with the second prompt."""
    n, rows = len(PROBES[0]), len(same[0])
    changed = {
        row
        for one, another in zip(same, other, strict=True)
        if one.ndim and len(one) == len(another) == rows
        for row in range(rows)
        if not torch.equal(one[row], another[row])
    }
    halves = tuple(part * n + 1 in changed for part in range(rows // n))
    if rows not in (n, 2 * n) or len(changed) != 1 or sum(halves) != 1:
        raise ValueError(
            f"{name} calls its network on {rows} rows for {n} prompts, of which memsub cannot tell those that carry "
            "the prompts: it takes one row a prompt, or two halves, one without the prompts. (Switch off perturbed "
            "attention guidance, or sample without guidance, guidance_scale=1.)"
        )
    return halves


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _noted_noise(pipe: Any, log: _Log) -> Any:
    own, name = pipe.prepare_latents, type(pipe).__name__

    def prepare(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(own).bind(*args, **kwargs)

        def latents(**changed: Any) -> torch.Tensor:
            given.arguments.update(changed)
            prepared = own(*given.args, **given.kwargs)
            return prepared[0] if isinstance(prepared, tuple) else prepared

        # Prepare noise in float64, where no two numbers are equal; then pass the result as given latents.
        generators = [_generator() for _ in PROBES[0]]
        noise = latents(generator=generators, dtype=torch.float64, device=torch.device("cpu"))
        again = latents(latents=noise)
        sampled = torch.randn(noise[0].numel(), dtype=torch.float64, generator=_generator())
        order = torch.empty(len(sampled), dtype=torch.long)
        order[noise[0].flatten().argsort()] = sampled.argsort()
        scale = float(noise[0].std() / sampled.std())  # schedulers begin with noise of another deviation than 1
        if noise.shape != again.shape or not torch.allclose(noise[0].flatten(), scale * sampled[order]):
            raise ValueError(
                f"{name} does not begin with one standard normal number for each of its latents, or does not take the "
                f"latents that it makes ({tuple(noise.shape)}): memsub cannot give it a seed's noise."
            )
        log.noise.append((tuple(noise.shape[1:]), order))
        log.sizes.append((int(given.arguments.get("height", 0)), int(given.arguments.get("width", 0))))
        return own(*args, **kwargs)

    return prepare


def _noted_call(log: _Log) -> Any:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    def forward(*args: Any, **kwargs: Any) -> Any:
        tensors = list(_tensors([args, kwargs]))
        log.calls.append(tensors)
        return Transformer2DModelOutput(sample=torch.zeros_like(tensors[0]))

    return forward


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _end(*_: Any, **__: Any) -> NoReturn:
    raise _Seen


@contextmanager
def _replaced(thing: Any, name: str, by: Any) -> Iterator[None]:
    """Replaces a method of an object within the context; it is restored afterwards, also by an exception."""
    before = vars(thing).get(name)  # of the instance: offloading sets a `forward` there
    setattr(thing, name, by)
    try:
        yield
    finally:
        if before is None:
            delattr(thing, name)
        else:
            setattr(thing, name, before)
