"""Samplers: the same seed gives the same image, whatever the sampler draws; and steps are steps."""

import warnings
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler, TCDScheduler

import memsub
from memsub.models import as_denoiser, draws_noise, fingerprint, initial_noise, row_generators, sampler_fingerprint
from memsub_extra.attacks import sample_to_folder
from memsub_extra.mitigations.detection import step_scores
from micro import CAPTIONS, micro_pipeline
from toys import Toy

OPTIONS = {"steps": 3, "guidance_scale": 3.0, "progress": False}
KINDS = sorted({*micro_pipeline().scheduler.compatibles, LCMScheduler, TCDScheduler}, key=lambda kind: kind.__name__)
WITHOUT_SCHEDULE = ("EDMEulerScheduler",)
"""Not for networks that predict noise at time steps."""
NOISY = ("DDPM", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete", "LCM")


class NoisyDDIM(DDIMScheduler):
    """With the eta of DDPM, which pipelines set to 0."""

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        return super().step(model_output, timestep, sample, 1.0, generator=generator, return_dict=return_dict)


def sde(config):
    return diffusers.DPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++")


def stepped_by(kind, pipe):
    pipe = micro_pipeline(pipe.unet.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # PNDM's Runge-Kutta steps, which SD1.4 skips, need four steps or more.
        config = {**pipe.scheduler.config, "skip_prk_steps": True}
        pipe.scheduler = kind.from_config(config) if isinstance(kind, type) else kind(config)
    return pipe


def named(kind):
    return kind.__name__


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*KINDS, NoisyDDIM, sde], ids=named)
def test_a_seed_fixes_everything_that_a_sampler_draws(exact_micro, kind):
    if kind.__name__ == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
        with pytest.raises(ValueError, match=f"{kind.__name__} draws noise of its own .* from no generator"):
            memsub.generate(stepped_by(kind, exact_micro), CAPTIONS[:2], **OPTIONS)
        return
    if kind.__name__ in WITHOUT_SCHEDULE:
        pytest.skip("no schedule of time steps")
    pipe = stepped_by(kind, exact_micro)
    denoiser, noisy = as_denoiser(pipe), draws_noise(as_denoiser(pipe))
    assert noisy is (kind in (NoisyDDIM, sde) or kind.__name__.removesuffix("Scheduler") in NOISY)

    def latents(captions, seeds):
        options = {"generators": row_generators(denoiser, seeds)} if noisy else {}
        return denoiser.sample(captions, initial_noise(denoiser, seeds), 3, 3.0, **options)

    both = latents(CAPTIONS[:2], [4, 5])
    torch.manual_seed(99)
    assert torch.equal(latents(CAPTIONS[:2], [4, 5]), both)
    torch.testing.assert_close(latents(CAPTIONS[1:2], [5]), both[1:], rtol=1e-6, atol=1e-8)
    one, other = (memsub.capture(pipe, CAPTIONS[:2], batch_size=n, **OPTIONS) for n in (2, 1))
    for name, sums in one.sums.items():
        torch.testing.assert_close(other.sums[name], sums, rtol=1e-5, atol=1e-9)
        calls, order = denoiser.calls(3), pipe.scheduler.order
        assert sums.shape[1] == -(-calls // order)


@pytest.mark.parametrize("kind", [EulerAncestralDiscreteScheduler, DDPMScheduler])
def test_a_seed_means_what_it_means_in_diffusers(kind, micro):
    pipe = stepped_by(kind, micro)
    ours = memsub.generate(pipe, CAPTIONS[:1], seeds=7, **OPTIONS)[0]
    generator = torch.Generator().manual_seed(7)
    image = pipe(CAPTIONS[:1], num_inference_steps=3, guidance_scale=3.0, generator=generator).images[0]
    np.testing.assert_array_equal(np.asarray(image), ours)


@pytest.mark.parametrize("name", ["HeunDiscrete", "KDPM2Discrete"])
def test_ten_steps_are_ten_steps(micro, name):
    pipe = stepped_by(getattr(diffusers, f"{name}Scheduler"), micro)
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda *args: calls.append(args))
    whole = memsub.capture(pipe, CAPTIONS[:1], steps=5, progress=False)
    assert len(calls) == as_denoiser(pipe).calls(5) == 9
    part = memsub.capture(pipe, CAPTIONS[:1], steps=5, first=2, progress=False)
    handle.remove()
    assert len(calls) == 9 + 4
    for layer, sums in whole.sums.items():
        assert sums.shape[1] == 5 and torch.equal(part.sums[layer], sums[:, :2])
        # Two halves of a call, 64 tokens each (16 in the lower level), of length one: two calls, but for the last step.
        tokens = sums.sum(2)[0] / sums.sum(2)[0, -1]
        torch.testing.assert_close(tokens, torch.tensor([2.0, 2.0, 2.0, 2.0, 1.0]), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match=r"first must be a whole number from 1 to 5, .*; got 6"):
        memsub.capture(pipe, CAPTIONS[:1], steps=5, first=6, progress=False)
    null = memsub.capture(pipe, [""], steps=5, progress=False)
    assert memsub.locate(pipe, whole, null).steps == 5


