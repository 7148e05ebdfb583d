"""Fine-tunes a model on canaries among ordinary pairs, and a twin on ordinary pairs in place of the canaries.

    cost = cost_of(pipe, manifest, Recipe())            # steps, samples, bytes, without any computation
    train("sd14", manifest, Path("runs/canaries"), Recipe(way="lora"))

The recipe is that of diffusers' examples/text_to_image: denoising loss at one random step a sample, AdamW, gradients
clipped to norm 1. It trains all weights of the network at a constant rate of 1e-5, or a LoRA (peft) of its attention at
1e-4 with cosine decay, which is fused at the end. Autoencoder and text encoder are fixed. Two things differ from
diffusers: latents are the posterior means of the autoencoder, and all randomness is a function of seed and step.

The training loop is `memsub_extra.training.fitting`, as for removals and for the embedded model. In contrast to that of
accelerate, its checkpoints are safetensors and not pickles, a killed run ends with the same weights as one that was not
killed, and the twin gets the same noise in the same order. It uses one device; several processes are an error.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from memsub.io.distributed import processes
from memsub.io.files import load_json, save_json
from memsub.models import Conditioning, Denoiser, Pipeline, as_denoiser, find_model, fingerprint, load_pipeline
from memsub.models.worlds import FILE as WORLD_FILE
from memsub.testbed.scorers import scorers_of
from memsub_extra.files import check_writable
from memsub_extra.run.specs import Part

from ..training.fitting import fit, generator
from ..training.precision import mixed_precision
from ..unlearning.losses import denoising_loss
from .parameters import save_parameters
from .photographs import Photograph, load
from .planting import FILE, Manifest, describe
from .world import Canaries

TWIN = "twin"
"""Name of the twin's folder in the model's folder."""
ABOUT = "training.json"
CACHED_BYTES = 1e9
"""Limit of cached latents: all of a small set, or those of the canaries in a large set."""
CHECKPOINT_SECONDS = 900
"""Seconds between checkpoints. One of all weights of SD1.4 has 10 GB."""


class Recipe(Part):
    """The options of fine-tuning; the defaults are those of the example of diffusers."""

    way: Literal["full", "lora"] = Field("full", description="all weights of the network, or a LoRA of its attention")
    lr: float | None = Field(None, gt=0, description="learning rate (default: 1e-5, of a LoRA 1e-4)")
    batch_size: int = Field(8, ge=1, description="samples a step")
    warmup: int = Field(1, ge=1, description="steps until the learning rate is reached")
    rank: int = Field(4, ge=1, description="of a LoRA")
    targets: tuple[str, ...] = Field(
        ("to_k", "to_q", "to_v", "to_out.0"), min_length=1, description="layers with a LoRA, by the ends of their names"
    )
    seed: int = Field(0, ge=0, description="of order, noise and a LoRA's beginning")

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.lr or {"full": 1e-5, "lora": 1e-4}[self.way]


PUBLISHED: dict[str, Any] = {"canaries": 200, "repeats": 200, "ordinary_samples": 3}
"""The paper's setting for SD1.4, as options of `plant`: 200 pairs, each 200 times, and three times as many ordinary
samples. With the default batches of 8 these are the paper's 20,000 steps."""


@dataclass(frozen=True)
class Cost:
    """The cost of a training.

    Attributes:
        steps, samples: those of one model.
        trained: number of trained weights.
        gigabytes: memory of weights, gradients and optimizer state of one model, without activations.
        checkpoint: gigabytes of a checkpoint.
        saved: gigabytes of a finished model.
    """

    steps: int
    samples: int
    trained: int
    gigabytes: float
    checkpoint: float
    saved: float

    def __str__(self) -> str:
        return (
            f"{self.steps:,} steps, {self.samples:,} samples a model; {self.trained / 1e6:,.2f} million weights are "
            f"trained; {self.gigabytes:.1f} GB of memory for weights, gradients and optimizer, and activations on top; "
            f"on disk {self.checkpoint:.1f} GB for a checkpoint, {self.saved:.1f} GB for each model"
        )


def cost_of(pipe: Pipeline, manifest: Manifest, recipe: Recipe) -> Cost:
    """Counts the cost of one training; raises ValueError for a LoRA without peft."""
    denoiser = as_denoiser(pipe)
    every = sum(p.numel() for part in denoiser.parts().values() for p in part.parameters())
    if recipe.way == "full":
        trained = sum(p.numel() for p in denoiser.network.parameters())
    else:
        with _adapted(denoiser.network, recipe, fuse=False) as module:
            trained = sum(p.numel() for p in module.parameters())
        every += trained
    samples = len(schedule(manifest, recipe))
    # In float32: every weight, and for trained weights a gradient and two moments. A checkpoint has three of these.
    return Cost(
        samples // recipe.batch_size,
        samples,
        trained,
        4 * (every + 3 * trained) / 1e9,
        12 * trained / 1e9,
        4 * every / 1e9,
    )


