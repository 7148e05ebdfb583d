"""Fingerprint of a pipeline for its images: sha256 of all that they depend on except prompt, seed, steps, guidance.

sampler_fingerprint(pipe)       # 64 hexadecimal digits; stored images belong to it
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from memsub.models import Pipeline, as_denoiser, module_fingerprint, named_modules

_KNOWN = ("torch", "diffusers", "transformers", "memsub", "peft", "builtins")
"""Packages whose modules are determined by their tensors."""


def sampler_fingerprint(pipe: Pipeline) -> str:
    """sha256 of everything that an image depends on except prompt, seed, steps and guidance: modules and scheduler."""
    denoiser = as_denoiser(pipe)
    lines = [f"{name} {module_fingerprint(module)}" for name, module in sorted(denoiser.parts().items())]
    lines += [line for _, module in sorted(denoiser.parts().items()) for line in _switches(module)]
    options = dict(getattr(denoiser.scheduler, "config", {})).items()
    # Entries that begin with "_" say where it came from; one is a list in another order in every process.
    config = sorted((key, str(value)) for key, value in options if not key.startswith("_"))
    lines += [type(denoiser.scheduler).__name__, repr(config)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _switches(module: torch.nn.Module) -> Iterator[str]:
    """Changes of a network's output that are not in its tensors: FreeU, and code of other packages."""
    for name, part in named_modules(module).items():
        freeu = [vars(part).get(key) for key in ("s1", "s2", "b1", "b2")]  # `getattr` is slow for what is not there
        if any(value is not None for value in freeu):
            yield f"{name} {freeu}"
        for owner in (type(part), type(getattr(part, "processor", None))):
            if owner.__module__.split(".")[0] not in _KNOWN:
                yield f"{name} {owner.__module__}.{owner.__qualname__}"
