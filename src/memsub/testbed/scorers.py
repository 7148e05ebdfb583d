"""The metrics of the testbed: a copy descriptor and an alignment judge, trained on scenes that no model has seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..io.files import load_json
from ..measure.metric import CopyMetric, PromptMetric
from ..models import module_fingerprint
from .scenes import CHOICES, multi_hot, parse

_OPTIONS = {"dtype": torch.float32, "use_safetensors": True}


def scene_copy(folder: Path, device: str | torch.device = "cpu") -> CopyMetric:
    """The copy descriptor of a folder that `memsub_extra.training.train` wrote."""
    from .towers import SceneEncoder  # imports diffusers, which takes seconds

    model = SceneEncoder.from_pretrained(scorers_of(folder) / "copy", **_OPTIONS).to(device).eval()
    roc = load_json(scorers_of(folder) / "copy" / "threshold.json")

    def embed(images: np.ndarray) -> torch.Tensor:
        return model(_pixels(images).to(device))

    return CopyMetric(embed, roc["threshold"], f"scenes {module_fingerprint(model)}", roc=roc)


def scene_alignment(folder: Path, device: str | torch.device = "cpu") -> PromptMetric:
    """The alignment judge of a folder that `memsub_extra.training.train` wrote.

    The similarity of an image and a caption is the mean probability that the judge assigns to what the caption names:
    each icon in its colour, the background's colour, the pattern. Image features consist of these probabilities and of
    the layer below, which is for KID: the features of captions are zero there.
    """
    from .towers import SceneJudge

    model = SceneJudge.from_pretrained(scorers_of(folder) / "alignment", **_OPTIONS).to(device).eval()

    def embed_texts(prompts: list[str]) -> torch.Tensor:
        named = torch.from_numpy(np.stack([multi_hot(parse(prompt)) for prompt in prompts]))
        return F.pad(named / named.sum(1, keepdim=True), (0, width - sum(CHOICES)))

    def embed_images(images: np.ndarray) -> torch.Tensor:
        return model.features(_pixels(images).to(device))

    width = model.features(torch.zeros(1, 3, 32, 32, device=device)).shape[1]
    return PromptMetric(embed_images, embed_texts, f"scenes {module_fingerprint(model)}")


def _pixels(images: np.ndarray) -> torch.Tensor:
    """Scenes as the scorers take them; raises ValueError for images of another size."""
    from .towers import to_tensor

    if images.shape[1:3] != (32, 32):
        raise ValueError(f"the scorers take scenes of 32 x 32 pixels; got {' x '.join(map(str, images.shape[1:3]))}.")
    return to_tensor(images)


def scorers_of(folder: Path) -> Path:
    """The folder of a trained model's scorers. A control model in a subfolder uses those of its parent folder."""
    inside = folder / "scorers"
    return inside if inside.is_dir() else folder.parent / "scorers"
