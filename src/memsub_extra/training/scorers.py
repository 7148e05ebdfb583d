"""Trains the two scorers on separate scenes, and chooses the copy threshold.

scenes = scorer_scenes(seed)                        # contents, each under several layouts
train_alignment_judge(scenes, ...)                  # does the image show its caption?
train_copy_descriptor(scenes, views, ...)           # is this the same image?
copy_pairs(model, held_out, vae)                    # copies against distinct scenes of the same caption
distinct_similarity(model, held_out)                # similarities of distinct scenes of the same caption
choose_threshold(distinct, similarity, replicated)  # one in a hundred of these exceeds it
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from sklearn.metrics import roc_curve
from tqdm.auto import tqdm

from memsub.testbed.scenes import CHOICES, Content, caption, multi_hot, sample_content, sample_layout
from memsub.testbed.towers import SceneEncoder, SceneJudge, to_tensor

from .dataset import Scene, render_scenes
from .fitting import fit, generator

LAYOUTS = 4
VARIANTS = 3
CONTENTS = 9_000
COPY_CONTENTS = 2_000
"""Contents for training the copy descriptor. They are fewer, because the model denoises all their scenes again."""
FALSE_COPIES = 0.01
"""Share of pairs of distinct scenes of one caption that may count as copies."""
SHIFT = 1.25
"""Pixels along each axis by which an image may be shifted and must still be a copy."""


@dataclass
class ScorerScenes:
    """Scenes for scorers: `images[i]` has `contents[i]` in LAYOUTS layouts, then `variants[i]` in the first layout.

    A variant differs from the content in one attribute.

    Attributes:
        images: uint8, shape (contents, LAYOUTS + VARIANTS, 32, 32, 3).
    """

    contents: list[Content]
    variants: list[list[Content]]
    images: np.ndarray

    def first(self, n: int) -> ScorerScenes:
        """The first n contents."""
        return ScorerScenes(self.contents[:n], self.variants[:n], self.images[:n])

    def flat(self) -> tuple[np.ndarray, list[Content]]:
        """All images in one list, and the content of each."""
        per_image = [
            c
            for content, variant in zip(self.contents, self.variants, strict=True)
            for c in [content] * LAYOUTS + variant
        ]
        return self.images.reshape(-1, *self.images.shape[2:]), per_image


def scorer_scenes(seed: int, contents: int = CONTENTS, workers: int | None = None) -> ScorerScenes:
    """Scenes for the scorers alone; the embedded model is never trained on them."""
    rows, originals, variants = [], [], []
    for i in range(contents):
        rng = np.random.default_rng([seed, 100, i])
        content = sample_content(rng)
        layouts = [sample_layout(rng, content) for _ in range(LAYOUTS)]
        variant = [content.random_variant(rng) for _ in range(VARIANTS)]
        originals.append(content)
        variants.append(variant)
        pairs = [(content, layout) for layout in layouts] + [(v, layouts[0]) for v in variant]
        rows += [Scene(caption(c), "scorer", "", 0, c, layout) for c, layout in pairs]
    images = render_scenes(rows, workers)
    return ScorerScenes(originals, variants, images.reshape(contents, LAYOUTS + VARIANTS, *images.shape[1:]))


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """Images (n, 32, 32, 3) through the autoencoder and back, uint8."""
    device = next(vae.parameters()).device
    out = np.empty_like(images)
    # By 32: larger batches fall out of the cache, and take twice as long.
    for i in tqdm(range(0, len(images), 32), desc="autoencoder round trip", mininterval=2, disable=len(images) < 2000):
        y = vae.decode(vae.encode(to_tensor(images[i : i + 32]).to(device)).latent_dist.mean).sample
        out[i : i + 32] = ((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return out


# --- changes after which an image is still a copy: x (n, 3, 32, 32) in [-1, 1], strength (n,) in [0, 1] -----------


def noisy(x: torch.Tensor, strength: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Adds Gaussian noise with a standard deviation of up to 8 % of the range."""
    return x + 0.16 * strength[:, None, None, None] * torch.randn(x.shape, generator=rng).to(x.device)


