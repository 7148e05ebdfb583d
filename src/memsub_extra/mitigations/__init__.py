"""Mitigations: what can be done against memorization at inference time, by name, and detection of memorized prompts.

    BASELINES["embedding optimization"].make(context, 0.7)(prompts, seeds=seeds)     # images
    optimized_embeddings(pipe, prompts, target=1.0)                                 # Wen et al., ICLR 2024

Each costs something for every prompt, and none survives somebody who holds the weights. The paper compares with the
first; random tokens and value neurons (NeMo) are more. A new one is a file that ends in a `Baseline`, listed in the
entry points "memsub.baselines" of its package. It then stands in notebook 05's tables and figures.
"""

from memsub.registry import Registry

from .base import Baseline, Context
from .embedding_optimization import optimized_embeddings

BASELINES: Registry[Baseline] = Registry(
    "memsub.baselines",
    "baseline",
    {"embedding optimization": "memsub_extra.mitigations.embedding_optimization:BASELINE"},
)

__all__ = ["BASELINES", "Baseline", "Context", "optimized_embeddings"]