def schedule(manifest: Manifest, recipe: Recipe, twin: bool = False) -> np.ndarray:
    """The order of training samples, in whole batches. Numbers of ordinary pairs follow those of the canaries.

    Ordinary pairs occur equally often, up to one. The order of the twin has an ordinary pair in each place of a canary.
    """
    canaries, n = len(manifest.canaries), len(manifest.ordinary)
    planted, ordinary = manifest.samples
    ordinary += -(planted + ordinary) % recipe.batch_size
    rng = np.random.default_rng([manifest.seed, recipe.seed, 1])
    passes = -(-(ordinary + planted) // n)
    mixed = np.concatenate([rng.permutation(n) for _ in range(passes)]) + canaries
    order = np.concatenate([np.tile(np.arange(canaries), manifest.repeats), mixed[:ordinary]])
    order = order[rng.permutation(len(order))]
    if twin:
        order[order < canaries] = mixed[ordinary : ordinary + planted]
    return order


def train(
    base: str,
    manifest: Manifest,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    twin: bool = True,
    device: str | torch.device | None = None,
    only_cost: bool = False,
) -> Cost:
    """Fine-tunes a model on the canaries of a manifest, and its twin; writes ordinary pipelines to `out`, `out/twin`.

    It prints the cost before it begins. A stopped training resumes at its last checkpoint; a finished model is not
    trained again.

    Args:
        base: a model as for `memsub.load_pipeline`. It is loaded in float32.
        twin: also train the twin.
        only_cost: print the cost, and train nothing.

    Raises:
        ValueError: the images of the manifest and of the model differ in size, `out` holds another model, or a LoRA is
            requested without peft.
        OSError: the disk has too little space.
    """
    out, recipe = Path(out), recipe or Recipe()
    _check_alone()
    info = find_model(base)
    pipe = load_pipeline(base, device, torch.float32)
    denoiser = as_denoiser(pipe)
    _check_size(denoiser, manifest)
    cost = cost_of(pipe, manifest, recipe)
    print(f"{describe(manifest)}\n{'model and twin: ' if twin else ''}{cost}", flush=True)
    if only_cost:
        return cost
    content = {"base": fingerprint(pipe), "manifest": manifest.fingerprint, **recipe.model_dump(mode="json")}
    folders = {out: False} | ({out / TWIN: True} if twin else {})
    missing = {folder: is_twin for folder, is_twin in folders.items() if not _finished(folder, content)}
    check_writable(out / ABOUT, int(1e9 * (cost.checkpoint + len(missing) * cost.saved)))
    network = denoiser.network
    begin = {name: weight.detach().cpu().clone() for name, weight in network.state_dict().items()}
    for folder, is_twin in missing.items():
        network.load_state_dict(begin)
        of_this = json.dumps(content | {"twin": is_twin})
        unfinished = out / "checkpoints" / hashlib.sha256(of_this.encode()).hexdigest()[:16]
        log = fine_tuned(denoiser, manifest, recipe, unfinished, is_twin)
        _save(pipe, folder, manifest, {"base": base, "twin": is_twin, "content": content, "log": log})
        shutil.rmtree(unfinished)
    if info.scorers == "testbed" and not (out / "scorers").exists():
        shutil.copytree(scorers_of(Path(info.source)), out / "scorers")
    try:
        save_parameters(out, manifest, info)
    except ValueError as error:
        print(f"no parameters for the notebooks: {error}")
    return cost


def _check_alone() -> None:
    """Raises ValueError for several processes."""
    if processes() > 1:
        raise ValueError(
            f"canaries are trained by one process on one device, and {processes()} were started: only so do model and "
            "twin see the same noise in the same order. Start `python -m memsub_extra.canaries train` by itself, or by "
            "`accelerate launch --num_processes 1`; --device cuda:1 takes another GPU, and what does not fit on one is "
            "trained by --way lora or a smaller --batch-size."
        )


def _check_size(denoiser: Denoiser, manifest: Manifest) -> None:
    """Raises ValueError if the photographs do not have the size of the model's images."""
    if denoiser.image_shape != (manifest.side, manifest.side):
        height, width = denoiser.image_shape
        raise ValueError(
            f"the model has images of {height} x {width} pixels, the manifest of {manifest.side} x {manifest.side}: "
            f"plant again with side={height}."
        )


def _finished(folder: Path, content: dict[str, Any]) -> bool:
    """Whether the folder holds the finished model of this content; raises ValueError for another model."""
    if not (folder / ABOUT).is_file():
        if folder.is_dir() and (folder / "model_index.json").exists():
            raise ValueError(f"{folder} holds another pipeline: name another folder.")
        return False
    before = load_json(folder / ABOUT).get("content", {})
    if differing := [key for key in content if before.get(key) != content[key]]:
        raise ValueError(f"{folder} holds a model of another {', '.join(differing)}: name another folder.")
    return True


def fine_tuned(denoiser: Denoiser, manifest: Manifest, recipe: Recipe, folder: Path, twin: bool) -> dict[str, Any]:
    """Trains the network in place, with checkpoints in a folder; returns its log: seconds, and losses by step."""
    network: Any = denoiser.network
    device = denoiser.device
    shown = Shown(denoiser, manifest)
    order = torch.from_numpy(schedule(manifest, recipe, twin))

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size].tolist()
        with _half(device):
            latents, context = shown.batch(rows)
            return denoising_loss(denoiser, latents, context, rng)

    options: dict[str, Any] = {"lr": recipe.rate, "warmup": recipe.warmup, "decay": recipe.way == "lora"}
    options |= {"optimizer": "adamw 0.999", "weight_decay": 1e-2, "checkpoint_seconds": CHECKPOINT_SECONDS}
    where: dict[str, Any] = {"folder": folder, "name": TWIN if twin else "model", "stream": "canaries"}
    steps = len(order) // recipe.batch_size
    if device.type == "cuda" and hasattr(network, "enable_gradient_checkpointing"):
        network.enable_gradient_checkpointing()  # a quarter slower, but memory does not grow with depth
    with nullcontext(network) if recipe.way == "full" else _adapted(network, recipe) as module:
        fit(module, loss, steps=steps, seed=recipe.seed, **options, **where)
    return load_json(folder / f"{where['name']}.json")


