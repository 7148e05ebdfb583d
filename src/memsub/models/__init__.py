"""Models: what the library needs of one, and those that it knows by name.

>>> info = find_model("tiny")                               # known, loading: names, folders, hub ids
>>> denoiser = as_denoiser(pipe)                            # protocol: everything else is asked of this
>>> images = generate(denoiser, prompts, seeds=0, steps=2)  # sampling
>>> z, eps, t = torch.zeros(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([500])
>>> x, target = noise_schedule(denoiser).noised(z, t, eps)  # prediction: epsilon, v, sample, flow matching
>>> fingerprint(denoiser) == fingerprint(pipe)              # fingerprints: what an edit belongs to
True

Names are imported when they are used (`__init__.pyi` lists them): `known`, `contents` and `protocol` need no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
