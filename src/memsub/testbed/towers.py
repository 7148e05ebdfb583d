"""The small networks behind the testbed's metrics: the copy descriptor and the alignment judge.

    SceneEncoder(dim, pooled=True)      # what is in the image, wherever it is
    SceneEncoder(dim, pooled=False)     # what is where; for the copy descriptor
    SceneJudge()                        # probabilities of icons with colours, and of backgrounds

All save and load as a folder of `config.json` and `model.safetensors` (`save_pretrained`, `from_pretrained`).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from . import scenes


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) in [-1, 1], the range of diffusers' autoencoders."""
    return in_range(torch.from_numpy(np.ascontiguousarray(images)))


def in_range(images: torch.Tensor) -> torch.Tensor:
    """The same for a uint8 tensor (n, h, w, 3), on its device."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class SceneEncoder(ModelMixin, ConfigMixin):
    """A residual network from (n, 3, 32, 32) in [-1, 1] to unit vectors (n, dim)."""

    @register_to_config
    def __init__(self, dim: int = 128, pooled: bool = True, width: int = 32):
        super().__init__()
        w1, w2, w3 = width, 2 * width, 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(3, w1, 3, stride=2, padding=1),
            _Block(w1),
            nn.Conv2d(w1, w2, 3, stride=2, padding=1),
            _Block(w2),
            _Block(w2),
            nn.Conv2d(w2, w3, 3, stride=2, padding=1),
            _Block(w3),
            nn.GroupNorm(8, w3),
            nn.SiLU(),
        )
        self.pooled = pooled
        self.head = nn.Sequential(nn.Linear(2 * w3 if pooled else 16 * w3, 256), nn.SiLU(), nn.Linear(256, dim))

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """The layer below the head, (n, 256)."""
        x = self.body(x)
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1) if self.pooled else x.flatten(1)
        return self.head[:-1](x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.head[-1](self.hidden(x)), dim=-1)


class SceneJudge(ModelMixin, ConfigMixin):
    """Recognizes what a caption can name: (n, 3, 32, 32) in [-1, 1] to logits in the order of `scenes.multi_hot`.

    It is trained on contents and reads no captions, so no text tower limits what it can distinguish.
    """

    @register_to_config
    def __init__(self, width: int = 32):
        super().__init__()
        self.image = SceneEncoder(sum(scenes.CHOICES), pooled=True, width=width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, icons x colours + colours + patterns)."""
        return self.image.head[-1](self.image.hidden(x))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities of everything that can be named, followed by the layer below, scaled to unit length."""
        hidden = self.image.hidden(x)
        items, background, pattern = self.image.head[-1](hidden).split(scenes.CHOICES, dim=1)
        return torch.cat([items.sigmoid(), background.softmax(1), pattern.softmax(1), F.normalize(hidden, dim=1)], 1)
