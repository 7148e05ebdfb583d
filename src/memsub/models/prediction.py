"""Prediction types and noise schedules: what a network predicts, at which share of noise.

    >>> denoiser = as_denoiser(pipe)
    >>> schedule = noise_schedule(denoiser)
    >>> z, eps = torch.randn(2, 3, 4, 8, 8)                 # of three images
    >>> t = schedule.steps[torch.randint(len(schedule.steps), (3,))]
    >>> x, target = schedule.noised(z, t, eps)              # noisy latents, and the target of the network
    >>> predicted = denoiser.predict(x, t, denoiser.embed(["a red heart"] * 3))
    >>> guess = schedule.denoised(x, t, predicted)          # an estimate of z

A noisy latent is x = a z + b eps, for a clean latent z and standard normal noise eps. The step t determines the share a
of signal and the share b of noise: a = sqrt(alpha_bar_t), b = sqrt(1 - alpha_bar_t) for diffusion (Ho et al. 2020), and
a = 1 - sigma, b = sigma for flow matching (Lipman et al. 2023; Esser et al. 2024). The network predicts

    epsilon          eps                Ho et al. 2020
    v_prediction     a eps - b z        Salimans and Ho 2022
    sample           z
    flow             eps - z            the velocity dx / dsigma
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .sampling import model_input, step_options

Kind = Literal["epsilon", "v_prediction", "sample", "flow"]
"""What a network predicts."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A model's T training steps. Latents z, x, eps and predictions have one shape, (B, ...), and `t` is (B,).

    Attributes:
        kind: what the network predicts.
        signal: share a of signal at each step, (T,).
        noise: share b of noise at each step, (T,).
        steps: the value t that the network gets at each step, (T,): 0 to T - 1, or T sigma for flow matching. Note the
            order: steps[0] is the least noisy step for diffusion, and the noisiest for flow matching.
    """

    kind: Kind
    signal: torch.Tensor
    noise: torch.Tensor
    steps: torch.Tensor

    def noised(self, z: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents with noise `eps` at steps `t`, and the network's target for them."""
        signal, noise = self._shares(z, t)
        return signal * z + noise * eps, self._target(signal, noise, z, eps)

    def denoised(self, x: torch.Tensor, t: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """The clean latents that a prediction for noisy latents implies; the inverse of `expected`."""
        signal, noise = self._shares(x, t)
        if self.kind == "epsilon":
            return (x - noise * predicted) / signal
        if self.kind == "v_prediction":
            return signal * x - noise * predicted
        return predicted if self.kind == "sample" else x - noise * predicted

    def expected(self, x: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The network's target for noisy latents `x` whose clean latents are `z`."""
        return self._target(*self._shares(x, t), z, self.noise_in(x, t, z))

    def noise_in(self, x: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The noise in noisy latents `x` whose clean latents are `z`: eps = (x - a z) / b."""
        signal, noise = self._shares(x, t)
        return (x - signal * z) / noise

    def _target(self, signal: torch.Tensor, noise: torch.Tensor, z: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        if self.kind == "epsilon":
            return eps
        if self.kind == "v_prediction":
            return signal * eps - noise * z
        return z if self.kind == "sample" else eps - z

    def _shares(self, latents: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shares of signal and noise at steps `t`, in shapes that broadcast over `latents`."""
        if self.kind == "flow":  # a sampler's sigmas lie between those of training, so t is no index
            noise = t.to(latents.device, torch.float32) / len(self.steps)
            shares = torch.stack([1 - noise, noise])
        else:
            # One table needs one copy to the GPU, which blocks.
            shares = torch.stack([self.signal, self.noise]).to(latents.device)[:, t.to(latents.device)]
        signal, noise = shares.to(latents).reshape(2, -1, *[1] * (latents.ndim - 1))
        return signal, noise


def noise_schedule(model: Any) -> NoiseSchedule:
    """The schedule of a denoiser, or of a scheduler.

    Raises:
        ValueError: the prediction type is not in `Kind`, or the scheduler has no schedule of these forms; the message
            names it.
    """
    scheduler = getattr(model, "scheduler", model)
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    kind = config.get("prediction_type")
    if kind is None and not hasattr(scheduler, "alphas_cumprod") and hasattr(scheduler, "sigmas"):
        return _flow_schedule(scheduler)
    if kind not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(
            f"{name} is of a network that predicts {kind!r}; memsub knows epsilon, v_prediction and sample, and flow "
            "matching by schedulers such as FlowMatchEulerDiscreteScheduler (not by the option 'flow_prediction')."
        )
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"{name} has no noise schedule that memsub knows: it has no alphas_cumprod.")
    alphas = scheduler.alphas_cumprod
    return NoiseSchedule(kind, alphas.sqrt(), (1 - alphas).sqrt(), torch.arange(len(alphas), device="cpu"))


def _flow_schedule(scheduler: Any) -> NoiseSchedule:
    # `set_timesteps` overwrites the sigmas of training; a new scheduler has them.
    fresh = type(scheduler).from_config(scheduler.config)
    sigmas = fresh.sigmas[: scheduler.config.num_train_timesteps].to("cpu", torch.float32)
    return NoiseSchedule("flow", 1 - sigmas, sigmas, sigmas * scheduler.config.num_train_timesteps)


def multistep(scheduler: Any) -> Any:
    """DPM-Solver++ (Lu et al. 2022) of second order, on a scheduler's noise schedule, starting from pure noise.

    On the embedded model, ten DDIM steps with `leading` spacing give a tenth fewer replications than fifty DDIM steps;
    eight steps of this solver give as many (`tools.solvers`). Raises ValueError for flow matching.
    """
    from diffusers import DPMSolverMultistepScheduler

    if noise_schedule(scheduler).kind == "flow":
        raise ValueError(
            f"the multistep solver cannot step {type(scheduler).__name__} (flow matching): use solver='own'."
        )
    with torch.device("cpu"):  # its tables belong on the CPU, whatever the default device is
        return DPMSolverMultistepScheduler.from_config(scheduler.config, timestep_spacing="trailing")


def noise_of(scheduler: Any, shape: tuple[int, ...]) -> bool | None:
    """Whether a scheduler draws noise; None if the noise of a row depends on more than its generator."""

    def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
        return torch.allclose(a, b, rtol=1e-4, atol=1e-5)

    alone, row = _first_steps(scheduler, shape, 0, 1), _first_steps(scheduler, shape, 1, 2)
    if alike(alone[0], row[0]) and alike(alone[0], row[1]):
        return False
    generators = [[torch.Generator().manual_seed(seed) for seed in seeds] for seeds in ([1, 2], [2])]
    both, second = (_first_steps(scheduler, shape, i, len(g), g) for i, g in enumerate(generators))
    return True if alike(both[1], second[0]) and not alike(both[0], both[1]) else None


def _first_steps(scheduler: Any, shape: tuple[int, ...], seed: int, rows: int, generators: Any = None) -> torch.Tensor:
    """Latents of equal rows after two steps of a copy of the scheduler, with torch's global generator set to `seed`."""
    scheduler = copy.deepcopy(scheduler)
    options = {"mu": 1.0} if getattr(scheduler, "config", {}).get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(4, **options)  # more than are run: some draw no noise at the last step
    options = step_options(scheduler, generators)
    x = torch.ones(rows, *shape, dtype=torch.float32, device="cpu")
    predicted = torch.full_like(x, 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPU
        for t in scheduler.timesteps[: 2 * getattr(scheduler, "order", 1)]:
            model_input(scheduler, x, t)  # some warn if the input was not scaled
            x = scheduler.step(predicted, t, x, **options).prev_sample
    return x
