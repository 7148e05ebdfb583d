"""Models: what the library needs of one, and those that it knows by name.

>>> info = find_model("tiny")                               # known, loading: names, folders, hub ids
>>> denoiser = as_denoiser(pipe)                            # protocol: everything else is asked of this
>>> images = generate(denoiser, prompts, seeds=0, steps=2)  # sampling
>>> z, eps, t = torch.zeros(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([500])
>>> x, target = noise_schedule(denoiser).noised(z, t, eps)  # prediction: epsilon, v, sample, flow matching
>>> fingerprint(denoiser) == fingerprint(pipe)              # fingerprints: what an edit belongs to
True
"""

from .conditioning import Conditioning, as_conditioning, as_prompts
from .fingerprints import check_model, fingerprint, module_fingerprint, sampler_fingerprint
from .hooks import Joint, hooked, is_of_weight
from .known import MODELS, WORLDS, ModelInfo
from .loading import find_model, load_pipeline, model_of
from .plain import check_plain, named_modules, only_shapes
from .prediction import Kind, NoiseSchedule, noise_schedule
from .protocol import ADAPTERS, GRADIENT_ROWS, Denoiser, Pipeline, Solver, as_denoiser, declare
from .sampling import (
    Sample,
    check_request,
    chosen,
    draws_noise,
    first_latents,
    generate,
    in_batches,
    initial_noise,
    model_input,
    multistep,
    one_seed_each,
    row_generators,
    step_options,
    to_host,
)
from .stable_diffusion import StableDiffusionDenoiser

__all__ = [
    "ADAPTERS",
    "GRADIENT_ROWS",
    "MODELS",
    "WORLDS",
    "Conditioning",
    "Denoiser",
    "Joint",
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
    "check_model",
    "check_plain",
    "check_request",
    "chosen",
    "declare",
    "draws_noise",
    "find_model",
    "fingerprint",
    "first_latents",
    "generate",
    "hooked",
    "in_batches",
    "initial_noise",
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
    "sampler_fingerprint",
    "step_options",
    "to_host",
]
