"""The CLIP whose text tower conditions the embedded model. It is trained on scenes, and used only in training."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from memsub.testbed.towers import SceneEncoder

CONTEXT = 24
"""Longest caption in tokens, start and end included."""


class SceneCLIP(ModelMixin, ConfigMixin):
    """A contrastive image-text model: unit image and text features in one space, and a learned scale."""

    @register_to_config
    def __init__(self, vocab_size: int, eos_token_id: int, text_width: int = 96, text_layers: int = 2, dim: int = 128):
        super().__init__()
        self.image = SceneEncoder(dim, pooled=True)
        self.text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=vocab_size,
                hidden_size=text_width,
                intermediate_size=4 * text_width,
                num_hidden_layers=text_layers,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                projection_dim=dim,
                bos_token_id=eos_token_id - 1,
                eos_token_id=eos_token_id,
                pad_token_id=eos_token_id,
            )
        )
        self.log_scale = nn.Parameter(torch.tensor(np.log(10.0), dtype=torch.float32))

    def image_features(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, 32, 32) in [-1, 1] to unit (n, dim)."""
        return self.image(x)

    def text_features(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (n, 24) to unit (n, dim)."""
        return F.normalize(self.text(ids).text_embeds, dim=-1)
