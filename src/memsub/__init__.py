"""memsub: locate and delete the subspace of a diffusion model that carries memorized training images.

The five lines:

    pipe = memsub.load_pipeline("tiny")                          # "sd14", "sd20", a folder, or a hub id
    prompts = memsub.load_prompts("tiny").memorized
    stats, null = memsub.capture(pipe, prompts), memsub.capture(pipe, [""])
    edit = memsub.locate(pipe, stats, null).union(steps=10)      # sparsity: the model's recommended one
    edit.apply(pipe)                                             # or: with memsub.pruned(pipe, edit): ...

Names are imported when they are used (`__init__.pyi` lists them), so that importing memsub costs nothing.
"""

import logging

import lazy_loader

# transformers announces at import that torchvision is missing; this project does without it on purpose.
logging.getLogger("transformers.utils.import_utils").addFilter(lambda r: "requires torchvision" not in r.getMessage())

__version__ = "0.3.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
