"""The judges: is this a copy, does it show what was asked, is it as varied and real as it should be?

    judges = load_judges("tiny")
    judges.copy.similarity(images, training_images)        # (n,) cosine; above judges.copy.threshold: a copy
    judges.copy.nearest(images, corpus_features)           # (n,) most similar of many, and which
    judges.prompt.similarity(images, prompts)              # (n,) cosine
    fid(judges.prompt.image_features(real), judges.prompt.image_features(images))    # Fréchet distance

Images are uint8 arrays of shape (n, height, width, 3) everywhere. The judges saw nothing of what the judged model
was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # the default needs torchvision

from . import distributed
from .distributed import gathered, shard
from .downloads import fetch_url
from .models import HUB
from .testbed.dataset import weights_folder
from .testbed.towers import SceneCLIP, SceneEncoder, to_tensor


def _batched(function, items: Sequence | np.ndarray, batch_size: int) -> np.ndarray:
    """Applies `function` to batches of items without gradients; float32 rows. Several processes share the batches out."""
    starts = shard(range(0, len(items), batch_size))
    with torch.no_grad():
        rows = gathered({i: function(items[i : i + batch_size]).float().cpu().numpy() for i in starts})
    return np.concatenate([rows[i] for i in sorted(rows)])


def _check_images(images: np.ndarray, name: str = "images") -> None:
    if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] == 3):
        found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(f"{name} must be a uint8 array of shape (n, height, width, 3); got {found}.")
    if not len(images):
        raise ValueError(f"{name} is empty.")


@dataclass
class CopyJudge:
    """Copy descriptor: two pictures are copies if the cosine of their descriptors exceeds `threshold`.

    Attributes:
        embed: a batch of images, uint8 (n, height, width, 3), to descriptors (n, dim) of unit length.
        batch_size: images at a time.
        roc: what the threshold was chosen on; empty for published descriptors.
    """

    embed: Callable[[np.ndarray], torch.Tensor]
    threshold: float
    batch_size: int = 256
    roc: dict = field(default_factory=dict)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Unit descriptors, float32, shape (n, dim).

        Raises:
            ValueError: not a non-empty uint8 array of images.
        """
        _check_images(images)
        return _batched(self.embed, images, self.batch_size)

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
    """A CLIP: cosine of image and caption in a shared space.

    Attributes:
        embed_images: a batch of images, uint8 (n, height, width, 3), to (n, dim) of unit length.
        embed_texts: a list of n captions to (n, dim) of unit length.
        batch_size: images or captions at a time.
    """

    embed_images: Callable[[np.ndarray], torch.Tensor]
    embed_texts: Callable[[list[str]], torch.Tensor]
    batch_size: int = 256

    def image_features(self, images: np.ndarray) -> np.ndarray:
        """Unit image features, float32, shape (n, dim)."""
        _check_images(images)
        return _batched(self.embed_images, images, self.batch_size)

    def text_features(self, prompts: Sequence[str]) -> np.ndarray:
        """Unit text features, float32, shape (n, dim)."""
        return _batched(self.embed_texts, list(prompts), self.batch_size)

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
    """The judges that belong to a model.

    Args:
        name: "tiny", or a folder that `memsub.testbed.train` wrote: judges trained on that world. Any other model: SSCD
            (`sscd("sscd_disc_large")`) and CLIP ViT-L/14, fetched on first use.

    Raises:
        FileNotFoundError: the folder holds no judges.
        ConnectionError: a published judge has to be fetched and cannot be.
    """
    device = torch.device(device or distributed.device())
    folder = weights_folder() if name == "tiny" else Path(name)
    if (folder / "judges").is_dir():
        return Judges(*_testbed_judges(folder, device))
    if name in HUB:
        return Judges(sscd("sscd_disc_large", device), clip("ViT-L/14", device))
    raise FileNotFoundError(
        f"{folder} holds no folder `judges`: expected 'tiny', the output of memsub.testbed.train, or one of {', '.join(HUB)}."
    )


def _testbed_judges(folder: Path, device: torch.device) -> tuple[CopyJudge, PromptJudge]:
    options = {"dtype": torch.float32, "use_safetensors": True}
    copy = SceneEncoder.from_pretrained(folder / "judges" / "copy", **options).to(device).eval()
    alignment = SceneCLIP.from_pretrained(folder / "judges" / "alignment", **options).to(device).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    context = alignment.text.config.max_position_embeddings
    roc = json.loads((folder / "judges" / "copy" / "threshold.json").read_text())

    def embed_texts(prompts: list[str]) -> torch.Tensor:
        tokens = tokenizer(prompts, padding="max_length", max_length=context, truncation=True, return_tensors="pt")
        return alignment.text_features(tokens.input_ids.to(device))

    return (
        CopyJudge(lambda images: copy(to_tensor(images).to(device)), roc["threshold"], roc=roc),
        PromptJudge(lambda images: alignment.image_features(to_tensor(images).to(device)), embed_texts),
    )


