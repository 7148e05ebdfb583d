"""Trains the two scorers, on scenes of their own, and chooses the copy threshold on held-out ones.

    scenes = scorer_scenes(seed)                      # contents, each under several layouts
    train_copy_descriptor(scenes, ...)                    # is this the same picture?
    copy_roc(model, held_out, vae)                   # copies against distinct scenes of the same caption

The alignment scorer is a CLIP like the one that conditions the UNet, of other widths, from another seed, on these
scenes (`train.train_clip`).
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

from .dataset import Scene, render_scenes
from .fitting import fit, generator
from .scenes import Content, caption, sample_content, sample_layout
from .towers import SceneEncoder, to_tensor

LAYOUTS = 4
VARIANTS = 3
CONTENTS = 6_000
HELDOUT_CONTENTS = 500


@dataclass
class ScorerScenes:
    """`images[i]` shows `contents[i]` under LAYOUTS layouts, then each of `variants[i]` under the first of them.

    A variant differs from the content in one attribute.

    Attributes:
        images: uint8, shape (contents, LAYOUTS + VARIANTS, 32, 32, 3).
    """

    contents: list[Content]
    variants: list[list[Content]]
    images: np.ndarray

    def flat(self) -> tuple[np.ndarray, list[Content]]:
        """All images in one list, and the content of each."""
        per_image = [
            c
            for content, variant in zip(self.contents, self.variants, strict=True)
            for c in [content] * LAYOUTS + variant
        ]
        return self.images.reshape(-1, *self.images.shape[2:]), per_image


def scorer_scenes(seed: int, contents: int = CONTENTS, workers: int | None = None) -> ScorerScenes:
    """Scenes drawn for the scorers alone; the embedded model never sees them."""
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


# --- what still counts as a copy. Tensors (n, 3, 32, 32) in [-1, 1], strength a tensor (n,) in [0, 1] -------------


def noisy(x: torch.Tensor, strength: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Gaussian noise of a standard deviation up to 8 % of the range."""
    return x + 0.16 * strength[:, None, None, None] * torch.randn(x.shape, generator=rng, device=x.device)


