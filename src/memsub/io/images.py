"""Images on disk and in tables: uint8 arrays of shape (height, width, 3), written as PNG.

save_image(image, folder / "0.png")
images = read_images(image_files(folder), side=512)     # (n, 512, 512, 3)
decode_png(row["image"])                                # the images of a table of prompts are PNG bytes

Files of strangers are opened here alone: six formats, none of which runs a program, and no more than `MOST_PIXELS`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .files import write_atomically

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Of files that count as images, in lower case."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow may take a file for. (Among its other formats is PostScript, which it hands to Ghostscript.)"""
MOST_PIXELS = 80_000_000
_TURNS = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), 2))
"""How an image is shown, by the number 2 to 8 in its EXIF data."""


def save_image(image: np.ndarray, path: str | Path) -> None:
    """Writes a uint8 image (height, width, 3) as PNG, atomically; folders are made as needed."""
    write_atomically(Path(path), lambda temporary: Image.fromarray(image).save(temporary, "PNG"))


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder and of all folders below it, by name, with 9 before 10; hidden ones are left out."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted((path for path in files if not path.name.startswith(".")), key=_natural)


def _natural(path: Path) -> list[str | int]:
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", path.as_posix()))]


def rgb(file: Path | bytes) -> Image.Image:
    """An image as the model's training saw it: its first frame, the right way up, on white, with 8 bits a channel.

    LAION's images were downloaded so (img2dataset): where Pillow alone converts, what is transparent becomes black or
    whatever lies hidden there, and 16 bits become white.

    Raises:
        ValueError: no image of `FORMATS`, a broken one, or one of more than `MOST_PIXELS`.
    """
    try:
        image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
        return _rgb(image)
    except Exception as error:  # what Pillow raises for broken files is no closed list
        what = "larger than is read" if isinstance(error, Image.DecompressionBombError) else "truncated or no image"
        name = "it" if isinstance(file, bytes) else file
        why = f"none of {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"{name} is {what}: {why}.") from None


def _rgb(image: Image.Image) -> Image.Image:
    image.load()
    turn = _turn(image)
    if image.mode[0] in "IF":
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return (image if turn is None else image.transpose(turn)).convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # an image is shown as it lies where its EXIF data are broken
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray values of 16 or 32 bits or floats, as 8 bits: the largest value that their kind allows is white."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        gray = values >> 8
    else:  # no file says how large they may be
        values = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
        highest = values.max()
        tops = ([1.0] if image.mode == "F" else []) + [2.0**8 - 1, 2.0**16 - 1, 2.0**32 - 1, highest]
        gray = np.clip(values / next(top for top in tops if highest <= top) * 255, 0, 255).round()
    transparent = image.info.get("transparency")
    alpha = np.full(values.shape, 255) if transparent is None else np.where(values == transparent, 0, 255)
    return Image.merge("LA", [Image.fromarray(plane.astype(np.uint8)) for plane in (gray, alpha)])


def read_images(files: Sequence[Path], side: int, broken: dict[Path, str] | None = None) -> np.ndarray:
    """Reads images and resizes them: uint8 (n, side, side, 3).

    Args:
        broken: files that cannot be read are passed over, and added here with a sentence.

    Raises:
        ValueError: a file is no image, and `broken` is None; the message names the file.
    """
    images, n = np.empty((len(files), side, side, 3), np.uint8), 0
    for file in files:
        try:
            images[n] = np.asarray(rgb(file).resize((side, side), Image.Resampling.LANCZOS))
            n += 1
        except ValueError as error:
            if broken is None:
                raise
            broken[file] = str(error)
    return images[:n]


def decode_png(png: bytes) -> np.ndarray:
    """PNG bytes to a uint8 array (height, width, 3)."""
    return np.asarray(rgb(png))
