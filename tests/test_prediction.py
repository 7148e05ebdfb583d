"""Prediction types and schedules: each formula against what it stands for, and against diffusers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

import memsub
from memsub.models import multistep, noise_schedule
from memsub_extra.attacks import embedding_attack
from toys import Toy

SCHEDULERS = {
    "epsilon": PNDMScheduler(),
    "v_prediction": DDIMScheduler(prediction_type="v_prediction"),
    "sample": DDIMScheduler(prediction_type="sample"),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
}


def latents(schedule):
    rng = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 4, 2, 3, 3, generator=rng)
    return z, eps, schedule.steps[[700, 3, 999, 250]]


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_prediction_and_what_it_stands_for_are_inverse(kind):
    schedule = noise_schedule(SCHEDULERS[kind])
    assert schedule.kind == kind and len(schedule.steps) == len(schedule.signal) == len(schedule.noise) == 1000
    z, eps, t = latents(schedule)
    x, target = schedule.noised(z, t, eps)
    loose = {"rtol": 1e-3, "atol": 1e-3}  # under much noise little is left of the signal
    torch.testing.assert_close(schedule.denoised(x, t, target), z, **loose)
    torch.testing.assert_close(schedule.expected(x, t, z), target, **loose)
    torch.testing.assert_close(schedule.noise_in(x, t, z), eps, **loose)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_diffusion_is_that_of_diffusers(kind):
    scheduler = SCHEDULERS[kind]
    schedule = noise_schedule(scheduler)
    z, eps, t = latents(schedule)
    x, target = schedule.noised(z, t, eps)
    torch.testing.assert_close(x, scheduler.add_noise(z, eps, t))
    right = {"epsilon": lambda: eps, "v_prediction": lambda: scheduler.get_velocity(z, eps, t), "sample": lambda: z}
    torch.testing.assert_close(target, right[kind]())
    torch.testing.assert_close(schedule.signal**2 + schedule.noise**2, torch.ones(1000))


def test_flow_matching_is_that_of_diffusers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule = noise_schedule(scheduler)
    z, eps, t = latents(schedule)
    x, target = schedule.noised(z, t, eps)
    torch.testing.assert_close(x, scheduler.scale_noise(z, t, eps))
    assert torch.equal(target, eps - z)
    torch.testing.assert_close(schedule.noise[700] * eps[0] + schedule.signal[700] * z[0], x[0])
    # The velocity is what the sampler integrates: one step of it goes from noisy latents along a straight line.
    sampling = FlowMatchEulerDiscreteScheduler(shift=3.0)
    sampling.set_timesteps(4)
    t, later = sampling.timesteps[1:3]
    x, target = schedule.noised(z[:1], t[None], eps[:1])
    torch.testing.assert_close(sampling.step(target, t, x).prev_sample, schedule.noised(z[:1], later[None], eps[:1])[0])


def test_a_sampling_does_not_change_the_schedule():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    before = noise_schedule(scheduler)
    scheduler.set_timesteps(5)
    after = noise_schedule(scheduler)
    assert torch.equal(before.steps, after.steps) and torch.equal(before.noise, after.noise)
    other_sampler = noise_schedule(FlowMatchHeunDiscreteScheduler(shift=3.0))
    torch.testing.assert_close(other_sampler.noise, before.noise)


def test_steps_of_diffusion_are_its_indices_and_floats_as_they_were():
    """Of noise and v the float path is a stated one: every number of the documents came out of it."""
    for kind in ("epsilon", "v_prediction"):
        scheduler = SCHEDULERS[kind]
        schedule = noise_schedule(scheduler)
        assert torch.equal(schedule.steps, torch.arange(1000))
        z, eps, t = latents(schedule)
        alphas = scheduler.alphas_cumprod[t]
        signal, noise = (a.sqrt()[:, None, None, None] for a in (alphas, 1 - alphas))
        x, target = schedule.noised(z, t, eps)
        assert torch.equal(x, signal * z + noise * eps)
        assert torch.equal(target, eps if kind == "epsilon" else signal * eps - noise * z)
        clean = (x - noise * eps) / signal if kind == "epsilon" else signal * x - noise * eps
        assert torch.equal(schedule.denoised(x, t, eps), clean)


def test_latents_of_any_shape_and_dtype():
    """Transformers have latents of (rows, tokens, channels)."""
    for scheduler in SCHEDULERS.values():
        schedule = noise_schedule(scheduler)
        z, eps, t = *torch.randn(2, 2, 7, 5, dtype=torch.float64).unbind(), schedule.steps[[5, 500]]
        x, target = schedule.noised(z, t, eps)
        assert x.shape == target.shape == (2, 7, 5) and x.dtype == torch.float64


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            "UniPCMultistepScheduler is of a network that predicts 'flow_prediction'; memsub knows epsilon, v_",
        ),
        (EDMEulerScheduler(), "EDMEulerScheduler has no noise schedule that memsub knows"),
        (SimpleNamespace(config={}), "SimpleNamespace is of a network that predicts None"),
    ],
)
def test_other_kinds_are_refused_by_name(scheduler, message):
    with pytest.raises(ValueError, match=message):
        noise_schedule(scheduler)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_embedding_attack_lowers_its_loss_for_every_kind(kind):
    toy = Toy(SCHEDULERS[kind])
    image = np.full((1, 4, 4, 3), 200, np.uint8)
    start = toy.embed(["abc"])
    attacked = embedding_attack(toy, image, start, iterations=40, noises=8, progress=False)
    schedule = noise_schedule(toy)
    rng = torch.Generator().manual_seed(1)
    t = schedule.steps[torch.randint(1000, (64,), generator=rng)]
    z = toy.encode(image).expand(64, -1, -1, -1)
    x, target = schedule.noised(z, t, torch.randn(z.shape, generator=rng))
    with torch.no_grad():
        before, after = ((toy.predict(x, t, text.expand(64)) - target).square().mean() for text in (start, attacked))
    assert after < before


def test_the_multistep_solver_refuses_flow_matching():
    with pytest.raises(ValueError, match="cannot step FlowMatchEulerDiscreteScheduler"):
        multistep(SCHEDULERS["flow"])
    with pytest.raises(ValueError, match="use solver='own'"):
        memsub.generate(Toy(SCHEDULERS["flow"]), ["a"], steps=2, solver="multistep", progress=False)
