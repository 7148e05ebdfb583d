"""The names of `memsub.models`, and where each lies: read by type checkers, and by `lazy_loader` when one is used."""

from .conditioning import Conditioning, as_conditioning
from .contents import OTHER_FORMS, Contents, inspect
from .fingerprints import check_model, fingerprint, module_fingerprint, sampler_fingerprint
from .generation import Sample, check_finite, check_images, generate
from .hooks import Joint, hooked, is_of_weight
from .known import MODELS, WORLDS, ModelInfo
from .loading import find_contents, find_model, load_pipeline, model_of
from .plain import check_plain, named_modules, only_shapes
from .prediction import Kind, NoiseSchedule, multistep, noise_schedule
from .protocol import ADAPTERS, Denoiser, Pipeline, Solver, as_denoiser, rows_of_call
from .sampling import (
    as_captions,
    as_prompts,
    check_request,
    chosen,
    draws_noise,
    in_batches,
    initial_noise,
    model_input,
    one_seed_each,
    row_generators,
    step_options,
    to_host,
)
from .stable_diffusion import StableDiffusionDenoiser
from .worlds import world_of

__all__ = [
    "ADAPTERS",
    "MODELS",
    "OTHER_FORMS",
    "WORLDS",
    "Conditioning",
    "Contents",
    "Denoiser",
    "Joint",
    "Kind",
    "ModelInfo",
    "NoiseSchedule",
    "Pipeline",
    "Sample",
    "Solver",
    "StableDiffusionDenoiser",
    "as_captions",
    "as_conditioning",
    "as_denoiser",
    "as_prompts",
    "check_finite",
    "check_images",
    "check_model",
    "check_plain",
    "check_request",
    "chosen",
    "draws_noise",
    "find_contents",
    "find_model",
    "fingerprint",
    "generate",
    "hooked",
    "in_batches",
    "initial_noise",
    "inspect",
    "is_of_weight",
    "load_pipeline",
    "model_input",
    "model_of",
    "module_fingerprint",
    "multistep",
    "named_modules",
    "noise_schedule",
    "one_seed_each",
    "only_shapes",
    "row_generators",
    "rows_of_call",
    "sampler_fingerprint",
    "step_options",
    "to_host",
    "world_of",
]
