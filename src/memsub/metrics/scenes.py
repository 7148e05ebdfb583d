"""The metrics of the drawn world: a copy descriptor and an alignment judge, trained on scenes of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..denoiser import module_fingerprint
from ..files import load_json
from .base import CopyMetric, PromptMetric

_OPTIONS = {"dtype": torch.float32, "use_safetensors": True}


def scene_copy(folder: Path, device: str | torch.device = "cpu") -> CopyMetric:
    """The copy descriptor in a folder that `memsub.testbed.train` wrote."""
    from ..testbed.towers import SceneEncoder, to_tensor

    model = SceneEncoder.from_pretrained(scorers_of(folder) / "copy", **_OPTIONS).to(device).eval()
    roc = load_json(scorers_of(folder) / "copy" / "threshold.json")

    def embed(images: np.ndarray) -> torch.Tensor:
        return model(to_tensor(images).to(device))

    return CopyMetric(embed, roc["threshold"], f"scenes {module_fingerprint(model)}", roc=roc)


def scene_alignment(folder: Path, device: str | torch.device = "cpu") -> PromptMetric:
    """The alignment judge that `memsub.testbed.train` wrote into a folder, or into the one above it for a twin.

    A picture's similarity with a caption is the mean probability that the judge gives to what the caption names: each
    icon in its colour, the background's colour, its pattern. Image features hold, beside these probabilities, the layer
    below them (for KID), of which captions say nothing.
    """
    from ..testbed.scenes import CHOICES, multi_hot, parse
    from ..testbed.towers import SceneJudge, to_tensor

    model = SceneJudge.from_pretrained(scorers_of(folder) / "alignment", **_OPTIONS).to(device).eval()

    def embed_texts(prompts: list[str]) -> torch.Tensor:
        named = torch.from_numpy(np.stack([multi_hot(parse(prompt)) for prompt in prompts]))
        return F.pad(named / named.sum(1, keepdim=True), (0, width - sum(CHOICES)))

    def embed_images(images: np.ndarray) -> torch.Tensor:
        return model.features(to_tensor(images).to(device))

    width = model.features(torch.zeros(1, 3, 32, 32, device=device)).shape[1]
    return PromptMetric(embed_images, embed_texts, f"scenes {module_fingerprint(model)}")


def scorers_of(folder: Path) -> Path:
    """Where the scorers lie of a folder that `memsub.testbed.train` wrote: a twin lies in its model's folder."""
    own = folder / "scorers"
    return own if own.is_dir() else folder.parent / "scorers"
