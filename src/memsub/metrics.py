"""The judges: is this a copy, does it show what was asked, is it as varied and real as it should be?

    judges = load_judges("tiny")
    judges.copy.similarity(images, training_images)        # (n,) cosine; above judges.copy.threshold: a copy
    judges.copy.nearest(images, corpus_features)           # (n,) most similar of many, and which
    judges.prompt.similarity(images, prompts)              # (n,) cosine
    fid(real_images, images, judges.prompt)                # Fréchet distance of image features

Images are uint8 arrays of shape (n, height, width, 3) everywhere. The judges saw nothing of what the judged model
was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from transformers import CLIPTokenizer

from .testbed.dataset import weights_folder
from .testbed.towers import SceneCLIP, SceneEncoder, to_tensor

BATCH = 256


def _batched(function, items: Sequence | np.ndarray) -> np.ndarray:
    """Applies `function` to batches of items without gradients; float32 rows."""
    with torch.no_grad():
        return np.concatenate(
            [function(items[i : i + BATCH]).float().cpu().numpy() for i in range(0, len(items), BATCH)]
        )


def _check_images(images: np.ndarray, name: str = "images") -> None:
    if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3):
        found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(f"{name} must be a uint8 array of shape (n, height, width, 3); got {found}.")
    if not len(images):
        raise ValueError(f"{name} is empty.")


@dataclass
class CopyJudge:
    """Copy descriptor: two pictures are copies if the cosine of their descriptors exceeds `threshold`.

    Trained as SSCD (Pizzi et al. 2022) is, by InfoNCE between augmented views; unlike SSCD's, its hard negatives are
    distinct scenes of one caption. `roc` holds what the threshold was chosen on.
    """

    model: SceneEncoder
    threshold: float
    roc: dict

    def features(self, images: np.ndarray) -> np.ndarray:
        """Unit descriptors, float32, shape (n, dim).

        Raises:
            ValueError: not a non-empty uint8 array of images.
        """
        _check_images(images)
        return _batched(lambda x: self.model(to_tensor(x).to(self.model.device)), images)

    def similarity(self, images: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Cosine of image i with reference i, shape (n,).

        Raises:
            ValueError: different numbers of images.
        """
        _check_images(references, "references")
        if len(images) != len(references):
            raise ValueError(f"{len(images)} images against {len(references)} references: give one reference an image.")
        return (self.features(images) * self.features(references)).sum(1)

    def nearest(self, images: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Highest cosine with any of `features` (corpus, dim), and its row; both of shape (n,)."""
        cosines = self.features(images) @ features.T
        return cosines.max(1), cosines.argmax(1)


@dataclass
class PromptJudge:
    """Alignment CLIP: cosine of image and caption in a shared space."""

    model: SceneCLIP
    tokenizer: CLIPTokenizer

    @property
    def num_features(self) -> int:
        return self.model.config.dim

    def image_features(self, images: np.ndarray) -> np.ndarray:
        """Unit image features, float32, shape (n, dim)."""
        _check_images(images)
        return _batched(lambda x: self.model.image_features(to_tensor(x).to(self.model.device)), images)

    def text_features(self, prompts: Sequence[str]) -> np.ndarray:
        """Unit text features, float32, shape (n, dim)."""
        context = self.model.text.config.max_position_embeddings

        def embed(part: Sequence[str]) -> torch.Tensor:
            tokens = self.tokenizer(
                list(part), padding="max_length", max_length=context, truncation=True, return_tensors="pt"
            )
            return self.model.text_features(tokens.input_ids.to(self.model.device))

        return _batched(embed, prompts)

    def similarity(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Cosine of image i with prompt i, shape (n,).

        Raises:
            ValueError: different numbers of images and prompts.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images against {len(prompts)} prompts: give one prompt an image.")
        return (self.image_features(images) * self.text_features(prompts)).sum(1)


@dataclass
class Judges:
    """The judges that belong to a model."""

    copy: CopyJudge
    prompt: PromptJudge


def load_judges(name: str = "tiny", device: str | torch.device | None = None) -> Judges:
    """The judges of the embedded model, or those in a folder that `memsub.testbed.train` wrote.

    Raises:
        FileNotFoundError: the folder holds no judges.
    """
    folder = weights_folder() if name == "tiny" else Path(name)
    if not (folder / "judges").is_dir():
        raise FileNotFoundError(
            f"{folder} holds no folder `judges`: expected 'tiny' or the output of memsub.testbed.train."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = {"dtype": torch.float32, "use_safetensors": True}
    copy = SceneEncoder.from_pretrained(folder / "judges" / "copy", **options).to(device).eval()
    alignment = SceneCLIP.from_pretrained(folder / "judges" / "alignment", **options).to(device).eval()
    roc = json.loads((folder / "judges" / "copy" / "threshold.json").read_text())
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    return Judges(CopyJudge(copy, roc["threshold"], roc), PromptJudge(alignment, tokenizer))


class _Identity(torch.nn.Module):
    """Hands torchmetrics features that are already computed."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def fid(real: np.ndarray, generated: np.ndarray, judge: PromptJudge) -> float:
    """Fréchet distance (Heusel et al. 2017) between the judge's image features of two sets of images, by torchmetrics.

    Features are scaled to unit length, so values are small and comparable only under one judge; use at least as many
    images as the judge has features.

    Raises:
        ValueError: fewer than two images on a side.
    """
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"FID needs two images or more a side; got {len(real)} and {len(generated)}.")
    metric = FrechetInceptionDistance(feature=_Identity(judge.num_features))
    metric.update(torch.from_numpy(judge.image_features(real)), real=True)
    metric.update(torch.from_numpy(judge.image_features(generated)), real=False)
    return float(metric.compute())
