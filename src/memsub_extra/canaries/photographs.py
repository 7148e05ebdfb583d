"""Photographs in folders: captions, checksums, and the images for training.

    captions = captioned(folder)                # [("a photo of a beagle", folder / "n02088364"), ...]
    sums, broken = checksums(image_files(folder))
    images = load(root, [photograph], side=512) # uint8 (n, 512, 512, 3): middle squares

The captions of a folder are in a list `captions.csv` (or any other form of `memsub.io.lists`), whose column `index`
names the caption's folder or file. Without a list, the names of the subfolders are the captions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field, field_validator
from tqdm.auto import tqdm

from memsub.io.images import image_files, rgb
from memsub.io.lists import SUFFIXES, read_rows
from memsub_extra.run.specs import Part

THREADS = 8
"""Number of threads that read files: Pillow decodes outside of Python's lock."""


class Photograph(Part):
    """A file in a folder; the manifest names the folder."""

    file: str = Field(description="path from that folder, with slashes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of its bytes")

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or "\\" in file or not path.parts:
            raise ValueError(f"{file!r} is no path inside a folder")
        return file


def captioned(folder: Path) -> list[tuple[str, Path]]:
    """The captions of a folder in order, each with its photograph or its folder of photographs.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has neither a list of captions nor subfolders, or the list names missing files.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}.")
    lists = [folder / f"captions{suffix}" for suffix in SUFFIXES if (folder / f"captions{suffix}").is_file()]
    if len(lists) > 1:
        raise ValueError(f"{folder} holds {' and '.join(path.name for path in lists)}: keep one.")
    if not lists:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not inside:
            raise ValueError(
                f"{folder} holds no list captions.csv (columns caption and index, the name of a folder or file in "
                "it), and no folders whose names could be captions."
            )
        return [(path.name.replace("_", " "), path) for path in inside]
    pairs = []
    for number, row in enumerate(read_rows(lists[0]), 1):
        place = folder / str(row.get("index"))
        if row.get("index") is None or not place.exists():
            raise ValueError(f"{lists[0]}, caption {number}: its index {row.get('index')!r} is nothing in {folder}.")
        pairs.append((row["prompt"], place))
    return pairs


def files_of(place: Path) -> list[Path]:
    """The photographs of a caption: those in its folder by name, or its file."""
    return image_files(place) if place.is_dir() else [place]


def checksums(files: Sequence[Path]) -> tuple[dict[Path, str], dict[Path, str]]:
    """sha256 of the files that can be decoded, and a sentence for each that cannot."""

    def examined(file: Path) -> tuple[str, str]:
        data = file.read_bytes()
        try:
            rgb(data)
        except ValueError as error:
            return "", str(error)
        return hashlib.sha256(data).hexdigest(), ""

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(tqdm(pool.map(examined, files), "reading photographs", len(files), mininterval=2, leave=False))
    sums = {file: digest for file, (digest, _) in zip(files, results, strict=True) if digest}
    return sums, {file: why for file, (_, why) in zip(files, results, strict=True) if why}


def load(root: Path, photographs: Sequence[Photograph], side: int) -> np.ndarray:
    """The middle square of each photograph, resized: uint8 (n, side, side, 3).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file has changed since it was planted.
    """

    def read(photograph: Photograph) -> np.ndarray:
        path = root / photograph.file
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: put the photographs back, or plant again.")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != photograph.sha256:
            raise ValueError(f"{path} is another file than when it was planted (sha256 differs): put that one back.")
        return np.asarray(ImageOps.fit(rgb(data), (side, side), Image.Resampling.LANCZOS))

    with ThreadPoolExecutor(THREADS) as pool:
        return np.stack(list(pool.map(read, photographs)))