def blurred(x: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of 0.3 to 0.9 pixels."""
    sigma = (0.3 + 0.6 * strength)[:, None]
    taps = torch.exp(-0.5 * (torch.arange(-2, 3, device=x.device) / sigma) ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    n = len(x)
    x = x.transpose(0, 1)  # one group an image
    x = F.conv2d(F.pad(x, (2, 2, 0, 0), "replicate"), taps[:, None, None, :], groups=n)
    x = F.conv2d(F.pad(x, (0, 0, 2, 2), "replicate"), taps[:, None, :, None], groups=n)
    return x.transpose(0, 1)


def moved(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Shifts by `shift` (n, 2) pixels and keeps the share `scale` (n,) of each side, resized back."""
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift * 2 / x.shape[-1]
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def softened(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """What pruning does to a copy: a blur of up to two pixels, and contrast that fades by up to a half."""
    strength = torch.rand(2, len(x), generator=rng).to(x.device)
    x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "replicate"), 3, 1)
    soft = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), "replicate"), 5, 1)
    mix, fade = strength[0][:, None, None, None], 1 - 0.5 * strength[1][:, None, None, None]
    x = x + mix * (soft - x)
    mean = x.mean((2, 3), keepdim=True)
    return mean + fade * (x - mean)


def _augment(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Applies each change with probability one half. Shifts reach 1.5 times as far as those that must be copies."""
    on = torch.rand(4, len(x), generator=rng).to(x.device) < 0.5
    strength = torch.rand(4, len(x), generator=rng).to(x.device)
    shift = torch.rand(len(x), 2, generator=rng).to(x.device) * 2 - 1
    x = moved(x, 1.5 * SHIFT * shift * on[2][:, None], 1 - 0.09 * strength[3] * on[3])
    x = torch.where(on[1][:, None, None, None], softened(blurred(x, strength[1]), rng), x)
    return noisy(x, strength[0] * on[0], rng)


def train_alignment_judge(scenes: ScorerScenes, folder: Path, seed: int, steps: int, device: str = "cpu") -> SceneJudge:
    """Trains a classifier of coloured icons (yes or no for each), background and pattern, on noised, blurred scenes."""
    torch.manual_seed(generator(seed, "alignment").initial_seed())
    model = SceneJudge().to(device)
    images, contents = scenes.flat()
    named = torch.from_numpy(np.stack([multi_hot(c) for c in contents]))

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(images), (64,), generator=rng)
        x, strength = to_tensor(images[rows.numpy()]).to(device), torch.rand(2, 64, generator=rng).to(device)
        x = noisy(blurred(x, strength[0]), strength[1], rng)
        items, background, pattern = model(x).split(CHOICES, dim=1)
        wanted = named[rows].to(device).split(CHOICES, dim=1)
        missed = F.binary_cross_entropy_with_logits(items, wanted[0], reduction="none").sum(1).mean()
        return missed + F.cross_entropy(background, wanted[1]) + F.cross_entropy(pattern, wanted[2])

    return fit(model, loss, steps=steps, lr=1e-3, seed=seed, folder=folder, name="alignment")


def train_copy_descriptor(
    scenes: ScorerScenes, views: np.ndarray, folder: Path, seed: int, steps: int, device: str = "cpu"
) -> SceneEncoder:
    """Trains with InfoNCE between two views of each image; a batch has 16 contents x (LAYOUTS + VARIANTS) images.

    A view is the image itself or one of its `views`, uint8 (kinds of copy, images, 32, 32, 3): decoded by the
    autoencoder, or noised and denoised by the model, pruned or not. Half of the views are blurred, so that a blurred
    copy counts as a copy.
    """
    torch.manual_seed(generator(seed, "copy").initial_seed())
    model = SceneEncoder(dim=64, pooled=False).to(device)
    kinds = np.stack([scenes.images, *(v.reshape(scenes.images.shape) for v in views)])

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        draws = np.random.default_rng(rng.initial_seed())
        rows = draws.choice(len(scenes.contents), size=16, replace=False)
        n = 16 * (LAYOUTS + VARIANTS)
        batch = kinds[:, rows].reshape(len(kinds), n, *kinds.shape[-3:])
        a, b = (
            _augment(to_tensor(batch[draws.integers(len(kinds), size=n), np.arange(n)]).to(device), rng) for _ in "ab"
        )
        logits = model(a) @ model(b).T / 0.1
        target = torch.arange(n, device=device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return fit(model, loss, steps=steps, lr=1e-3, seed=seed, folder=folder, name="copy")


@torch.no_grad()
def copy_pairs(model: SceneEncoder, scenes: ScorerScenes, vae: AutoencoderKL, seed: int = 0) -> pd.DataFrame:
    """Similarities of copies and of distinct scenes: columns similarity, pair ("noise", ...), is_copy."""
    device = next(model.parameters()).device
    rng = generator(seed, "roc")
    originals = scenes.images[:, :LAYOUTS]
    x = to_tensor(originals.reshape(-1, *originals.shape[2:])).to(device)
    n = len(x)
    strength = torch.rand(n, generator=rng).to(device)
    shift = torch.rand(n, 2, generator=rng).to(device) * 2 - 1
    ones, still = torch.ones(n, device=device), torch.zeros(n, 2, device=device)
    copies = {
        "noise": noisy(x, strength, rng),
        "blur": blurred(x, strength),
        "softened": softened(x, rng),
        "autoencoder round trip": to_tensor(round_trip(vae, originals.reshape(-1, *originals.shape[2:]))).to(device),
        "shift": moved(x, SHIFT * shift, ones),
        "crop": moved(x, still, 1 - 0.09 * strength),
    }
    base = model(x)
    groups = base.reshape(-1, LAYOUTS, base.shape[-1])
    variants = model(to_tensor(scenes.images[:, LAYOUTS:].reshape(-1, *originals.shape[2:])).to(device))
    pairs = {kind: ((model(y) * base).sum(1), True) for kind, y in copies.items()} | {
        "distinct, same caption": (_each_two(groups), False),
        "same layout, one attribute changed": ((variants * groups[:, 0].repeat_interleave(VARIANTS, 0)).sum(-1), False),
    }
    frames = [pd.DataFrame({"similarity": s.cpu(), "pair": kind, "is_copy": same}) for kind, (s, same) in pairs.items()]
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def distinct_similarity(model: SceneEncoder, scenes: ScorerScenes) -> np.ndarray:
    """Similarities of every two scenes with the same content and different layouts: shape (pairs,)."""
    x = scenes.images[:, :LAYOUTS]
    base = model(to_tensor(x.reshape(-1, *x.shape[2:])).to(next(model.parameters()).device))
    return _each_two(base.reshape(-1, LAYOUTS, base.shape[-1])).cpu().numpy()


def _each_two(groups: torch.Tensor) -> torch.Tensor:
    i, j = np.triu_indices(groups.shape[1], 1)
    return (groups[:, i] * groups[:, j]).sum(-1).flatten()


def choose_threshold(distinct: np.ndarray, similarity: np.ndarray, replicated: np.ndarray) -> dict:
    """The copy threshold: one in a hundred pairs of distinct scenes of a caption exceed it. Returns values for JSON.

    For rendered scenes it is known which are distinct. Verdicts of the exact test on generated images are less
    suitable: many images that do not replicate keep traces of the training image, and the best threshold depends on the
    images. They are used to evaluate the threshold.

    Args:
        distinct: similarities of distinct scenes of a caption, from `distinct_similarity`.
        similarity: similarities of images of edited models with their training images.
        replicated: the exact test's verdict on each of these images.

    Returns:
        threshold, rule, scenes (number of distinct pairs); true_positives and false_positives (shares above the
        threshold of images that replicate and that do not); copies and distinct (their numbers); and their ROC.
    """
    threshold = round(float(np.quantile(distinct, 1 - FALSE_COPIES)), 4)
    fpr, tpr, thresholds = roc_curve(replicated, similarity, drop_intermediate=False)
    curve = pd.DataFrame({"threshold": thresholds, "true_positives": tpr, "false_positives": fpr})[1:]
    above = similarity > threshold
    return {
        "threshold": threshold,
        "rule": f"{FALSE_COPIES:.0%} of distinct scenes of one caption are above it",
        "scenes": len(distinct),
        "true_positives": round(float(above[replicated].mean()), 4),
        "false_positives": round(float(above[~replicated].mean()), 4),
        "copies": int(replicated.sum()),
        "distinct": int((~replicated).sum()),
        "roc": curve.iloc[:: max(1, len(curve) // 60)].round(5).to_dict("list"),
    }
