"""Trains the embedded model: `python -m memsub.testbed.train --out DIR`.

Stages, each resumable, and deterministic by seed up to the rounding of float sums: autoencoder, CLIP, UNet (with the
CLIP's text tower, which conditions it), the decoder once more, and the two scorers, which are trained on scenes of
their own. `DIR` is then an ordinary diffusers pipeline with a folder `scorers` in it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from ..files import save_json
from . import dataset, scenes, scorers
from .fitting import fit, generator
from .towers import CONTEXT, SceneCLIP, to_tensor

STEPS = {"autoencoder": 3000, "clip": 1500, "decoder": 1500, "copy": 1500, "alignment": 1800}
"""UNet steps follow from the corpus: the sum of all exposures over the batch size."""
BATCH = 64
NOISE_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
"""As SD1.4."""


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with merges for the words of this world: one token a word, any other text in pieces.

    The merges are counted here, not by the tokenizers library, whose trainer breaks ties at random: token ids must not
    change between the run that trains the CLIP and the one that resumes with the UNet.
    """
    spellings = [[*word[:-1], f"{word[-1]}</w>"] for word in sorted(set(scenes.WORDS))]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in spellings for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spellings = [_merged(word, best) for word in spellings]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *map("".join, merges)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT)


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Token ids, shape (prompts, 24), padded with the end token as Stable Diffusion does."""
    return tokenizer(prompts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids


def train_autoencoder(
    corpus: dataset.Corpus, folder: Path, seed: int, steps: int, device: str = "cpu"
) -> AutoencoderKL:
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

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(corpus.images), (32,), generator=rng, device=device).cpu().numpy()
        x = to_tensor(corpus.images[rows]).to(device)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(rng)).sample
        return _distortion(x, y) + 1e-3 * posterior.kl().mean() / posterior.mean[0].numel()

    return fit(vae, loss, steps=steps, lr=1e-3, seed=seed, folder=folder, name="autoencoder")


def _distortion(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """L1 on pixels and on their gradients plus MSE."""
    gradients = sum((x.diff(dim=d) - y.diff(dim=d)).abs().mean() for d in (2, 3))
    return (x - y).abs().mean() + 4 * F.mse_loss(y, x) + gradients


def sharpen_decoder(
    vae: AutoencoderKL, corpus: dataset.Corpus, folder: Path, seed: int, steps: int, device: str = "cpu"
) -> None:
    """Trains the decoder on, in place: the latents, and so the UNet, stay as they are; a step costs half as much."""

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(corpus.images), (32,), generator=rng, device=device).cpu().numpy()
        x = to_tensor(corpus.images[rows]).to(device)
        with torch.no_grad():
            z = vae.encode(x).latent_dist.sample(rng)
        return _distortion(x, vae.decode(z).sample)

    fit(vae.decoder, loss, steps=steps, lr=7e-4, seed=seed, folder=folder, name="decoder")


def train_clip(
    name: str,
    images: np.ndarray,
    contents: list[scenes.Content],
    tokenizer: CLIPTokenizer,
    folder: Path,
    seed: int,
    steps: int,
    device: str = "cpu",
    **widths: int,
) -> SceneCLIP:
    """Contrastive training in batches of 64 images; against each also seven captions that differ in one attribute."""
    torch.manual_seed(generator(seed, name).initial_seed())
    clip = SceneCLIP(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **widths).to(device)
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
        x = to_tensor(images[rows]).to(device)
        x = x + 0.1 * torch.rand((len(x), 1, 1, 1), generator=rng, device=device) * torch.randn(
            x.shape, generator=rng, device=device
        )
        image, text = clip.image_features(x), clip.text_features(tokenize(tokenizer, texts).to(device))
        logits = clip.log_scale.exp().clamp(max=100) * image @ text.T
        target = torch.arange(len(x), device=device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, : len(x)].T, target)) / 2

    return fit(clip, loss, steps=steps, lr=1e-3, seed=seed, folder=folder, name=name)


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Posterior means, shape (n, 4, 8, 8), in batches."""
    device = next(vae.parameters()).device
    batches = tqdm(range(0, len(images), 32), desc="encoding latents", mininterval=2)
    return torch.cat([vae.encode(to_tensor(images[i : i + 32]).to(device)).latent_dist.mean.cpu() for i in batches])


