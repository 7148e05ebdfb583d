"""A published CLIP (Radford et al., 2021): does an image show what its caption says?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..models import module_fingerprint
from .metric import PromptMetric

CLIPS = {"ViT-g/14": "laion/CLIP-ViT-g-14-laion2B-s12B-b42K", "ViT-L/14": "openai/clip-vit-large-patch14"}


def clip(source: str | Path = "ViT-L/14", device: str | torch.device = "cpu", batch_size: int = 16) -> PromptMetric:
    """A published CLIP: one of `CLIPS`, a hub id, or a folder; raises FileNotFoundError for a missing folder."""
    from transformers import CLIPModel, CLIPTokenizer

    # The default processor requires torchvision.
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    source = CLIPS.get(str(source), source)
    if str(source).startswith((".", "/", "~")) and not Path(source).is_dir():
        raise FileNotFoundError(f"no folder of a CLIP at {source}.")
    model = CLIPModel.from_pretrained(source, use_safetensors=True).to(device).eval()
    processor = CLIPImageProcessorPil.from_pretrained(source)
    tokenizer = CLIPTokenizer.from_pretrained(source)

    def embed_images(images: np.ndarray) -> torch.Tensor:
        pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
        return F.normalize(_tensor(model.get_image_features(pixel_values=pixels.to(device))), dim=1)

    def embed_texts(prompts: list[str]) -> torch.Tensor:
        tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(device)
        return F.normalize(_tensor(model.get_text_features(**tokens)), dim=1)

    return PromptMetric(embed_images, embed_texts, f"clip {module_fingerprint(model)}", batch_size)


def _tensor(output: Any) -> torch.Tensor:
    """CLIP's features, which transformers 5 wraps in an output object."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output
