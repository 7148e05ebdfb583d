"""Mitigations of memorization at inference time, by name, and detection of memorized prompts.

    BASELINES["embedding optimization"].make(context, 0.7)(prompts, seeds=seeds)     # images
    optimized_embeddings(pipe, prompts, target=1.0)                                 # Wen et al., ICLR 2024

Each of them costs time for every prompt, and anybody with the weights can switch it off. The paper compares with
embedding optimization; this package adds random tokens and value neurons (NeMo). To add one, write a module with a
`Baseline`, and list it in the entry points "memsub.baselines" of its package. The tables and figures of notebook 05
then include it.
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
