"""memsub: locate and delete the subspace of a diffusion model that carries memorized training images.

The five lines:

    pipe = memsub.load_pipeline("tiny")                          # "sd14", "sd20", a folder, or a hub id
    prompts = memsub.load_prompts("tiny").memorized
    stats, null = (memsub.capture(pipe, some, first=10) for some in (prompts, [""]))
    edit = memsub.locate(pipe, stats, null).union(steps=10)      # sparsity: the model's recommended one
    edit.apply(pipe)                                             # or: with memsub.pruned(pipe, edit): ...
"""

import logging

# transformers announces at import that torchvision is missing; this project does without it on purpose.
logging.getLogger("transformers.utils.import_utils").addFilter(lambda r: "requires torchvision" not in r.getMessage())

from .activations import ActivationStats, capture
from .denoiser import Denoiser, as_denoiser
from .evaluation import interval, score, seed_similarity, summary
from .findings import at_least, at_most, checks, exactly, say
from .generation import generate
from .lab import Lab, Setting, explore
from .metrics import CopyMetric, Metrics, PromptMetric, fid, kid, load_metrics
from .models import load_pipeline
from .neurons import WeightMasks, importance, locate, memorized
from .overlap import pairwise_iou
from .parameters import Parameters
from .prompts import Prompts, load_prompts
from .pruning import Edit, pruned
from .runs import Run

__version__ = "0.2.0"
__all__ = [
    "ActivationStats",
    "CopyMetric",
    "Denoiser",
    "Edit",
    "Lab",
    "Metrics",
    "Parameters",
    "PromptMetric",
    "Prompts",
    "Run",
    "Setting",
    "WeightMasks",
    "as_denoiser",
    "at_least",
    "at_most",
    "capture",
    "checks",
    "exactly",
    "explore",
    "fid",
    "generate",
    "importance",
    "interval",
    "kid",
    "load_metrics",
    "load_pipeline",
    "load_prompts",
    "locate",
    "memorized",
    "pairwise_iou",
    "pruned",
    "say",
    "score",
    "seed_similarity",
    "summary",
]
