"""The adapter: everything the library needs of a model, shown by a model that is no Stable Diffusion at all."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

import memsub
from memsub.baselines import optimized_embeddings
from memsub.denoiser import Denoiser, StableDiffusionDenoiser, as_denoiser, fingerprint, sampler_fingerprint
from memsub.detection import first_step_scores


class Network(torch.nn.Module):
    """Predicts noise from latents and text through one feed-forward layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 12), torch.nn.Linear(12, 2)

    def forward(self, latents, t, context):
        n, c, h, w = latents.shape
        tokens = torch.cat([latents.flatten(2).mT, context.mean(1, keepdim=True).expand(n, h * w, 4)], -1)
        return self.second(torch.relu(self.first(tokens))).mT.reshape(n, c, h, w)


class Toy:
    """A denoiser of its own: the protocol, and nothing of diffusers but a scheduler."""

    def __init__(self):
        torch.manual_seed(0)
        self.network, self.scheduler = Network().eval(), DDIMScheduler()
        self.tokenizer = SimpleNamespace(model_max_length=9)
        self.device, self.dtype, self.source = torch.device("cpu"), torch.float32, "toy"
        self.latent_shape, self.image_shape = (2, 4, 4), (4, 4)

    def layers(self):
        return {"second": self.network.second}

    def value_layers(self):
        return {}

    def blocks(self):
        return {}

    def embed(self, prompts):
        return torch.stack([torch.full((3, 4), len(p) / 10) for p in prompts])

    def predict(self, latents, t, embeddings):
        return self.network(latents, t, embeddings)

    def calls(self, steps):
        return steps

    def call_rows(self, prompts, guidance_scale):  # conditional first, unlike diffusers
        once = torch.arange(prompts)
        return once.repeat(2), torch.tensor([True, False]).repeat_interleave(prompts)

    @torch.no_grad()
    def sample(self, prompts, latents, steps, guidance_scale, solver="own"):
        text = prompts if isinstance(prompts, torch.Tensor) else self.embed(prompts)
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            both = torch.cat([text, self.embed([""] * len(text))])
            conditional, unconditional = self.predict(torch.cat([latents, latents]), t, both).chunk(2)
            guided = unconditional + guidance_scale * (conditional - unconditional)
            latents = self.scheduler.step(guided, t, latents).prev_sample
        return latents

    def encode(self, images):
        return torch.from_numpy(images[..., :2]).permute(0, 3, 1, 2).float()

    def decode(self, latents):
        x = latents.clamp(0, 1).permute(0, 2, 3, 1).numpy()
        return (np.concatenate([x, x[..., :1]], -1) * 255).astype(np.uint8)

    def parts(self):
        return {"network": self.network}


def test_the_whole_method_works_on_another_kind_of_model(tmp_path):
    toy = Toy()
    assert isinstance(toy, Denoiser)
    options = {"steps": 3, "progress": False}
    both, null = memsub.capture(toy, ["a", "a longer one"], **options), memsub.capture(toy, [""], **options)
    conditional = memsub.capture(toy, ["a", "a longer one"], cfg_half="cond", **options)
    assert both.sums["second"].shape == (1, 3, 12)
    assert (both.sums["second"] >= conditional.sums["second"]).all()
    edit = memsub.locate(toy, both, null).union(steps=3)
    assert edit.provenance["sparsity"] == 0.01  # not in the registry: the paper's
    before = memsub.generate(toy, ["a"], **options)
    with memsub.pruned(toy, edit):
        assert (toy.network.second.weight.view(-1)[edit.positions["second"]] == 0).all()
    np.testing.assert_array_equal(memsub.generate(toy, ["a"], **options), before)
    assert first_step_scores(toy, ["a", "bb"], steps=3)["text magnitude"].shape == (2,)
    assert optimized_embeddings(toy, ["a"], target=0.0, steps=3, iterations=2).shape == (1, 3, 4)


def test_an_unknown_pipeline_is_named():
    with pytest.raises(TypeError, match="object is no pipeline that memsub knows; expected StableDiffusionPipeline"):
        as_denoiser(object())


def test_stable_diffusion_through_the_adapter(pipe):
    denoiser = as_denoiser(pipe)
    assert isinstance(denoiser, StableDiffusionDenoiser) and isinstance(denoiser, Denoiser)
    assert as_denoiser(denoiser) is denoiser
    assert (denoiser.latent_shape, denoiser.image_shape) == ((4, 8, 8), (32, 32))
    assert denoiser.embed(["a", "b"]).shape[0] == 2
    prompt, conditional = denoiser.call_rows(3, 7.5)
    assert prompt.tolist() == [0, 1, 2, 0, 1, 2]
    assert conditional.tolist() == [False] * 3 + [True] * 3
    assert denoiser.call_rows(2, 1.0)[1].tolist() == [True, True]
    images = memsub.load_prompts("tiny").images("verbatim", 0, 2)
    assert np.abs(denoiser.decode(denoiser.encode(images)).astype(int) - images).mean() < 8


def test_fingerprints_tell_what_changed(pipe):
    network, sampler = fingerprint(pipe), sampler_fingerprint(pipe)
    weight = pipe.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        weight[0, 0] += 1
    assert fingerprint(pipe) == network  # an edit still belongs to the network
    assert sampler_fingerprint(pipe) != sampler  # but images change
    with torch.no_grad():
        weight[0, 0] -= 1
    scheduler = pipe.scheduler
    pipe.scheduler = DDIMScheduler.from_config(scheduler.config, prediction_type="v_prediction")
    assert sampler_fingerprint(pipe) != sampler
    pipe.scheduler = scheduler