def test_every_path_takes_generators(tmp_path):
    toy, options = Toy(LCMScheduler()), {"steps": 4, "progress": False}
    one, other = (memsub.generate(toy, ["a", "bb"], seeds=[1, 2], batch_size=n, **options) for n in (2, 1))
    np.testing.assert_array_equal(one, other)
    scores = [step_scores(toy, ["a", "bb"], steps=4, calls=3, seeds=2, batch_size=n) for n in (4, 2)]
    for name, of_calls in scores[0].items():
        np.testing.assert_allclose(scores[1][name], of_calls, rtol=1e-5)
    sample_to_folder(toy, ["a"], tmp_path / "folder", images=2, **options)
    assert len(list((tmp_path / "folder").rglob("*.png"))) == 2


class WithoutGenerators(Toy):
    def sample(self, prompts, latents, steps, guidance_scale, solver="own"):
        return super().sample(prompts, latents, steps, guidance_scale, solver)


class Ignoring(DDIMScheduler):
    """Takes a generator and does not use it."""

    def step(self, model_output, timestep, sample, generator=None):
        moved = super().step(model_output, timestep, sample)
        moved.prev_sample = moved.prev_sample + torch.randn_like(sample)
        return moved


@pytest.mark.parametrize("toy", [Toy(Ignoring()), WithoutGenerators(DDPMScheduler())], ids=["ignored", "not taken"])
def test_noise_that_no_seed_fixes_is_refused_on_every_path(toy, tmp_path):
    options = {"steps": 4, "progress": False}
    message = f"{type(toy.scheduler).__name__} draws noise of its own at each step"
    with pytest.raises(ValueError, match=message):
        memsub.generate(toy, ["a"], **options)
    with pytest.raises(ValueError, match=message):
        memsub.capture(toy, ["a"], **options)
    with pytest.raises(ValueError, match=message):
        sample_to_folder(toy, ["a"], tmp_path / "folder", **options)
    assert not (tmp_path / "folder").exists()


def test_the_check_leaves_the_sampler_as_it_was(micro):
    for scheduler in (diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), TCDScheduler()):
        holder = SimpleNamespace(scheduler=scheduler, latent_shape=(4, 8, 8))
        assert draws_noise(holder) is False  # pipelines give TCD an eta of 0
        assert scheduler.step_index is None
    assert draws_noise(SimpleNamespace(scheduler=object())) is False  # no sampler of diffusers


def test_a_network_that_takes_the_scale_itself_is_called_on_single_rows():
    pipe = stepped_by(LCMScheduler, micro_pipeline(time_cond_proj_dim=8))
    pipe = micro_pipeline(time_cond_proj_dim=8)
    stats = memsub.capture(pipe, CAPTIONS[:2], **OPTIONS)
    per_step = [sums[0].sum(1) for sums in stats.sums.values()]
    torch.testing.assert_close(per_step[0], torch.full((3,), 2.0 * 64), rtol=1e-4, atol=0)
    denoiser = as_denoiser(pipe)
    assert denoiser.predict(torch.zeros(2, 4, 8, 8), torch.tensor(5), denoiser.embed(["a", "b"])).shape == (2, 4, 8, 8)


def test_a_stored_result_depends_on_the_sampler(micro):
    pipe = micro_pipeline()
    before = sampler_fingerprint(pipe)
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    assert sampler_fingerprint(pipe) != before and fingerprint(pipe) == fingerprint(micro)
