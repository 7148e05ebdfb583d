"""Images on disk and in tables: uint8 arrays of shape (height, width, 3), written as PNG.

save_image(image, folder / "0.png")
images = read_images(image_files(folder), side=512)     # (n, 512, 512, 3)
decode_png(row["image"])                                # prompt tables store images as PNG bytes

Only this module opens image files. It accepts six formats, none of which runs a program, and up to `MOST_PIXELS`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .files import write_atomically

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Suffixes of image files, in lower case."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""The formats that Pillow may open. (Others are risky: it passes PostScript to Ghostscript.)"""
MOST_PIXELS = 80_000_000
_TURNS = dict(enumerate(map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), 2))
"""The rotation or reflection of an image, by its EXIF orientation 2 to 8."""


def save_image(image: np.ndarray, path: str | Path) -> None:
    """Writes a uint8 image (height, width, 3) as PNG, atomically; folders are made as needed."""
    write_atomically(Path(path), lambda temporary: Image.fromarray(image).save(temporary, "PNG"))


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder and its subfolders, sorted by name, with 9 before 10. Hidden files are omitted."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted((path for path in files if not path.name.startswith(".")), key=_natural)


def _natural(path: Path) -> list[str | int]:
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", path.as_posix()))]


def rgb(file: Path | bytes) -> Image.Image:
    """An image as in the model's training: its first frame, upright, on a white background, with 8 bits a channel.

    This is how img2dataset downloaded LAION's images. Pillow's own conversion turns transparent pixels black or shows
    hidden colours, and turns 16-bit images white.

    Raises:
        ValueError: the file is no image of `FORMATS`, is broken, or has more than `MOST_PIXELS` pixels.
    """
    try:
        image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,}")
        return _rgb(image)
    except Exception as error:  # for broken files Pillow raises errors of many classes
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
    except Exception:  # broken EXIF data: the image is not rotated
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray values of 16 bits, 32 bits or floats as 8 bits. The largest value of the type becomes white."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        gray = values >> 8
    else:  # the file does not state the largest value
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
        broken: files that cannot be read are skipped, and added here with the reason.

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
    """Decodes PNG bytes to a uint8 array (height, width, 3)."""
    return np.asarray(rgb(png))
