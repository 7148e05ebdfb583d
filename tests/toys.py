"""A denoiser that is no Stable Diffusion at all: the protocol, and nothing of diffusers but a scheduler."""

from types import SimpleNamespace

import numpy as np
import torch
from diffusers import DDIMScheduler

from memsub.models import Conditioning, step_options


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
    """Latents (2, 4, 4), images of 4 x 4 pixels, embeddings (prompts, 3, 4) of a caption's length."""

    def __init__(self, scheduler=None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = Network().eval()
        self.scheduler = scheduler or DDIMScheduler()
        self.tokenizer = SimpleNamespace(model_max_length=9)
        self.device, self.dtype, self.source = torch.device("cpu"), torch.float32, "toy"
        self.latent_shape, self.image_shape = (2, 4, 4), (4, 4)

    def layers(self):
        return {"second": self.network.second}

    def embed(self, prompts):
        return Conditioning(torch.stack([torch.full((3, 4), len(p) / 10) for p in prompts]))

    def predict(self, latents, t, conditioning):
        return self.network(latents, t, conditioning.embeddings)

    def calls(self, steps):
        return steps

    def call_rows(self, prompts, guidance_scale):  # conditional first, unlike diffusers
        once = torch.arange(prompts)
        return once.repeat(2), torch.tensor([True, False]).repeat_interleave(prompts)

    @torch.no_grad()
    def sample(self, prompts, latents, steps, guidance_scale, solver="own", generators=None):
        text = prompts if isinstance(prompts, Conditioning) else self.embed(prompts)
        self.scheduler.set_timesteps(steps)
        options = step_options(self.scheduler, generators)
        for t in self.scheduler.timesteps:
            both = Conditioning.cat([text, self.embed([""] * len(text))])
            conditional, unconditional = self.predict(torch.cat([latents, latents]), t, both).chunk(2)
            guided = unconditional + guidance_scale * (conditional - unconditional)
            latents = self.scheduler.step(guided, t, latents, **options).prev_sample
        return latents

    def encode(self, images):
        return torch.from_numpy(images[..., :2]).permute(0, 3, 1, 2).float() / 127.5 - 1

    def decode(self, latents):
        x = latents.clamp(0, 1).permute(0, 2, 3, 1).numpy()
        return (np.concatenate([x, x[..., :1]], -1) * 255).astype(np.uint8)

    def parts(self):
        return {"network": self.network}


def killed_at(call, function):
    """A function that is interrupted at its n-th call, as by a Ctrl-C, and works at all others; its calls are listed
    in `calls`."""

    def killed(*given, **options):
        killed.calls.append(given)
        if len(killed.calls) == call:
            raise KeyboardInterrupt
        return function(*given, **options)

    killed.calls = []
    return killed
