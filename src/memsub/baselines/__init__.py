"""Baselines: what can be done against memorization at inference time, by name.

    BASELINES["random tokens"].make(context, 2)(prompts, seeds=seeds)       # images
    optimized_embeddings(pipe, prompts, target=1.0)                         # Wen et al., ICLR 2024
    add_random_tokens(pipe.tokenizer, prompts, k=2)                         # Somepalli et al., NeurIPS 2023
    find_value_neurons(pipe, prompts, value_statistics(pipe, ordinary))     # NeMo, Hintersdorf et al., NeurIPS 2024

Each costs something for every prompt, and none survives somebody who holds the weights. A new one is a file that ends
in a `Baseline`, and a line in `BASELINES`; another package lists it in the entry points "memsub.baselines". It then
stands in notebook 05's tables and figures.
"""

from ..registry import Registry
from .base import Baseline, Context
from .embedding_optimization import optimized_embeddings
from .random_tokens import add_random_tokens
from .value_neurons import deactivated, find_value_neurons, value_statistics

BASELINES: Registry[Baseline] = Registry(
    "memsub.baselines",
    "baseline",
    {
        "embedding optimization": "memsub.baselines.embedding_optimization:BASELINE",
        "random tokens": "memsub.baselines.random_tokens:BASELINE",
        "value neurons": "memsub.baselines.value_neurons:BASELINE",
    },
)

__all__ = [
    "BASELINES",
    "Baseline",
    "Context",
    "add_random_tokens",
    "deactivated",
    "find_value_neurons",
    "optimized_embeddings",
    "value_statistics",
]