def make_unet() -> UNet2DConditionModel:
    """SD1.4's block types and module names, 16 FF layers, 8.0 M parameters."""
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 96, 96, 96),
        layers_per_block=2,
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def train_unet(
    corpus: dataset.Corpus,
    latents: torch.Tensor,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    folder: Path,
    seed: int,
    device: str = "cpu",
) -> UNet2DConditionModel:
    """Epsilon-prediction over the corpus' schedule, each row as often as its exposures say; `latents` are scaled.

    Trains `text_encoder` along, in place: an earlier version, whose tower stayed as its CLIP had left it, could not
    tell icons apart. Steps of much noise, where the layout is decided, hardly show in the plain epsilon loss of so
    small a picture. Hence v-prediction's weighting, 1 / alpha-bar (Salimans & Ho 2022), capped at 2.5: with a higher
    cap the middle, where shapes are decided, would be left too little. Timesteps are stratified over the batch.
    """
    torch.manual_seed(generator(seed, "unet").initial_seed())
    unet = make_unet().to(device)
    noise = DDPMScheduler(**NOISE_SCHEDULE)
    weights = (1 / noise.alphas_cumprod).clamp(max=2.5)
    weights = (weights / weights.mean()).to(device)
    order = corpus.schedule(seed)
    ids = tokenize(tokenizer, [*corpus.table["prompt"], ""])

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        rows = torch.from_numpy(order[step * BATCH : (step + 1) * BATCH])
        x = latents[rows].to(device, memory_format=torch.channels_last)
        dropped = torch.rand(len(rows), generator=rng, device=device).cpu() < 0.1  # for classifier-free guidance
        context = text_encoder(ids[torch.where(dropped, -1, rows)].to(device)).last_hidden_state
        t = torch.randperm(len(rows), generator=rng, device=device) + torch.rand(
            len(rows), generator=rng, device=device
        )
        t = (t * (1000 / len(rows))).long().clamp(max=999)
        eps = torch.randn(x.shape, generator=rng, device=device)
        error = (unet(noise.add_noise(x, eps, t), t, context, return_dict=False)[0] - eps).square().mean((1, 2, 3))
        return (weights[t] * error).mean()

    both = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    fit(both, loss, steps=len(order) // BATCH, lr=1e-3, seed=seed, folder=folder, name="unet")
    return unet


def text_tower(clip: SceneCLIP) -> CLIPTextModel:
    """The text tower without its projection, as a Stable Diffusion pipeline holds it."""
    model = CLIPTextModel(clip.text.config)
    state = clip.text.state_dict()
    wanted = model.state_dict().keys()
    model.load_state_dict({k: state[k if k in state else f"text_model.{k}"] for k in wanted})
    return model.eval().to(next(clip.parameters()).device)


def export(folder: Path, vae, text_encoder: CLIPTextModel, unet, tokenizer, scaling: float) -> None:
    """Writes an ordinary diffusers pipeline in fp16; the text tower's config says float32, so that is what loads."""
    vae.register_to_config(scaling_factor=scaling)
    scheduler = DDIMScheduler(**NOISE_SCHEDULE, steps_offset=1, set_alpha_to_one=False)
    parts = {"vae": vae, "text_encoder": text_encoder, "unet": unet}
    pipe = StableDiffusionPipeline(
        **{name: part.half() for name, part in parts.items()},
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    save_json(config | {"dtype": "float32"}, folder / "text_encoder" / "config.json")  # transformers would load halves


def train(
    out: Path,
    checkpoints: Path,
    seed: int = 0,
    device: str = "cpu",
    steps: dict[str, int] = STEPS,
    ordinary: int = dataset.ORDINARY,
    scorer_contents: int = scorers.CONTENTS,
) -> None:
    """All stages, then the export; smaller `steps` and sizes give a model for testing the code."""
    corpus = dataset.build(seed, ordinary)
    tokenizer = make_tokenizer()
    vae = train_autoencoder(corpus, checkpoints, seed, steps["autoencoder"], device)
    trained = corpus.trained
    contents = [corpus.scenes[i].content for i in trained]
    clip = train_clip("clip", corpus.images[trained], contents, tokenizer, checkpoints, seed, steps["clip"], device)
    latents = encode_latents(vae, corpus.images)
    scaling = 1 / latents[torch.from_numpy(trained)].std().item()
    text_encoder = text_tower(clip)
    unet = train_unet(corpus, latents * scaling, text_encoder, tokenizer, checkpoints, seed, device)
    sharpen_decoder(vae, corpus, checkpoints, seed, steps["decoder"], device)

    own = scorers.scorer_scenes(seed + 1, scorer_contents)
    images, contents = own.flat()
    returned = scorers.round_trip(vae, images)
    copy = scorers.train_copy_descriptor(own, returned, checkpoints, seed, steps["copy"], device)
    both = np.concatenate([images, returned])  # so that decoded pictures are no strangers to the alignment scorer
    alignment = train_clip(
        "alignment",
        both,
        contents * 2,
        tokenizer,
        checkpoints,
        seed,
        steps["alignment"],
        device,
        text_width=128,
        dim=160,
    )
    threshold, pairs, roc = scorers.copy_roc(copy, scorers.scorer_scenes(seed + 2, scorers.HELDOUT_CONTENTS), vae)

    export(out, vae, text_encoder, unet, tokenizer, scaling)
    copy.half().save_pretrained(out / "scorers" / "copy")
    alignment.half().save_pretrained(out / "scorers" / "alignment")
    save_json(scorers.describe_threshold(threshold, pairs, roc), out / "scorers" / "copy" / "threshold.json")
    dataset.write_ground_truth(corpus, out)
    logs = {
        name: json.loads((checkpoints / f"{name}.json").read_text())
        for name in ("autoencoder", "clip", "unet", "decoder", "copy", "alignment")
    }
    machine = {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads(), "seed": seed}
    save_json(machine | {"stages": logs}, out / "training.json")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m memsub.testbed.train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished pipeline")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        help="folder of unfinished work (default: beside --out); a second call resumes from it",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    checkpoints = args.checkpoints or args.out.with_name(args.out.name + ".checkpoints")
    train(args.out, checkpoints, args.seed, args.device)


if __name__ == "__main__":
    main()