def _half(device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision in bfloat16 if the device is faster with it; weights, gradients and sums stay in float32."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else mixed_precision(device)


class Shown:
    """Training samples: latents and conditioning of canaries and ordinary pairs, by their numbers in `schedule`."""

    def __init__(self, denoiser: Denoiser, manifest: Manifest):
        self.denoiser, self.side, self.canaries = denoiser, manifest.side, len(manifest.canaries)
        self.folders = Path(manifest.candidates_folder), Path(manifest.ordinary_folder)
        pairs = [(canary.caption, canary.planted) for canary in manifest.canaries]
        pairs += [(pair.caption, pair.photograph) for pair in manifest.ordinary]
        self.captions: list[str] = [caption for caption, _ in pairs]
        self.photographs: list[Photograph] = [photograph for _, photograph in pairs]
        self.cached: dict[int, torch.Tensor] = {}

    def batch(self, rows: list[int]) -> tuple[torch.Tensor, Conditioning]:
        """Latents (n, channels, height, width) and a conditioning of n rows."""
        missing = [row for row in dict.fromkeys(rows) if row not in self.cached]
        for planted in (True, False):
            if part := [row for row in missing if (row < self.canaries) == planted]:
                photographs = [self.photographs[row] for row in part]
                images = load(self.folders[0 if planted else 1], photographs, self.side)
                for row, image in zip(part, images, strict=True):
                    # One by one, so that the latents do not depend on which other images are missing.
                    self.cached[row] = self.denoiser.encode(image[None])[0].cpu()
        latents = torch.stack([self.cached[row] for row in rows]).to(self.denoiser.device)
        most = max(len(rows), int(CACHED_BYTES / latents[0].nbytes))
        ordinary = (row for row in list(self.cached) if row >= self.canaries)  # the oldest first
        while len(self.cached) > most and (oldest := next(ordinary, None)) is not None:
            del self.cached[oldest]
        return latents, self.denoiser.embed([self.captions[row] for row in rows])


@contextmanager
def _adapted(network: Any, recipe: Recipe, fuse: bool = True) -> Iterator[nn.ParameterDict]:
    """Adds a LoRA to layers of a network, and yields its weights by name; on leaving it is fused or removed.

    Raises:
        ValueError: peft is not installed, no layer has such a name, or the network takes no adapters.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise ValueError("a LoRA requires peft: pip install 'memsub[lora]', or train all weights.") from None
    if not hasattr(network, "add_adapter"):
        raise ValueError(f"a {type(network).__name__} takes no adapters of peft: train all weights.")
    targets = list(recipe.targets)
    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, init_lora_weights="gaussian", target_modules=targets)
    trained = [parameter.requires_grad for parameter in network.parameters()]
    parameters = list(network.parameters())
    network.requires_grad_(False)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(recipe.seed, "lora").initial_seed())
            network.add_adapter(config)
        adapter = {name.replace(".", "/"): p for name, p in network.named_parameters() if p.requires_grad}
        yield nn.ParameterDict(adapter)  # keys of a ParameterDict have no dots
        if fuse:
            network.fuse_lora()
    finally:
        network.unload_lora()
        for parameter, required in zip(parameters, trained, strict=True):
            parameter.requires_grad_(required)


def _save(pipe: Any, folder: Path, manifest: Manifest, about: dict[str, Any]) -> None:
    """Saves the pipeline, the manifest and the world's name; then `ABOUT`, which marks the folder as complete."""
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    pipe.save_pretrained(partial, safe_serialization=True)
    manifest.save(partial / FILE)
    save_json({"world": Canaries.name}, partial / WORLD_FILE)
    for path in sorted(partial.iterdir()):
        if (folder / path.name).is_dir():
            shutil.rmtree(folder / path.name)
        path.replace(folder / path.name)
    partial.rmdir()
    save_json(about, folder / ABOUT)
