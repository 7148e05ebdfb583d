"""Artifacts on disk: written atomically, read with a check of what they are.

A file is there whole, or as it was before. Tensors are safetensors, tables parquet, the rest JSON, text and PNG: no
pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = 2
"""Of artifacts; another number is another set of names in them."""


def save_tensors(tensors: Mapping[str, torch.Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file, atomically; folders are made as needed."""
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    _replace(Path(path), lambda temporary: save_file(contiguous, temporary, metadata))


def save_artifact(tensors: Mapping[str, torch.Tensor], path: str | Path, kind: str, about: dict) -> None:
    """Tensors with what they are and what made them.

    All of it is one entry: safetensors would write several in any order, and equal artifacts should be equal to the
    byte.
    """
    save_tensors(tensors, path, {"about": json.dumps({"kind": kind, "format": FORMAT} | about)})


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and `about` of an artifact of one kind.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, no artifact of this kind, or of another version of memsub.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {kind} at {path}.")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            if about.get("kind") != kind:
                raise ValueError(f"{path} holds {about.get('kind') or 'no artifact of memsub'}, expected {kind}.")
            if about.get("format") != FORMAT:
                raise ValueError(
                    f"{path} was written by another version of memsub (format {about.get('format', 1)}, expected "
                    f"{FORMAT}): make it again."
                )
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}.") from error


def save_table(table: pd.DataFrame, path: str | Path) -> None:
    """Writes parquet, atomically; folders are made as needed."""
    _replace(Path(path), lambda temporary: table.to_parquet(temporary))


def load_table(path: str | Path) -> pd.DataFrame:
    """Reads parquet.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated or something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no table at {path}.")
    try:
        return pd.read_parquet(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is truncated or no parquet file: {error}.") from error


def load_json(path: str | Path) -> Any:
    """Reads JSON.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated or something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no JSON file at {path}.")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or no JSON: {error}.") from error


def save_image(image: np.ndarray, path: str | Path) -> None:
    """Writes a uint8 image (height, width, 3) as PNG, atomically; folders are made as needed."""
    _replace(Path(path), lambda temporary: Image.fromarray(image).save(temporary, "PNG"))


def image_files(folder: Path) -> list[Path]:
    """PNG and JPEG files of a folder and those below it, by name."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))


def read_images(files: Sequence[Path], side: int) -> np.ndarray:
    """Pictures, resized: uint8 (n, side, side, 3).

    Raises:
        ValueError: a file is no picture; names it.
    """
    images = np.empty((len(files), side, side, 3), np.uint8)
    for i, file in enumerate(files):
        try:
            picture = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            images[i] = np.asarray(picture)
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{file} is truncated or no picture: {error}.") from None
    return images


def save_text(text: str, path: str | Path) -> None:
    """Writes UTF-8 text, atomically; folders are made as needed."""
    _replace(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_json(value: Any, path: str | Path) -> None:
    """Writes JSON, atomically; folders are made as needed."""
    save_text(json.dumps(value, indent=1) + "\n", path)


def check_writable(path: str | Path) -> None:
    """Raises OSError if a file cannot be written there; to be called before expensive work."""
    path = Path(path)
    probe = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        probe.unlink(missing_ok=True)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError, pyarrow.ArrowException) as error:  # such as a full disk
        raise OSError(f"{path} could not be written, and is as it was before: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
