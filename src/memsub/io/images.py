"""Images on disk and in tables: uint8 arrays of shape (height, width, 3), written as PNG.

save_image(image, folder / "0.png")
images = read_images(image_files(folder), side=512)     # (n, 512, 512, 3)
encode_png(decode_png(row["image"]))                    # the images of a table of prompts are PNG bytes
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .files import write_atomically

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Of files that count as images, in lower case."""


def save_image(image: np.ndarray, path: str | Path) -> None:
    """Writes a uint8 image (height, width, 3) as PNG, atomically; folders are made as needed."""
    write_atomically(Path(path), lambda temporary: Image.fromarray(image).save(temporary, "PNG"))


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder and of all folders below it, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def read_images(files: Sequence[Path], side: int) -> np.ndarray:
    """Reads images and resizes them: uint8 (n, side, side, 3).

    Raises:
        ValueError: a file is no image; the message names it.
    """
    images = np.empty((len(files), side, side, 3), np.uint8)
    for i, file in enumerate(files):
        try:
            image = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            images[i] = np.asarray(image)
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{file} is truncated or no image: {error}.") from None
    return images


def decode_png(png: bytes) -> np.ndarray:
    """PNG bytes to a uint8 array (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def encode_png(image: np.ndarray) -> bytes:
    """A uint8 array (height, width, 3) to PNG bytes, as small as Pillow makes them."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
