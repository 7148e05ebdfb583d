"""Canaries as a world (`memsub.world.World`): captions, planted photographs, and the other candidates.

    world = world_of(find_model("runs/canaries"))           # a folder that `canaries.training` wrote
    world.prompts().memorized                               # captions of the canaries
    next(world.alternatives([caption]))                     # the k photographs that were not planted

Images are compared at 32 x 32 pixels. The exact tests are valid for any similarity, and this one requires no network.
(It does not recognize mirrored or moved copies; a copy descriptor does, see `exact_p`.)
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from memsub.measure import exact
from memsub.measure.metric import CopyMetric, ImageMetric, PromptMetric
from memsub.prompts import Prompts

from .photographs import Photograph, load
from .planting import FILE, Canary, Manifest

SMALL = 32
"""Side in pixels at which images are compared."""
LISTED = 3
"""Ordinary pairs in the prompt table for each canary; more would be gigabytes of images."""
KEPT_BYTES = 1e9
"""Limit of cached alternatives: all if images are small, else those of the last few captions."""


def small_pixels(images: np.ndarray) -> np.ndarray:
    """`blurred_pixels` of images of `SMALL` x `SMALL` pixels: float32 unit vectors (n, dim)."""
    if images.shape[1:3] != (SMALL, SMALL):
        resized = [Image.fromarray(image).resize((SMALL, SMALL), Image.Resampling.BOX) for image in images]
        images = np.stack([np.asarray(image) for image in resized])
    return exact.blurred_pixels(images)


class Canaries:
    """The world of a manifest; its methods are described in `memsub.world.World`."""

    name = "canaries"
    features = staticmethod(small_pixels)

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self.alternatives_each = manifest.alternatives
        self.fingerprint = manifest.fingerprint
        self._by_caption = {canary.caption: canary for canary in (*manifest.canaries, *manifest.unseen)}
        kept = int(KEPT_BYTES // (3 * manifest.side**2 * manifest.alternatives))
        self._others = lru_cache(max(1, kept))(self._load_others)

    @property
    def candidates_folder(self) -> Path:
        """The folder of the canaries' photographs."""
        return Path(self.manifest.candidates_folder)

    @cached_property
    def _prompts(self) -> Prompts:
        m = self.manifest
        ordinary = m.ordinary[: LISTED * len(m.canaries)]
        exposures = m.samples[1] / len(m.ordinary)
        parts = [
            self._rows("verbatim", m.canaries, m.repeats),
            self._rows("heldout", m.unseen, 0),
            self._listed("heldout", [p.caption for p in m.heldout], [p.photograph for p in m.heldout], 0),
            self._listed("ordinary", [p.caption for p in ordinary], [p.photograph for p in ordinary], exposures),
        ]
        return Prompts(pd.concat([part for part in parts if len(part)], ignore_index=True))

    def _rows(self, kind: str, canaries: Sequence[Canary], exposures: float) -> pd.DataFrame:
        captions, planted = [c.caption for c in canaries], [c.planted for c in canaries]
        return self._listed(kind, captions, planted, exposures, self.manifest.candidates_folder)

    def _listed(
        self, kind: str, captions: list[str], photographs: list[Photograph], exposures: float, folder: str = ""
    ) -> pd.DataFrame:
        images = self._load(folder or self.manifest.ordinary_folder, photographs)
        columns = {"prompt": captions, "kind": kind, "exposures": exposures}
        return pd.DataFrame({**columns, "image": [_png(image) for image in images]})

    def _load(self, folder: str, photographs: Sequence[Photograph]) -> np.ndarray:
        if not photographs:
            return np.empty((0, self.manifest.side, self.manifest.side, 3), np.uint8)
        return load(Path(folder), photographs, self.manifest.side)

    def prompts(self) -> Prompts:
        """Kinds "verbatim" (the canaries), "heldout" (unseen canaries, then held-out ordinary pairs) and "ordinary"
        (ordinary training pairs, three times as many as canaries)."""
        return self._prompts

    def content(self, prompt: str) -> str:
        """The caption itself; raises ValueError for the caption of no canary."""
        if prompt not in self._by_caption:
            raise ValueError(f"{prompt!r:.200} is no caption of a canary: it has no alternatives.")
        return prompt

    def alternatives(self, contents: Sequence[str], seed: int = 0) -> Iterator[np.ndarray]:
        """As in the protocol: those of the manifest. The seed has no effect."""
        for content in contents:
            yield self._others(content)

    def _load_others(self, content: str) -> np.ndarray:
        return self._load(self.manifest.candidates_folder, self._by_caption[content].others)

    @cached_property
    def exact_p(self) -> ImageMetric:
        return partial(exact.exact_p, world=self)

    def copy_metric(self, source: Path, device: str | torch.device = "cpu") -> CopyMetric:
        """SSCD, fetched on first use."""
        from memsub.measure.sscd import sscd

        return sscd("sscd_disc_large", torch.device(device))

    def prompt_metric(self, source: Path, device: str | torch.device = "cpu") -> PromptMetric:
        """CLIP ViT-L/14, fetched on first use."""
        from memsub.measure.clip import clip

        return clip("ViT-L/14", torch.device(device))


class InFolders:
    """The entry in `memsub.world.WORLDS`; `of` returns the canaries of a model's folder."""

    name = Canaries.name

    def of(self, source: Path) -> Canaries:
        """The canaries of the model in a folder; raises ValueError or FileNotFoundError for other folders."""
        return _read(source / FILE, (source / FILE).stat().st_mtime_ns if (source / FILE).is_file() else 0)


def _png(image: np.ndarray) -> bytes:
    """PNG bytes, encoded fast. (`encode_png` of `training.corpus` makes smaller files in half a second each.)"""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> Canaries:
    return Canaries(Manifest.load(path))


WORLD = InFolders()
