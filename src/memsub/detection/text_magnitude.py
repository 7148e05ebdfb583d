"""How much the text changes what is predicted (Wen et al., ICLR 2024, eq. 3); large for memorized prompts."""

import torch


def text_magnitude(start: torch.Tensor, unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    """||eps(x_t, t, prompt) - eps(x_t, t, empty)||, shape (n,)."""
    return (conditional - unconditional).float().flatten(1).norm(dim=1)
