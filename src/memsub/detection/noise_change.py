"""How much of the noise is replaced at once, after the denoising confidence score of Webster (2023)."""

import torch


def noise_change(start: torch.Tensor, unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    """||eps(x_t, t, prompt) - x_T||, shape (n,): a model that remembers replaces the noise by its picture at once."""
    return (conditional - start).float().flatten(1).norm(dim=1)
