"""memsub: locate and delete the subspace of a diffusion model that carries memorized training images.

pipe = memsub.load_pipeline("tiny")                   # or a folder, or a hub id
prompts = memsub.load_prompts("tiny")
images = memsub.generate(pipe, prompts.memorized[:4], seeds=0)
judges = memsub.load_judges("tiny")
judges.copy.similarity(images, prompts.images("verbatim")[:4])
"""

from .generation import generate
from .metrics import CopyJudge, Judges, PromptJudge, fid, load_judges
from .models import load_pipeline
from .prompts import Prompts, load_prompts

__version__ = "0.1.0"
__all__ = [
    "CopyJudge",
    "Judges",
    "PromptJudge",
    "Prompts",
    "fid",
    "generate",
    "load_judges",
    "load_pipeline",
    "load_prompts",
]