SSCD = {
    name: f"https://dl.fbaipublicfiles.com/sscd-copy-detection/{name}.torchscript.pt"
    for name in ("sscd_disc_large", "sscd_disc_mixup")
}
CLIPS = {"ViT-g/14": "laion/CLIP-ViT-g-14-laion2B-s12B-b42K", "ViT-L/14": "openai/clip-vit-large-patch14"}


def sscd(
    source: str | Path = "sscd_disc_large",
    device: str | torch.device = "cpu",
    threshold: float = 0.7,
    batch_size: int = 16,
) -> CopyJudge:
    """SSCD (Pizzi et al., CVPR 2022), with the preprocessing of its authors: 320 x 320 pixels, ImageNet's mean and deviation.

    Args:
        source: a published name (fetched on first use), or the path of a TorchScript (`.pt`) or ONNX (`.onnx`) file.
        threshold: cosine above which two pictures count as copies, as in the literature on memorization.

    Raises:
        FileNotFoundError, ConnectionError: no such file; it has to be fetched and cannot be.
        ValueError: the file is neither TorchScript nor ONNX.
    """
    path = fetch_url(SSCD[source], "copy judge") if source in SSCD else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no SSCD model at {path}; expected one of {', '.join(SSCD)}, or a file.")
    if path.suffix == ".onnx":
        import onnxruntime  # in the extra `onnx`

        session = onnxruntime.InferenceSession(path)
        entry = session.get_inputs()[0].name
        run = lambda x: torch.from_numpy(session.run(None, {entry: x.cpu().numpy()})[0])  # noqa: E731
    else:
        try:
            run = torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(f"{path} is no TorchScript file: {str(error).splitlines()[0]}") from None

    def embed(images: np.ndarray) -> torch.Tensor:
        x = _resized(images, 320).to(device)
        mean, std = x.new_tensor([0.485, 0.456, 0.406]), x.new_tensor([0.229, 0.224, 0.225])
        return F.normalize(run((x - mean[:, None, None]) / std[:, None, None]), dim=1)

    return CopyJudge(embed, threshold, batch_size)


def _resized(images: np.ndarray, side: int) -> torch.Tensor:
    """Images, uint8 (n, h, w, 3), to float32 (n, 3, side, side) in [0, 1], by Pillow's bilinear filter."""
    pictures = [Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR) for image in images]
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 255


def clip(source: str | Path = "ViT-L/14", device: str | torch.device = "cpu", batch_size: int = 16) -> PromptJudge:
    """A published CLIP: one of `CLIPS`, a hub id, or a folder."""
    source = CLIPS.get(str(source), source)
    model = CLIPModel.from_pretrained(source, use_safetensors=True).to(device).eval()
    processor = CLIPImageProcessorPil.from_pretrained(source)
    tokenizer = CLIPTokenizer.from_pretrained(source)

    def embed_images(images: np.ndarray) -> torch.Tensor:
        pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
        return F.normalize(_tensor(model.get_image_features(pixel_values=pixels.to(device))), dim=1)

    def embed_texts(prompts: list[str]) -> torch.Tensor:
        tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(device)
        return F.normalize(_tensor(model.get_text_features(**tokens)), dim=1)

    return PromptJudge(embed_images, embed_texts, batch_size)


def _tensor(output: object) -> torch.Tensor:
    """transformers 5 wraps CLIP's features in an output object."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


class _Identity(torch.nn.Module):
    """Hands torchmetrics features that are already computed."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def fid(real: np.ndarray, generated: np.ndarray) -> float:
    """Fréchet distance (Heusel et al. 2017) between image features of two sets of images, by torchmetrics.

    `PromptJudge.image_features` are of unit length, so values are small and comparable only under one judge; use at least as many
    images as there are features.

    Args:
        real, generated: (n, dim) and (m, dim).

    Raises:
        ValueError: fewer than two images on a side.
    """
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"FID needs two images or more a side; got {len(real)} and {len(generated)}.")
    metric = FrechetInceptionDistance(feature=_Identity(real.shape[1]))
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(generated), real=False)
    return float(metric.compute())
