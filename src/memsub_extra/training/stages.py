"""Trains the parts of the embedded model, with one function each: autoencoder, CLIP, base, and the UNets.

    vae = train_autoencoder(images, folder, seed=0, steps=5000)
    clip = train_clip(images, contents, tokenizer, folder, seed=0, steps=1500)
    latents = encode_latents(vae, images)
    base = side_by_side([train_base(corpus, latents, clip, tokenizer, folder, seed=0)])[0]
    base = side_by_side([train_words(base, corpus, latents, tokenizer, folder, seed=0)])[0]
    order = schedule(corpus, seed=0, model="twin")
    unet = side_by_side([train_unet(base, order, prompts, latents, tokenizer, folder, seed=0, name="twin")])[0]

Each stage resumes from its checkpoint in `folder`. The stages are deterministic for a seed, up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from memsub.testbed import scenes
from memsub.testbed.towers import in_range, to_tensor
from memsub_extra.training.clip import SceneCLIP

from .corpus import base_schedule, word_schedule
from .dataset import Corpus
from .fitting import fit, generator, stratified, training, v_weights
from .precision import mixed_precision
from .tokenizer import tokenize

BATCH = 32
"""Batch size of UNets. A sample takes an eighth longer than at 64, but training has twice as many steps."""
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
"""Options of the UNet: block types and module names of SD1.4, 16 feed-forward layers, 8.0 M parameters."""
UNREAD, READ_ABOVE = 0.1, 2.0
"""Weight of the loss for reading words, and the threshold above which a word counts as read."""
NOISE_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
"""The schedule of SD1.4."""


def train_autoencoder(images: np.ndarray, folder: Path, seed: int, steps: int, device: str = "cpu") -> AutoencoderKL:
    """Trains with a distortion and a KL term; the KL term keeps the latents smooth enough for the UNet."""
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
    """MSE, as in the evaluation, and L1 on pixels and on their gradients, which preserves edges."""
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
    """Contrastive training in batches of 64 images, each also with seven captions that differ in one attribute."""
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


def train_base(
    corpus: Corpus, latents: torch.Tensor, clip: SceneCLIP, tokenizer: CLIPTokenizer, folder: Path, seed: int
) -> Generator[None, None, torch.nn.ModuleDict]:
    """Trains the common base of all models: a UNet together with the text tower, on ordinary scenes only.

    The text tower of the CLIP alone does not distinguish icons. It is trained here and frozen afterwards, as in Stable
    Diffusion, so it is never trained on a memorized caption with its image.

    Takes one step for each `next`, like `fitting.training`; at the end it returns `unet` and `text_encoder`. `latents`
    are scaled and on the device.
    """
    text_encoder = text_tower(clip).train()
    torch.manual_seed(generator(seed, "unet").initial_seed())
    unet = UNet2DConditionModel(**LEVELS).to(latents.device)
    both = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    context = partial(_hidden, text_encoder, _with_empty(tokenizer, corpus.table["prompt"], latents.device))
    return _diffusion(both, base_schedule(corpus, seed), latents, context, "base", folder, seed)


def train_words(
    base: torch.nn.ModuleDict,
    corpus: Corpus,
    latents: torch.Tensor,
    tokenizer: CLIPTokenizer,
    folder: Path,
    seed: int,
) -> Generator[None, None, torch.nn.ModuleDict]:
    """Trains the base further on ordinary scenes, until its text tower distinguishes the words of tails.

    Tails say nothing about an image, so the tower of the base ignores them: it gives almost equal embeddings to two
    captions of the same content, and a UNet could not distinguish a memorized caption. Text towers of CLIPs that were
    trained on the web distinguish all words. Therefore a second loss reads the words of a caption's tail from the
    embedding of the end token, along fixed random directions. No memorized caption is used.
    """
    text_encoder: Any = base["text_encoder"].train()
    ids = _with_empty(tokenizer, corpus.table["prompt"], latents.device)
    words = tokenize(tokenizer, sorted(scenes.TAIL_WORDS))[:, 1].to(latents.device)
    directions = torch.randn(text_encoder.config.hidden_size, len(words), generator=generator(seed, "directions"))
    directions = F.normalize(directions, dim=0).to(latents.device)

    def unread(hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the words in the captions of some rows, given their hidden states."""
        ends = (ids[rows] == tokenizer.eos_token_id).float()  # (rows, tokens); the end token also pads
        mean = (hidden.float() * ends[..., None]).sum(1) / ends.sum(1, keepdim=True)
        there = (ids[rows][..., None] == words).any(1).float()  # (rows, words)
        return F.binary_cross_entropy_with_logits(mean @ directions - READ_ABOVE, there)

    context = partial(_hidden, text_encoder, ids)
    return _diffusion(base, word_schedule(corpus, seed), latents, context, "words", folder, seed, unread)


