"""The names of `memsub.models`, and where each lies: read by type checkers, and by `lazy_loader` when one is used."""

from .conditioning import Conditioning, as_conditioning, as_prompts
from .contents import OTHER_FORMS, Contents, inspect
from .fingerprints import check_model, fingerprint, module_fingerprint, sampler_fingerprint
from .known import MODELS, WORLDS, ModelInfo
from .loading import find_contents, find_model, load_pipeline, model_of
from .plain import check_plain, only_shapes
from .prediction import Kind, NoiseSchedule, noise_schedule
from .protocol import ADAPTERS, GRADIENT_ROWS, Denoiser, Pipeline, Solver, as_denoiser, declare
from .sampling import (
    Sample,
    check_deterministic,
    check_request,
    chosen,
    ended_after,
    first_latents,
    generate,
    initial_noise,
    model_input,
    multistep,
    one_seed_each,
    to_host,
)
from .stable_diffusion import StableDiffusionDenoiser

__all__ = [
    "ADAPTERS",
    "GRADIENT_ROWS",
    "MODELS",
    "OTHER_FORMS",
    "WORLDS",
    "Conditioning",
    "Contents",
    "Denoiser",
    "Kind",
    "ModelInfo",
    "NoiseSchedule",
    "Pipeline",
    "Sample",
    "Solver",
    "StableDiffusionDenoiser",
    "as_conditioning",
    "as_denoiser",
    "as_prompts",
    "check_deterministic",
    "check_model",
    "check_plain",
    "check_request",
    "chosen",
    "declare",
    "ended_after",
    "find_contents",
    "find_model",
    "fingerprint",
    "first_latents",
    "generate",
    "initial_noise",
    "inspect",
    "load_pipeline",
    "model_input",
    "model_of",
    "module_fingerprint",
    "multistep",
    "noise_schedule",
    "one_seed_each",
    "only_shapes",
    "sampler_fingerprint",
    "to_host",
]