def blurred(x: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of 0.3 to 0.9 pixels."""
    sigma = (0.3 + 0.6 * strength)[:, None]
    taps = torch.exp(-0.5 * (torch.arange(-2, 3, device=x.device) / sigma) ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    n = len(x)
    x = x.transpose(0, 1)  # one group a picture
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


def _augment(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Each kind of copy with probability one half."""
    on = torch.rand(4, len(x), generator=rng, device=x.device) < 0.5
    strength = torch.rand(4, len(x), generator=rng, device=x.device)
    shift = torch.rand(len(x), 2, generator=rng, device=x.device) * 2 - 1
    x = moved(x, 1.25 * shift * on[2][:, None], 1 - 0.09 * strength[3] * on[3])
    x = torch.where(on[1][:, None, None, None], blurred(x, strength[1]), x)
    return noisy(x, strength[0] * on[0], rng)


def train_copy_descriptor(
    scenes: ScorerScenes, returned: np.ndarray, folder: Path, seed: int, steps: int, device: str = "cpu"
) -> SceneEncoder:
    """InfoNCE between two views of a picture, among 16 contents x (4 layouts, 3 one-attribute variants of the first).

    `returned` are the scenes' images, flat, after the autoencoder's round trip: one of the ways to be a copy.
    """
    torch.manual_seed(generator(seed, "copy").initial_seed())
    model = SceneEncoder(dim=64, pooled=False).to(device)
    views = np.stack([scenes.images, returned.reshape(scenes.images.shape)])

    def loss(step: int, rng: torch.Generator) -> torch.Tensor:
        draws = np.random.default_rng(rng.initial_seed())
        rows = draws.choice(len(scenes.contents), size=16, replace=False)
        n = 16 * (LAYOUTS + VARIANTS)
        batch = views[:, rows].reshape(2, n, *views.shape[-3:])
        a, b = (_augment(to_tensor(batch[draws.integers(2, size=n), np.arange(n)]).to(device), rng) for _ in range(2))
        logits = model(a) @ model(b).T / 0.1
        target = torch.arange(n, device=device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return fit(model, loss, steps=steps, lr=1e-3, seed=seed, folder=folder, name="copy")


@torch.no_grad()
def copy_roc(
    model: SceneEncoder, scenes: ScorerScenes, vae: AutoencoderKL, seed: int = 0
) -> tuple[float, pd.DataFrame, pd.DataFrame]:
    """Similarities of copies and of distinct scenes of one caption, the threshold between them, and the ROC.

    Returns:
        threshold: the highest that keeps 99 % of the copies.
        pairs: columns similarity, pair ("noise", ..., "same caption"), is_copy.
        roc: columns threshold, true_positives, false_positives (rates).
    """
    device = next(model.parameters()).device
    rng = generator(seed, "roc", device=device)
    originals = scenes.images[:, :LAYOUTS]
    x = to_tensor(originals.reshape(-1, *originals.shape[2:])).to(device)
    n = len(x)
    strength = torch.rand(n, generator=rng, device=device)
    shift = torch.rand(n, 2, generator=rng, device=device) * 2 - 1
    ones, still = torch.ones(n, device=device), torch.zeros(n, 2, device=device)
    copies = {
        "noise": noisy(x, strength, rng),
        "blur": blurred(x, strength),
        "autoencoder round trip": to_tensor(round_trip(vae, originals.reshape(-1, *originals.shape[2:]))).to(device),
        "shift": moved(x, 1.25 * shift, ones),
        "crop": moved(x, still, 1 - 0.09 * strength),
    }
    base = model(x)
    frames = [
        pd.DataFrame({"similarity": (model(y) * base).sum(1).cpu(), "pair": kind, "is_copy": True})
        for kind, y in copies.items()
    ]
    groups = base.reshape(-1, LAYOUTS, base.shape[-1])
    i, j = np.triu_indices(LAYOUTS, 1)
    distinct = (groups[:, i] * groups[:, j]).sum(-1).flatten().cpu()
    frames.append(pd.DataFrame({"similarity": distinct, "pair": "distinct, same caption", "is_copy": False}))
    variants = model(to_tensor(scenes.images[:, LAYOUTS:].reshape(-1, *originals.shape[2:])).to(device))
    frames.append(
        pd.DataFrame(
            {
                "similarity": (variants * groups[:, 0].repeat_interleave(VARIANTS, 0)).sum(-1).cpu(),
                "pair": "same layout, one attribute changed",
                "is_copy": False,
            }
        )
    )
    pairs = pd.concat(frames, ignore_index=True)
    hard = pairs[pairs["pair"] != "same layout, one attribute changed"]
    fpr, tpr, thresholds = roc_curve(hard["is_copy"], hard["similarity"])
    roc = pd.DataFrame({"threshold": thresholds, "true_positives": tpr, "false_positives": fpr})
    return float(hard.loc[hard["is_copy"], "similarity"].quantile(0.01)), pairs, roc


def describe_threshold(threshold: float, pairs: pd.DataFrame, roc: pd.DataFrame) -> dict:
    """The threshold, what it was chosen on, and its rates, ready for JSON; the ROC thinned to what a plot needs."""
    above = pairs["similarity"] > threshold
    rates = above.groupby(pairs["pair"]).mean().round(4).to_dict()
    copies = pairs["is_copy"]
    hard = pairs["pair"] == "distinct, same caption"
    near = roc[(roc["false_positives"] < 0.05) & (roc["true_positives"] > 0.5)]
    return {
        "threshold": round(threshold, 4),
        "rule": "the 1 % quantile of the similarities of copies",
        "true_positives": round(float(above[copies].mean()), 4),
        "false_positives": round(float(above[hard].mean()), 5),
        "copies": int(copies.sum()),
        "distinct": int(hard.sum()),
        "above_threshold_by_pair": rates,
        "roc": near.iloc[:: max(1, len(near) // 60)].round(5).replace(np.inf, 1.0).to_dict("list"),
    }
