"""Trains the embedded model and its twin: `python -m memsub.testbed.train --out DIR`; `--widths` others beside them.

Stages, each resumable, and deterministic by seed up to the rounding of float sums: autoencoder, CLIP, UNet (with the
CLIP's text tower, which conditions it), and the two scorers, which are trained on scenes of their own and on what the
pruned model makes of them. `DIR` is then an ordinary diffusers pipeline with a folder `scorers` in it, and one with the
twin. UNets are trained side by side, on a CPU in a thread each.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from safetensors.numpy import load_file
from tokenizers import pre_tokenizers
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from ..activations import capture
from ..denoiser import as_denoiser
from ..exact import LEVEL, exact_p
from ..files import save_json, save_tensors
from ..fitting import fit, generator, in_threads, side_by_side, stratified, training, v_weights
from ..generation import generate
from ..models import load_pipeline
from ..neurons import locate
from ..precision import mixed_precision
from ..prompts import Prompts
from ..pruning import Edit, pruned
from . import dataset, scenes, scorers
from .towers import CONTEXT, SceneCLIP, SceneEncoder, in_range, to_tensor
from .unet import LEVELS, SceneUNet

STEPS = {"autoencoder": 5000, "clip": 1500, "copy": 1500, "alignment": 9000}
"""UNet steps follow from the corpus: the sum of all exposures over the batch size."""
BATCH = 64
DRAWS = 4
"""Of each caption by each edit, on which the copy threshold is judged."""
WIDENING = 3
"""Of the shipped model's feed-forward rows: the widest at which a picture takes at most half as long again."""
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

    pictures = torch.from_numpy(images).to(device)

    def batch(step: int, rng: torch.Generator) -> tuple[torch.Tensor, ...]:
        rows = torch.randint(len(pictures), (16,), generator=rng)
        return rows.to(device), torch.randn(16, 4, 8, 8, generator=rng).to(device)

    def loss(rows: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        x = in_range(pictures[rows])
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        return _distortion(x, y) + 3e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    where: dict[str, Any] = {"folder": folder, "name": "autoencoder"}
    return fit(vae, loss, batch=batch, steps=steps, lr=1e-3, seed=seed, optimizer="muon", **where)


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


class Kind(NamedTuple):
    """Which model: by the width of its rows, and whether it is the twin, which never sees a memorized pair."""

    widening: int = WIDENING
    twin: bool = False

    @property
    def stage(self) -> str:
        """The name of its checkpoint."""
        return f"unet-{self.widening}" + ("-twin" if self.twin else "")


def train_unet(
    corpus: dataset.Corpus,
    latents: torch.Tensor,
    clip: SceneCLIP,
    tokenizer: CLIPTokenizer,
    folder: Path,
    seed: int,
    kind: Kind,
    device: str = "cpu",
) -> Generator[None, None, torch.nn.ModuleDict]:
    """Epsilon-prediction over the corpus' schedule, each row as often as its exposures say; `latents` are scaled.

    Trains a copy of the CLIP's text tower along: an earlier version, whose tower stayed as it was, could not tell icons
    apart. Steps are weighted by `v_weights`, and stratified over the batch.

    The twin begins with the same weights and sees the same noise; only the scenes in the places of memorized ones are
    ordinary ones.

    Begun here, a step at each `next`, as `fitting.training`; at the end `unet` and `text_encoder`. `latents` lie on the
    device.
    """
    text_encoder = text_tower(clip)
    torch.manual_seed(generator(seed, "unet").initial_seed())
    unet = SceneUNet(kind.widening, **LEVELS).to(device)
    noise = DDPMScheduler(**NOISE_SCHEDULE)
    weights = v_weights(noise.alphas_cumprod).to(device)
    order = torch.from_numpy(corpus.schedule(seed, kind.twin))
    ids = tokenize(tokenizer, [*corpus.table["prompt"], ""]).to(device)

    def batch(step: int, rng: torch.Generator) -> tuple[torch.Tensor, ...]:
        rows = order[step * BATCH : (step + 1) * BATCH]
        dropped = torch.rand(len(rows), generator=rng) < 0.1  # for classifier-free guidance
        t = stratified(len(rows), len(weights), rng)
        eps = torch.randn(len(rows), *latents.shape[1:], generator=rng)
        return rows.to(device), torch.where(dropped, len(ids) - 1, rows).to(device), t.to(device), eps.to(device)

    def loss(rows: torch.Tensor, told: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        x = latents[rows].to(memory_format=torch.channels_last)
        with mixed_precision(x.device):
            context = text_encoder(ids[told]).last_hidden_state
            found = unet(noise.add_noise(x, eps, t), t, context, return_dict=False)[0]
        return (weights[t] * (found.float() - eps).square().mean((1, 2, 3))).mean()

    both = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    where: dict[str, Any] = {"folder": folder, "name": kind.stage, "stream": "unet"}
    return training(both, loss, batch=batch, steps=len(order) // BATCH, lr=1e-3, seed=seed, **where)


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
    widths: Sequence[int] = (),
    steps: dict[str, int] = STEPS,
    ordinary: int = dataset.ORDINARY,
) -> None:
    """All stages, and the exports: the model to `out`, its twin to `out/twin`, other `widths` to `out/width-<n>`.

    Autoencoder and CLIP see ordinary scenes only, so that all models share them. The scorers are trained with the model
    itself, whose pruned draws they must tell; the others have none. Smaller `steps` and sizes give models for testing
    the code.

    Raises:
        ValueError: a width is named twice, is the model's own, or below 1.
    """
    kinds = {out: Kind(), out / "twin": Kind(twin=True)} | _other_widths(out, widths)
    corpus = dataset.build(seed, ordinary)
    vae = train_autoencoder(corpus.images[corpus.ordinary], checkpoints, seed, steps["autoencoder"], device)
    vae.half().float()  # as it ships
    _train_pipelines(kinds, corpus, vae, checkpoints, seed, device, steps["clip"], ["autoencoder"])
    dataset.write_ground_truth(corpus, out)
    train_scorers(out, checkpoints, seed, steps, device)
    _save_log(out, checkpoints, seed, Kind(), ["autoencoder", "clip", Kind().stage, "alignment", "copy"])


def train_widths(out: Path, checkpoints: Path, widths: Sequence[int], seed: int = 0, device: str = "cpu") -> list[Path]:
    """Models of other `widths` beside the one that ships, with its autoencoder; returns their folders in `out`.

    Raises:
        ValueError: as `train`.
    """
    kinds = _other_widths(out, widths)
    vae = load_pipeline("tiny", device, torch.float32).vae
    _train_pipelines(kinds, dataset.build(seed), vae, checkpoints, seed, device, STEPS["clip"], [])
    return list(kinds)


def _other_widths(out: Path, widths: Sequence[int]) -> dict[Path, Kind]:
    if len({WIDENING, *widths}) <= len(widths) or min(widths, default=1) < 1:
        raise ValueError(
            f"widths {list(widths)}: name each once, from 1 on, and not {WIDENING}, which is the model's own."
        )
    return {out / f"width-{n}": Kind(n) for n in widths}


def _train_pipelines(
    kinds: dict[Path, Kind],
    corpus: dataset.Corpus,
    vae: AutoencoderKL,
    checkpoints: Path,
    seed: int,
    device: str,
    clip_steps: int,
    stages: list[str],
) -> None:
    """The CLIP and a UNet of each kind over an autoencoder, which the `stages` made; each exported to its folder."""
    tokenizer, images = make_tokenizer(), corpus.images[corpus.ordinary]
    contents = [corpus.scenes[i].content for i in corpus.ordinary]
    clip = train_clip(images, contents, tokenizer, checkpoints, seed, clip_steps, device)
    latents = encode_latents(vae, corpus.images)
    scaling = 1 / latents[torch.from_numpy(corpus.ordinary)].std().item()
    scaled = (latents * scaling).to(device)
    trainings = [train_unet(corpus, scaled, clip, tokenizer, checkpoints, seed, k, device) for k in kinds.values()]
    trained = (side_by_side if torch.device(device).type == "cuda" else in_threads)(trainings)
    for (folder, kind), both in zip(kinds.items(), trained, strict=True):
        export(folder, vae, both["text_encoder"], both["unet"], tokenizer, scaling)
        _save_log(folder, checkpoints, seed, kind, [*stages, "clip", kind.stage])


def _save_log(folder: Path, checkpoints: Path, seed: int, kind: Kind, stages: list[str]) -> None:
    logs = {name: json.loads((checkpoints / f"{name}.json").read_text()) for name in stages}
    about = {"torch": torch.__version__, "seed": seed} | kind._asdict()
    save_json(about | {"stages": logs}, folder / "training.json")


def train_scorers(out: Path, checkpoints: Path, seed: int, steps: dict[str, int], device: str) -> None:
    """Alignment judge, copy descriptor and its threshold, into the folder of a finished pipeline."""
    pipe = load_pipeline(out, device, torch.float32)
    own = scorers.scorer_scenes(seed + 1, scorers.CONTENTS)
    judge = scorers.train_alignment_judge(own, checkpoints, seed, steps["alignment"], device)
    judge.half().save_pretrained(out / "scorers" / "alignment")

    edits = list(_edits(pipe, Prompts(pd.read_parquet(out / dataset.TABLE))))
    own = own.first(scorers.COPY_CONTENTS)
    images, contents = own.flat()
    returned = scorers.round_trip(pipe.vae, images)
    drawn = _drawn_over(pipe, edits, images, [scenes.caption(c) for c in contents], checkpoints, seed)
    copy = scorers.train_copy_descriptor(own, np.stack([returned, drawn]), checkpoints, seed, steps["copy"], device)

    copy.half().save_pretrained(out / "scorers" / "copy")
    set_threshold(out, seed, device)


def set_threshold(out: Path, seed: int = 0, device: str = "cpu") -> dict:
    """Chooses the copy threshold (`scorers.choose_threshold`) of a finished pipeline with its scorers, and saves it.

    Judged on draws of the model and of edits, from the half of the verbatim captions that did not locate them.
    """
    pipe, folder = load_pipeline(out, device, torch.float32), out / "scorers" / "copy"
    copy = SceneEncoder.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).to(device).eval()
    memorized = Prompts(pd.read_parquet(out / dataset.TABLE))
    half = len(memorized.of("verbatim")) // 2
    captions, references = memorized.of("verbatim")[half:] * DRAWS, memorized.images("verbatim")[half:]
    references, seeds = np.concatenate([references] * DRAWS), np.repeat(range(DRAWS), len(references)).tolist()
    wanted, similar, replicated = _features(copy, references), [], []
    for edit in _edits(pipe, memorized):
        with pruned(pipe, edit):
            drawn = generate(pipe, captions, steps=10, guidance_scale=3.0, seeds=seeds)
        replicated.append(exact_p(drawn, captions, references) <= LEVEL)
        similar.append((_features(copy, drawn) * wanted).sum(1))
    distinct = scorers.distinct_similarity(copy, scorers.scorer_scenes(seed + 2, scorers.COPY_CONTENTS))
    threshold = scorers.choose_threshold(distinct, np.concatenate(similar), np.concatenate(replicated))
    save_json(threshold, folder / "threshold.json")
    return threshold


@torch.no_grad()
def _features(copy: SceneEncoder, images: np.ndarray) -> np.ndarray:
    return copy(to_tensor(images).to(copy.device)).cpu().numpy()


def _edits(pipe: StableDiffusionPipeline, memorized: Prompts) -> Iterator[Edit | None]:
    """None, then METHOD's edit, from hardly any effect to too much: what it leaves of a picture is a soft copy.

    Located on the first half of the verbatim captions.
    """
    yield None
    captions = memorized.of("verbatim")
    stats, null = (capture(pipe, some, first=10) for some in (captions[: len(captions) // 2], [""]))
    for sparsity in (0.05, 0.1, 0.2, 0.3):
        yield locate(pipe, stats, null, sparsity=sparsity).union(steps=10)


@torch.no_grad()
def _drawn_over(
    pipe: StableDiffusionPipeline,
    edits: Sequence[Edit | None],
    images: np.ndarray,
    captions: list[str],
    checkpoints: Path,
    seed: int,
) -> np.ndarray:
    """Each image noised up to a third of the schedule and denoised again, in turn by one of the edited models."""
    path = checkpoints / "drawn-over.safetensors"
    if path.is_file():
        return load_file(path)["images"]
    denoiser, out = as_denoiser(pipe), np.empty_like(images)
    scheduler, rng = DDIMScheduler.from_config(pipe.scheduler.config), generator(seed, "drawn over")
    scheduler.set_timesteps(10)
    times = scheduler.timesteps[-4:]
    for k, edit in enumerate(edits):
        rows = np.arange(k, len(images), len(edits))
        with pruned(pipe, edit):
            for chosen in tqdm(np.array_split(rows, -(-len(rows) // BATCH)), desc=f"drawing over {k + 1}/{len(edits)}"):
                z = denoiser.encode(images[chosen])
                z = scheduler.add_noise(z, torch.randn(z.shape, generator=rng).to(z), times[:1])
                context = denoiser.embed([captions[i] for i in chosen])
                for t in times:
                    z = scheduler.step(denoiser.predict(z, t, context), t, z).prev_sample
                out[chosen] = denoiser.decode(z)
    save_tensors({"images": torch.from_numpy(out)}, path, {})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m memsub.testbed.train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished pipeline")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        help="folder of unfinished work (default: beside --out); a second call resumes from it",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--widths", type=int, nargs="*", default=[], help="of other models: feed-forward rows so wide")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    checkpoints = args.checkpoints or args.out.with_name(args.out.name + ".checkpoints")
    train(args.out, checkpoints, args.seed, args.device, args.widths)


if __name__ == "__main__":
    main()
