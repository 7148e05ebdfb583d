"""memsub: locate and delete the subspace of a diffusion model that carries memorized training images.

The five lines:

    pipe = memsub.load_pipeline("tiny")                          # "sd14", "sd20", a folder, or a hub id
    prompts = memsub.load_prompts("tiny").memorized
    stats, null = memsub.capture(pipe, prompts), memsub.capture(pipe, [""])
    edit = memsub.locate(pipe, stats, null, sparsity=0.01).union(steps=10)
    edit.apply(pipe)                                             # or: with memsub.pruned(pipe, edit): ...
"""

import logging

# transformers announces at import that torchvision is missing; this project does without it on purpose.
logging.getLogger("transformers.utils.import_utils").addFilter(lambda r: "requires torchvision" not in r.getMessage())

from .activations import ActivationStats, capture
from .evaluation import evaluate, seed_similarity, summary
from .generation import generate
from .metrics import CopyJudge, Judges, PromptJudge, fid, load_judges
from .models import load_pipeline
from .neurons import NeuronMasks, locate
from .overlap import pairwise_iou
from .prompts import Prompts, load_prompts
from .pruning import Edit, pruned
from .runs import Parameters, Run

__version__ = "0.1.0"
__all__ = [
    "ActivationStats",
    "CopyJudge",
    "Edit",
    "Judges",
    "NeuronMasks",
    "Parameters",
    "PromptJudge",
    "Prompts",
    "Run",
    "capture",
    "evaluate",
    "fid",
    "generate",
    "load_judges",
    "load_pipeline",
    "load_prompts",
    "locate",
    "pairwise_iou",
    "pruned",
    "seed_similarity",
    "summary",
]
