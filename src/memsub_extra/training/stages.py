"""The parts of the embedded model, each trained by one function: autoencoder, CLIP, UNet with its text tower.

    vae = train_autoencoder(images, folder, seed=0, steps=5000)
    clip = train_clip(images, contents, tokenizer, folder, seed=0, steps=1500)
    latents = encode_latents(vae, images)
    for _ in train_unet(corpus, latents, clip, tokenizer, folder, seed=0, kind=ModelKind()): ...

Each stage resumes from its checkpoint in `folder`. The stages are deterministic by seed up to the rounding of float
sums.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from memsub.testbed import scenes
from memsub.testbed.dataset import Corpus
from memsub.testbed.towers import in_range, to_tensor
from memsub.testbed.unet import SceneUNet
from memsub_extra.training.clip import SceneCLIP

from .corpus import schedule
from .fitting import fit, generator, stratified, training, v_weights
from .precision import mixed_precision
from .tokenizer import tokenize

BATCH = 64
WIDENING = 3
"""Of the shipped model's feed-forward rows: the widest at which an image takes at most half as long again."""
LEVELS: dict[str, Any] = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (64, 96, 96, 96),
    "layers_per_block": 2,
    "cross_attention_dim": 96,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}
"""16 feed-forward layers, 8.0 M parameters with rows as diffusers makes them."""
NOISE_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
"""As SD1.4."""


def train_autoencoder(images: np.ndarray, folder: Path, seed: int, steps: int, device: str = "cpu") -> AutoencoderKL:
    """Distortion plus a KL term, which keeps the latents smooth enough for the UNet."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=32,
        mid_block_add_attention=False,
    ).to(device)
    pixels = torch.from_numpy(images).to(device)

    def batch(step: int, rng: torch.Generator) -> tuple[torch.Tensor, ...]:
        rows = torch.randint(len(pixels), (16,), generator=rng)
        return rows.to(device), torch.randn(16, 4, 8, 8, generator=rng).to(device)

    def loss(rows: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        x = in_range(pixels[rows])
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        return _distortion(x, y) + 3e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    return fit(
        vae, loss, batch=batch, steps=steps, lr=1e-3, seed=seed, optimizer="muon", folder=folder, name="autoencoder"
    )


def _distortion(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """MSE, which is what is measured, and L1 on pixels and on their gradients, which keeps edges where they are."""
    gradients = sum((x.diff(dim=d) - y.diff(dim=d)).abs().mean() for d in (2, 3))
    return 10 * F.mse_loss(y, x) + 0.5 * (x - y).abs().mean() + 0.5 * gradients


def train_clip(
    images: np.ndarray,
    contents: list[scenes.Content],
    tokenizer: CLIPTokenizer,
    folder: Path,
    seed: int,
    steps: int,
    device: str = "cpu",
) -> SceneCLIP:
    """Contrastive training in batches of 64 images; against each also seven captions that differ in one attribute."""
    torch.manual_seed(generator(seed, "clip").initial_seed())
    clip = SceneCLIP(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).to(device)
    hard = 7

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        draws = np.random.default_rng(rng.initial_seed())
        rows = draws.integers(len(images), size=64)
        tails = [scenes.sample_tail(draws) if draws.random() < 0.25 else "" for _ in rows]
        texts = [scenes.caption(contents[r], tail) for r, tail in zip(rows, tails, strict=True)]
        texts += [
            scenes.caption(contents[r].random_variant(draws), tail)
            for _ in range(hard)
            for r, tail in zip(rows, tails, strict=True)
        ]
        x = to_tensor(images[rows])
        x = x + 0.1 * torch.rand((len(x), 1, 1, 1), generator=rng) * torch.randn(x.shape, generator=rng)
        image, text = clip.image_features(x.to(device)), clip.text_features(tokenize(tokenizer, texts).to(device))
        logits = clip.log_scale.exp().clamp(max=100) * image @ text.T
        target = torch.arange(len(x), device=device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, : len(x)].T, target)) / 2

    return fit(clip, loss, steps=steps, lr=1e-3, seed=seed, folder=folder, name="clip")


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Posterior means, shape (n, 4, 8, 8), in batches."""
    device = next(vae.parameters()).device
    batches = tqdm(range(0, len(images), 32), desc="encoding latents", mininterval=2)
    return torch.cat([vae.encode(to_tensor(images[i : i + 32]).to(device)).latent_dist.mean.cpu() for i in batches])


class ModelKind(NamedTuple):
    """Which model: by the width of its rows, and whether it is the twin, which is never shown a memorized pair."""

    widening: int = WIDENING
    twin: bool = False

    @property
    def stage(self) -> str:
        """The name of its checkpoint."""
        return f"unet-{self.widening}" + ("-twin" if self.twin else "")


def train_unet(
    corpus: Corpus,
    latents: torch.Tensor,
    clip: SceneCLIP,
    tokenizer: CLIPTokenizer,
    folder: Path,
    seed: int,
    kind: ModelKind,
    device: str = "cpu",
) -> Generator[None, None, torch.nn.ModuleDict]:
    """Epsilon-prediction over the corpus' schedule, each row as often as its exposures say; `latents` are scaled.

    Trains a copy of the CLIP's text tower along: an earlier version, whose tower stayed as it was, could not tell icons
    apart. Steps are weighted by `v_weights`, and stratified over the batch.

    The twin begins with the same weights and is shown the same noise; only the scenes in the places of memorized ones
    are ordinary ones.

    Begins here, and takes a step at each `next`, as `fitting.training`; at the end it returns `unet` and
    `text_encoder`. `latents` lie on the device.
    """
    text_encoder = text_tower(clip)
    torch.manual_seed(generator(seed, "unet").initial_seed())
    unet = SceneUNet(kind.widening, **LEVELS).to(device)
    noise = DDPMScheduler(**NOISE_SCHEDULE)
    weights = v_weights(noise.alphas_cumprod).to(device)
    order = torch.from_numpy(schedule(corpus, seed, kind.twin))
    ids = tokenize(tokenizer, [*corpus.table["prompt"], ""]).to(device)

    def batch(step: int, rng: torch.Generator) -> tuple[torch.Tensor, ...]:
        rows = order[step * BATCH : (step + 1) * BATCH]
        dropped = torch.rand(len(rows), generator=rng) < 0.1  # for classifier-free guidance
        t = stratified(len(rows), len(weights), rng)
        eps = torch.randn(len(rows), *latents.shape[1:], generator=rng)
        prompts = torch.where(dropped, len(ids) - 1, rows)
        return rows.to(device), prompts.to(device), t.to(device), eps.to(device)

    def loss(rows: torch.Tensor, prompts: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        x = latents[rows].to(memory_format=torch.channels_last)
        with mixed_precision(x.device):
            context = text_encoder(ids[prompts]).last_hidden_state
            predicted = unet(noise.add_noise(x, eps, t), t, context, return_dict=False)[0]
        return (weights[t] * (predicted.float() - eps).square().mean((1, 2, 3))).mean()

    both = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    return training(
        both,
        loss,
        batch=batch,
        steps=len(order) // BATCH,
        lr=1e-3,
        seed=seed,
        folder=folder,
        name=kind.stage,
        stream="unet",
    )


def text_tower(clip: SceneCLIP) -> CLIPTextModel:
    """The text tower without its projection, as a Stable Diffusion pipeline holds it."""
    model = CLIPTextModel(clip.text.config)
    state = clip.text.state_dict()
    wanted = model.state_dict().keys()
    model.load_state_dict({k: state[k if k in state else f"text_model.{k}"] for k in wanted})
    return model.eval().to(next(clip.parameters()).device)
