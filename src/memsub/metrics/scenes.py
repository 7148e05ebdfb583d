"""The metrics of the drawn world: a copy descriptor and a CLIP trained on scenes of their own (`testbed.train`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..denoiser import module_fingerprint
from ..files import load_json
from .base import CopyMetric, PromptMetric

_OPTIONS = {"dtype": torch.float32, "use_safetensors": True}


def scene_copy(folder: Path, device: str | torch.device = "cpu") -> CopyMetric:
    """The copy descriptor in a folder that `memsub.testbed.train` wrote."""
    from ..testbed.towers import SceneEncoder, to_tensor

    model = SceneEncoder.from_pretrained(folder / "scorers" / "copy", **_OPTIONS).to(device).eval()
    roc = load_json(folder / "scorers" / "copy" / "threshold.json")

    def embed(images: np.ndarray) -> torch.Tensor:
        return model(to_tensor(images).to(device))

    return CopyMetric(embed, roc["threshold"], f"scenes {module_fingerprint(model)}", roc=roc)


def scene_clip(folder: Path, device: str | torch.device = "cpu") -> PromptMetric:
    """The alignment CLIP in a folder that `memsub.testbed.train` wrote; not the one that conditions the model."""
    from transformers import CLIPTokenizer

    from ..testbed.towers import SceneCLIP, to_tensor

    model = SceneCLIP.from_pretrained(folder / "scorers" / "alignment", **_OPTIONS).to(device).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    length = {"padding": "max_length", "max_length": model.text.config.max_position_embeddings, "truncation": True}

    def embed_texts(prompts: list[str]) -> torch.Tensor:
        return model.text_features(tokenizer(prompts, return_tensors="pt", **length).input_ids.to(device))

    def embed_images(images: np.ndarray) -> torch.Tensor:
        return model.image_features(to_tensor(images).to(device))

    return PromptMetric(embed_images, embed_texts, f"scenes {module_fingerprint(model)}")
