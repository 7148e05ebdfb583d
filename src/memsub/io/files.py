"""Artifacts on disk: written atomically, read with a check of what they are.

    save_table(table, "runs/tiny/sweep.parquet")
    table = load_table("runs/tiny/sweep.parquet")

After a failure or a kill a file is either complete or as it was before. Tensors are safetensors, tables parquet, the
rest JSON and text (images: `memsub.io.images`). Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow
from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch

FORMAT = 2
"""Version of the names inside artifacts: files of another version are refused."""


def save_tensors(tensors: Mapping[str, torch.Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file, atomically; folders are made as needed."""
    from safetensors.torch import save_file  # imports torch, which mistakes in a command need not wait for

    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_atomically(Path(path), lambda temporary: save_file(contiguous, temporary, metadata))


def save_artifact(tensors: Mapping[str, torch.Tensor], path: str | Path, kind: str, about: dict) -> None:
    """Writes tensors together with their kind and with what made them (`about`), atomically.

    The metadata is one entry: safetensors writes several entries in any order, and equal artifacts should be equal to
    the byte.
    """
    save_tensors(tensors, path, {"about": json.dumps({"kind": kind, "format": FORMAT} | about)})


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Reads the tensors and `about` of an artifact.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, holds another kind of artifact, or was written by another version of memsub.
    """
    _find(path, kind)
    try:
        with safe_open(path, "pt") as file:
            about = _about(file, path, kind)
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}.") from error


def check_artifact(path: str | Path, kind: str) -> None:
    """Raises as `load_tensors`, from the file's header alone, without torch."""
    _find(path, kind)
    try:
        with safe_open(path, "numpy") as file:
            _about(file, path, kind)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}.") from error


def _find(path: str | Path, kind: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no {kind} at {path}.")


def _about(file: Any, path: str | Path, kind: str) -> dict:
    """What an open artifact says of itself, if it is of that kind and of this version."""
    about = json.loads((file.metadata() or {}).get("about", "{}"))
    if about.get("kind") != kind:
        raise ValueError(f"{path} holds {about.get('kind') or 'no artifact of memsub'}, expected {kind}.")
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path} was written by another version of memsub (format {about.get('format', 1)}, expected "
            f"{FORMAT}): make it again."
        )
    return about


def save_table(table: pd.DataFrame, path: str | Path) -> None:
    """Writes parquet, atomically; folders are made as needed."""
    write_atomically(Path(path), lambda temporary: table.to_parquet(temporary))


def load_table(path: str | Path) -> pd.DataFrame:
    """Reads parquet.

    Raises:
        FileNotFoundError: there is no such file.
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
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no JSON file at {path}.")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or no JSON: {error}.") from error


def save_text(text: str, path: str | Path) -> None:
    """Writes UTF-8 text, atomically; folders are made as needed."""
    write_atomically(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_json(value: Any, path: str | Path) -> None:
    """Writes JSON, atomically; folders are made as needed."""
    save_text(json.dumps(value, indent=1) + "\n", path)


def check_writable(path: str | Path, size: int = 0) -> None:
    """To be called before expensive work: nothing is left behind, no folder is made.

    Args:
        size: bytes that the file will take at least.

    Raises:
        OSError: a file cannot be written there, or the disk is too full for it; says why.
    """
    path = Path(path).absolute()
    if path.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder. Name a file.")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written: it is read-only. Name another file.")
    try:
        folder = next(folder for folder in path.parents if folder.exists())
        probe = folder / f"{path.name}.{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}.") from error
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(f"{path} takes {size / 1e6:,.0f} MB, but {free / 1e6:,.0f} MB are free there: make room first.")


def printable(text: object) -> str:
    """Text for a terminal, in one line: characters that are not to be seen, such as terminal escapes, by their code."""
    line = " ".join(part.strip() for part in str(text).splitlines())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with the path of a temporary file beside `path`, then moves that file to `path`.

    Raises:
        OSError: the file could not be written, on a full disk for example. What was at `path` is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError, pyarrow.ArrowException) as error:  # such as a full disk
        raise OSError(f"{path} could not be written, and is as it was before: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
