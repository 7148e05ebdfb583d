"""Fingerprints: sha256 of a network's weights, and of all that an image or a capture depends on.

>>> fingerprint(pipe) == stats.provenance["model"]
True
>>> check_model(pipe, stats.provenance["model"], "these statistics belong to")
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .plain import named_modules, named_tensors, without_adapter
from .protocol import Pipeline, as_denoiser

_DIGESTS: WeakKeyDictionary[torch.nn.Module, dict[str, tuple[tuple, bytes]]] = WeakKeyDictionary()
"""Cache: module to tensor name to (address and bit sum of the tensor, its digest)."""
_KNOWN = ("torch", "diffusers", "transformers", "memsub", "peft", "builtins")  # their modules are their tensors
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def module_fingerprint(module: torch.nn.Module) -> str:
    """sha256 over a module's parameters and buffers, their names and dtypes.

    It does not depend on memory format, device or compilation. A fused adapter counts as part of the weights, whether
    unloaded or not; one that is not fused counts separately, with its scale. Hashing gigabytes takes seconds, so a
    tensor is hashed again only after it was replaced or written to. Raises ValueError if the module is offloaded.
    """
    known, whole = _DIGESTS.setdefault(module, {}), hashlib.sha256()
    tensors = dict(sorted(_flat(named_tensors(module))))
    for (name, tensor), bits in zip(tensors.items(), _bit_sums(tensors), strict=True):
        writes = None if tensor.is_inference() else tensor._version
        state = (tensor.data_ptr(), writes, tensor.dtype, bits)
        if name not in known or known[name][0] != state:
            digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            known[name] = state, digest.digest()
        whole.update(known[name][1])
    for line in _adapters(module):
        whole.update(line.encode())
    return whole.hexdigest()


def _flat(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The same tensors, with packed tensors (quantized weights) replaced by the plain tensors inside them."""
    for name, tensor in tensors:
        if is_traceable_wrapper_subclass(tensor):
            yield from _flat((f"{name}.{part}", getattr(tensor, part)) for part in tensor.__tensor_flatten__()[0])
        else:
            yield name, tensor


def _bit_sums(tensors: Mapping[str, torch.Tensor]) -> list[int]:
    """The sum of each tensor's bits as integers; detects writes through `weight.data`, which PyTorch does not count."""
    sums: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors.values():
        bits, size = tensor.detach(), tensor.element_size()
        if bits.is_contiguous() and bits.ndim and bits.numel() * size % 8 == 0:
            bits, size = bits.view(-1), 8  # as 64 bits, so that sums need no wider type
        sums.setdefault(tensor.device, []).append(bits.view(_INTEGERS[size]).sum(dtype=torch.int64))
    try:
        together = {device: iter(torch.stack(each).cpu().tolist()) for device, each in sums.items()}  # a copy a device
    except NotImplementedError:  # on the device "meta"
        name = next(name for name, tensor in tensors.items() if tensor.is_meta)
        raise ValueError(f"{name} is offloaded: load the model without sequential offloading.") from None
    return [next(together[tensor.device]) for tensor in tensors.values()]


def _adapters(module: torch.nn.Module) -> Iterator[str]:
    """Names and scales of adapters that are not fused; no tensor contains the scales."""
    for name, layer in named_modules(module).items():
        if hasattr(layer, "base_layer") and without_adapter(layer) is layer:
            yield f"{name} {getattr(layer, 'scaling', None)} {getattr(layer, 'active_adapters', None)}"


def fingerprint(pipe: Pipeline) -> str:
    """Fingerprint of the network only. Statistics, masks and edits belong to it."""
    return module_fingerprint(as_denoiser(pipe).network)


def sampler_fingerprint(pipe: Pipeline, without: Sequence[str] = ()) -> str:
    """sha256 of everything that an image depends on except prompt, seed, steps and guidance: modules and scheduler.

    Parts named in `without` do not count, such as "vae" for what is computed before images are decoded.
    """
    denoiser = as_denoiser(pipe)
    parts = [(name, module) for name, module in sorted(denoiser.parts().items()) if name not in without]
    lines = [f"{name} {module_fingerprint(module)}" for name, module in parts]
    lines += [line for _, module in parts for line in _switches(module)]
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


def check_model(pipe: Pipeline, expected: str, what: str) -> None:
    """Raises an error for an object of another model.

    Args:
        expected: fingerprint of the network that the object belongs to.
        what: beginning of the message, such as "this edit is of".

    Raises:
        ValueError: the pipeline has another network; the message names both fingerprints.
    """
    if (actual := fingerprint(pipe)) != expected:
        raise ValueError(
            f"{what} another model: the fingerprint of its network is {expected[:12]}, that of this pipeline's is "
            f"{actual[:12]} (also different if this pipeline is already edited, or loaded in another dtype)."
        )