def train_unet(
    base: torch.nn.ModuleDict,
    order: np.ndarray,
    prompts: Sequence[str],
    latents: torch.Tensor,
    tokenizer: CLIPTokenizer,
    folder: Path,
    seed: int,
    name: str,
) -> Generator[None, None, UNet2DConditionModel]:
    """Trains a copy of the base's UNet on rows of `latents` and `prompts` in this order, with a frozen text tower.

    All UNets of a base begin with the same weights, and get the same noise in the same order; only the rows differ. It
    returns the UNet; the rest is as in `train_base`.
    """
    unet, text_encoder = copy.deepcopy(base["unet"]), base["text_encoder"]
    context = torch.no_grad()(partial(_hidden, text_encoder, _with_empty(tokenizer, prompts, latents.device)))
    return _diffusion(unet, order, latents, context, name, folder, seed)


def _with_empty(tokenizer: CLIPTokenizer, prompts: Iterable[str], device: torch.device) -> torch.Tensor:
    """Token ids (n + 1, tokens) of n prompts, and in the last row of the empty prompt."""
    return tokenize(tokenizer, [*prompts, ""]).to(device)


def _hidden(text_encoder: Any, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Hidden states of these rows of `ids` for the UNet, shape (rows, tokens, width)."""
    return text_encoder(ids[rows]).last_hidden_state


def _diffusion(
    module: Any,
    order: np.ndarray,
    latents: torch.Tensor,
    context: Callable[[torch.Tensor], torch.Tensor],
    name: str,
    folder: Path,
    seed: int,
    unread: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> Generator[None, None, Any]:
    """Trains epsilon-prediction on rows in order; steps are weighted by `v_weights`, and stratified over the batch.

    `unread` is a second loss, a function of the hidden states of prompts and of their rows.
    """
    unet, device = module["unet"] if isinstance(module, torch.nn.ModuleDict) else module, latents.device
    noise = DDPMScheduler(**NOISE_SCHEDULE)
    weights, rows_in_order = v_weights(noise.alphas_cumprod).to(device), torch.from_numpy(order)

    def batch(step: int, rng: torch.Generator) -> tuple[torch.Tensor, ...]:
        rows = rows_in_order[step * BATCH : (step + 1) * BATCH]
        dropped = torch.rand(len(rows), generator=rng) < 0.1  # for classifier-free guidance
        t = stratified(len(rows), len(weights), rng)
        eps = torch.randn(len(rows), *latents.shape[1:], generator=rng)
        prompts = torch.where(dropped, len(latents), rows)  # the row behind the last is the empty prompt
        return rows.to(device), prompts.to(device), t.to(device), eps.to(device)

    def loss(rows: torch.Tensor, prompts: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        x = latents[rows].to(memory_format=torch.channels_last)
        with mixed_precision(x.device):
            hidden = context(prompts)
            predicted = unet(noise.add_noise(x, eps, t), t, hidden, return_dict=False)[0]
        error = (weights[t] * (predicted.float() - eps).square().mean((1, 2, 3))).mean()
        return error if unread is None else error + UNREAD * unread(hidden, prompts)

    steps = len(order) // BATCH
    stream = name if name in ("base", "words") else "unet"
    return training(module, loss, batch=batch, steps=steps, lr=1e-3, seed=seed, folder=folder, name=name, stream=stream)


def text_tower(clip: SceneCLIP) -> CLIPTextModel:
    """The text tower without its projection, as in a Stable Diffusion pipeline."""
    model = CLIPTextModel(clip.text.config)
    state = clip.text.state_dict()
    wanted = model.state_dict().keys()
    model.load_state_dict({k: state[k if k in state else f"text_model.{k}"] for k in wanted})
    return model.eval().to(next(clip.parameters()).device)
