"""SISS (Alberti et al., ICLR 2025, "Data Unlearning in Diffusion Models"): two losses from one noised sample.

With probability lambda, x_t is a noised image to forget, a; otherwise a noised image to keep, x. With
r = q(x_t | a) / q(x_t | x),

    gradient = grad w_x ||eps_theta - eps_x||^2 - scale grad w_a ||eps_theta - eps_a||^2
    w_x = 1 / ((1 - lambda) + lambda r),    w_a = 1 / ((1 - lambda) / r + lambda)

where the second term is rescaled to a fixed share of the first one's norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from memsub.models import Pipeline, as_denoiser, noise_schedule
from memsub.pruning import Edit

from .fine_tuning import BATCH, Loss, fine_tunings
from .losses import weighted_error
from .pairs import Pairs
from .surrogates import surrogates


def siss(
    pipe: Pipeline,
    memorized: Pairs,
    ordinary: Pairs,
    *,
    located: Callable[[], Edit],
    mix: float = 0.5,
    share: float = 0.1,
    seed: int = 0,
) -> Loss:
    """The objective. As in the paper for text-to-image models, x is another image of the same caption (`surrogates`).

    Args:
        mix: lambda.
        share: norm of the second gradient after scaling, as a share of the norm of the first.
    """
    denoiser = as_denoiser(pipe)
    schedule = noise_schedule(denoiser)
    keep = denoiser.encode(surrogates(pipe, memorized, located(), seed=seed))
    forget, context = denoiser.encode(memorized.images), denoiser.embed(memorized.captions)

    def loss(step: int, rng: torch.Generator, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
        rows = torch.randint(len(memorized), (BATCH,), generator=rng)
        x, a = keep[rows], forget[rows]
        at = torch.randint(len(schedule.steps), (BATCH,), generator=rng)
        t = schedule.steps[at]
        signal, noise = (part[at][:, None, None, None].to(x) for part in (schedule.signal, schedule.noise))
        source = torch.where((torch.rand(BATCH, generator=rng) < mix)[:, None, None, None].to(x.device), a, x)
        x_t, _ = schedule.noised(source, t, torch.randn(x.shape, generator=rng).to(x))
        eps_x, eps_a = (x_t - signal * x) / noise, (x_t - signal * a) / noise
        # The ratio of two densities in hundreds of dimensions: its logarithm is clamped before it is exponentiated.
        ratio = ((eps_x.square() - eps_a.square()).flatten(1).sum(1) / 2).clamp(-30, 30).exp()
        w_x, w_a = 1 / ((1 - mix) + mix * ratio), 1 / ((1 - mix) / ratio + mix)
        predicted = denoiser.predict(x_t, t.to(x.device), context[rows])
        kept, forgotten = (
            weighted_error(predicted, schedule.noised(clean, t, eps)[1], w)
            for w, clean, eps in ((w_x, x, eps_x), (w_a, a, eps_a))
        )
        scale = share * _norm_of_gradient(kept, parameters) / _norm_of_gradient(forgotten, parameters).clamp_min(1e-12)
        return kept - scale * forgotten

    return loss


def _norm_of_gradient(loss: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Norm of a gradient that is not kept, to save memory; the loss's backward pass computes it again later."""
    return torch.stack([g.norm() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]).norm()


REMOVAL, LOCATED, RANDOM = fine_tunings(
    "SISS", siss, "Alberti et al., ICLR 2025, Data Unlearning in Diffusion Models", epochs=40, lr=1e-4
)
