"""What edits, statistics and images belong to: sha256 of a model's weights and of its sampler.

>>> fingerprint(pipe) == stats.provenance["model"]      # of the network: what edits and statistics belong to
True
>>> len(sampler_fingerprint(pipe))                      # of everything that images depend on, in hexadecimal digits
64
>>> check_model(pipe, stats.provenance["model"], "these statistics belong to")
"""

from __future__ import annotations

import hashlib
from weakref import WeakKeyDictionary

import torch

from .protocol import Pipeline, as_denoiser

_DIGESTS: WeakKeyDictionary[torch.nn.Module, dict[str, tuple[tuple[int, int], bytes]]] = WeakKeyDictionary()
"""Module to the name of each tensor, to where it lies, how often it was written to, and its digest then."""


def module_fingerprint(module: torch.nn.Module) -> str:
    """sha256 over a module's parameters and buffers, their names and dtypes.

    Hashing gigabytes takes seconds, so a tensor is hashed again only after it was replaced or written to. (A write
    through `weight.data` hides from PyTorch's count of writes: write under `torch.no_grad()` instead.) Raises
    ValueError if the module is offloaded.
    """
    known, whole = _DIGESTS.setdefault(module, {}), hashlib.sha256()
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        writes = (tensor.data_ptr(), tensor._version)
        if name not in known or known[name][0] != writes:
            digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            try:
                host = tensor.detach().cpu()
            except NotImplementedError:  # on the device "meta"
                raise ValueError(f"{name} is offloaded: load the model without sequential offloading.") from None
            digest.update(host.contiguous().reshape(-1).view(torch.uint8).numpy())
            known[name] = writes, digest.digest()
        whole.update(known[name][1])
    return whole.hexdigest()


def fingerprint(pipe: Pipeline) -> str:
    """Of the network alone: what statistics, masks and edits belong to."""
    return module_fingerprint(as_denoiser(pipe).network)


def sampler_fingerprint(pipe: Pipeline) -> str:
    """Of everything that an image depends on besides prompt, seed, steps and guidance: modules and scheduler."""
    denoiser = as_denoiser(pipe)
    lines = [f"{name} {module_fingerprint(module)}" for name, module in sorted(denoiser.parts().items())]
    options = dict(getattr(denoiser.scheduler, "config", {})).items()
    # Entries that begin with "_" say where it came from; one is a list in another order in every process.
    config = sorted((key, str(value)) for key, value in options if not key.startswith("_"))
    lines += [type(denoiser.scheduler).__name__, repr(config)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_model(pipe: Pipeline, expected: str, what: str) -> None:
    """Refuses what belongs to another model.

    Args:
        expected: fingerprint of the network that it belongs to.
        what: belongs there: the beginning of the message, such as "this edit is of".

    Raises:
        ValueError: the pipeline's network is another one; names both.
    """
    if (actual := fingerprint(pipe)) != expected:
        raise ValueError(
            f"{what} another model: the fingerprint of its network is {expected[:12]}, that of this pipeline's is "
            f"{actual[:12]} (also different if this pipeline is already edited, or loaded in another dtype)."
        )
