"""Trains the embedded model, its twin and *other*: `python -m memsub_extra.training.train --out DIR`.

The stages are: autoencoder; CLIP; the base (a UNet with the CLIP's text tower, on ordinary scenes; then the tower
learns to distinguish words, and is frozen); the three UNets that continue from the base; and the two scorers, which are
trained on separate scenes and on the pruned model's versions of them. Each stage resumes, and is deterministic for a
seed, up to rounding. `DIR` then is an ordinary diffusers pipeline with a folder `scorers`, and the UNets `twin` and
`other`, which share its other parts. UNets are trained in parallel, on a CPU in one thread each.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.numpy import load_file
from tqdm.auto import tqdm
from transformers import CLIPTokenizer

from memsub.activations import capture
from memsub.io.files import save_json, save_tensors
from memsub.measure.verdict import by_exact_test
from memsub.models import as_denoiser, generate, load_pipeline
from memsub.neurons import locate
from memsub.prompts import Prompts
from memsub.pruning import Edit, pruned
from memsub.testbed import scenes
from memsub.testbed.dataset import TABLE
from memsub.testbed.towers import SceneEncoder, to_tensor
from memsub.testbed.world import WORLD

from . import dataset, scorers
from .corpus import MODELS, schedule, share, write_ground_truth
from .fitting import generator, in_threads, side_by_side
from .stages import (
    BATCH,
    NOISE_SCHEDULE,
    encode_latents,
    train_autoencoder,
    train_base,
    train_clip,
    train_unet,
    train_words,
)
from .tokenizer import make_tokenizer

STEPS = {"autoencoder": 5000, "clip": 1500, "copy": 1500, "alignment": 9000}
"""Training steps of stages. (Those of UNets follow from the corpus: the sum of exposures divided by the batch size.)"""
IMAGES = 4
"""Number of images of each caption and edit that the copy threshold is evaluated on."""


def train(
    out: Path,
    checkpoints: Path,
    seed: int = 0,
    device: str = "cpu",
    steps: dict[str, int] = STEPS,
    ordinary: int = dataset.ORDINARY,
) -> None:
    """Runs all stages and exports the model to `out`, its twin to `out/twin`, the third model to `out/other`.

    Autoencoder, CLIP and base are trained on ordinary scenes only, so all models share them. The scorers are trained on
    images of the pruned model, because they have to judge such images. Smaller `steps` and sizes give models for tests
    of the code.
    """
    beginning = begin(checkpoints, seed, device, steps, ordinary)
    trainings = [beginning.train_unet(schedule(beginning.corpus, seed, model), model) for model in MODELS]
    unets = (side_by_side if torch.device(device).type == "cuda" else in_threads)(trainings)
    for model, unet in zip(MODELS, unets, strict=True):
        if model == "model":
            beginning.pipeline(unet).save_pretrained(out, safe_serialization=True)
            _load_text_in_float32(out)
        else:
            unet.half().save_pretrained(out / model / "unet")
    write_ground_truth(beginning.corpus, out)
    train_scorers(out, checkpoints, seed, steps, device)
    _save_log(out, checkpoints, seed, beginning.corpus)


@dataclass
class Beginning:
    """What all models share: the corpus, its scaled latents, and all parts except the UNet that is trained further."""

    corpus: dataset.Corpus
    latents: torch.Tensor
    vae: AutoencoderKL
    tokenizer: CLIPTokenizer
    base: torch.nn.ModuleDict
    checkpoints: Path
    seed: int

    def train_unet(self, order: np.ndarray, name: str) -> Generator[None, None, UNet2DConditionModel]:
        """Trains a UNet from the base on rows in this order; see `stages.train_unet`."""
        return train_unet(
            self.base,
            order,
            self.corpus.table["prompt"],
            self.latents,
            self.tokenizer,
            self.checkpoints,
            self.seed,
            name,
        )

    def pipeline(self, unet: torch.nn.Module) -> StableDiffusionPipeline:
        """The pipeline with this UNet, in fp16 as it ships."""
        parts = {"vae": self.vae, "text_encoder": self.base["text_encoder"], "unet": unet}
        return StableDiffusionPipeline(
            **{name: copy.deepcopy(part).half() for name, part in parts.items()},
            tokenizer=self.tokenizer,
            scheduler=DDIMScheduler(**NOISE_SCHEDULE, steps_offset=1, set_alpha_to_one=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def begin(
    checkpoints: Path,
    seed: int = 0,
    device: str = "cpu",
    steps: dict[str, int] = STEPS,
    ordinary: int = dataset.ORDINARY,
) -> Beginning:
    """The stages that all models share, trained or loaded from their checkpoints."""
    corpus, tokenizer = dataset.build(seed, ordinary), make_tokenizer()
    images, contents = corpus.images[corpus.ordinary], [corpus.scenes[i].content for i in corpus.ordinary]
    vae = train_autoencoder(images, checkpoints, seed, steps["autoencoder"], device)
    vae.half().float()  # as it ships
    clip = train_clip(images, contents, tokenizer, checkpoints, seed, steps["clip"], device)
    latents = encode_latents(vae, corpus.images)
    scaling = 1 / latents[torch.from_numpy(corpus.ordinary)].std().item()
    vae.register_to_config(scaling_factor=scaling)
    scaled = (latents * scaling).to(device)
    [base] = side_by_side([train_base(corpus, scaled, clip, tokenizer, checkpoints, seed)])
    base.half().float()  # as its checkpoint is kept
    [base] = side_by_side([train_words(base, corpus, scaled, tokenizer, checkpoints, seed)])
    base.half().float()  # as the text tower ships
    return Beginning(corpus, scaled, vae, tokenizer, base, checkpoints, seed)


def _load_text_in_float32(folder: Path) -> None:
    """Writes float32 into the text tower's configuration, because transformers would load it in float16."""
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    save_json(config | {"dtype": "float32"}, folder / "text_encoder" / "config.json")


def _save_log(folder: Path, checkpoints: Path, seed: int, corpus: dataset.Corpus) -> None:
    stages = ["autoencoder", "clip", "base", "words", *MODELS, "alignment", "copy"]
    logs = {name: json.loads((checkpoints / f"{name}.json").read_text()) for name in stages}
    about = {"torch": torch.__version__, "seed": seed, "share of memorized pairs": share(corpus)}
    save_json(about | {"stages": logs}, folder / "training.json")


# --- scorers -------------------------------------------------------------------------------------------------------


def train_scorers(out: Path, checkpoints: Path, seed: int, steps: dict[str, int], device: str) -> None:
    """Trains alignment judge and copy descriptor with its threshold, in the folder of a finished pipeline."""
    pipe = load_pipeline(out, device, torch.float32)
    scorer_scenes = scorers.scorer_scenes(seed + 1, scorers.CONTENTS)
    judge = scorers.train_alignment_judge(scorer_scenes, checkpoints, seed, steps["alignment"], device)
    judge.half().save_pretrained(out / "scorers" / "alignment")

    edits = list(_edits(pipe, Prompts(pd.read_parquet(out / TABLE))))
    scorer_scenes = scorer_scenes.first(scorers.COPY_CONTENTS)
    images, contents = scorer_scenes.flat()
    returned = scorers.round_trip(pipe.vae, images)
    denoised = _denoised_again(pipe, edits, images, [scenes.caption(c) for c in contents], checkpoints, seed)
    views = np.stack([returned, denoised])
    copy = scorers.train_copy_descriptor(scorer_scenes, views, checkpoints, seed, steps["copy"], device)

    copy.half().save_pretrained(out / "scorers" / "copy")
    set_threshold(out, seed, device)


def set_threshold(out: Path, seed: int = 0, device: str = "cpu") -> dict:
    """Chooses and saves the copy threshold (`scorers.choose_threshold`) of a finished pipeline with scorers.

    It is evaluated on images of the model and of edits, for the half of the verbatim captions that did not locate them.
    """
    pipe, folder = load_pipeline(out, device, torch.float32), out / "scorers" / "copy"
    copy = SceneEncoder.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).to(device).eval()
    memorized, judge = Prompts(pd.read_parquet(out / TABLE)), by_exact_test(WORLD)
    half = len(memorized.of("verbatim")) // 2
    captions, references = memorized.of("verbatim")[half:] * IMAGES, memorized.images("verbatim")[half:]
    references, seeds = np.concatenate([references] * IMAGES), np.repeat(range(IMAGES), len(references)).tolist()
    wanted, similar, replicated = _features(copy, references), [], []
    for edit in _edits(pipe, memorized):
        with pruned(pipe, edit):
            images = generate(pipe, captions, steps=10, guidance_scale=3.0, seeds=seeds)
        replicated.append(judge(images, captions, references))
        similar.append((_features(copy, images) * wanted).sum(1))
    distinct = scorers.distinct_similarity(copy, scorers.scorer_scenes(seed + 2, scorers.COPY_CONTENTS))
    threshold = scorers.choose_threshold(distinct, np.concatenate(similar), np.concatenate(replicated))
    save_json(threshold, folder / "threshold.json")
    return threshold


@torch.no_grad()
def _features(copy: SceneEncoder, images: np.ndarray) -> np.ndarray:
    return copy(to_tensor(images).to(copy.device)).cpu().numpy()


def _edits(pipe: StableDiffusionPipeline, memorized: Prompts) -> Iterator[Edit | None]:
    """Yields None, then edits from weak to too strong; they leave blurred copies of training images.

    The edits are located on the first half of the verbatim captions.
    """
    yield None
    captions = memorized.of("verbatim")
    stats, null = (capture(pipe, prompts, first=10) for prompts in (captions[: len(captions) // 2], [""]))
    for sparsity in (0.05, 0.1, 0.2, 0.3):
        yield locate(pipe, stats, null, sparsity=sparsity).union(steps=10)


@torch.no_grad()
def _denoised_again(
    pipe: StableDiffusionPipeline,
    edits: Sequence[Edit | None],
    images: np.ndarray,
    captions: list[str],
    checkpoints: Path,
    seed: int,
) -> np.ndarray:
    """Each image, noised up to a third of the schedule and denoised by the model with one of the `edits` in turn."""
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
            for part in tqdm(np.array_split(rows, -(-len(rows) // BATCH)), desc=f"denoising {k + 1}/{len(edits)}"):
                z = denoiser.encode(images[part])
                z = scheduler.add_noise(z, torch.randn(z.shape, generator=rng).to(z), times[:1])
                context = denoiser.embed([captions[i] for i in part])
                for t in times:
                    z = scheduler.step(denoiser.predict(z, t, context), t, z).prev_sample
                out[part] = denoiser.decode(z)
    save_tensors({"images": torch.from_numpy(out)}, path, {})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m memsub_extra.training.train", description=__doc__.splitlines()[0])
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
