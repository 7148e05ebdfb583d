"""Tables on disk, and whether a file can be written before expensive work begins.

    save_table(table, "runs/tiny/sweep.parquet")
    table = load_table("runs/tiny/sweep.parquet")
    check_writable("edit.safetensors", size=20_000_000)

Tables are parquet, written atomically (`memsub.io.files`).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import pyarrow

from memsub.io.files import LONGEST_NAME, beside, write_atomically


def save_table(table: pd.DataFrame, path: str | Path) -> None:
    """Writes parquet, atomically; folders are made as needed."""
    write_atomically(Path(path), lambda temporary: table.to_parquet(temporary))


def load_table(path: str | Path) -> pd.DataFrame:
    """Reads parquet.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or is not parquet.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no table at {path}.")
    try:
        return pd.read_parquet(path)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:  # the last of pandas' metadata
        raise ValueError(f"{path} is truncated or no parquet file: {error}.") from error


def check_writable(path: str | Path, size: int = 0) -> None:
    """Checks, before expensive work, that a file can be written. It leaves nothing behind and makes no folder.

    Args:
        size: smallest expected size of the file in bytes.

    Raises:
        OSError: the file cannot be written, or the disk has too little space; the message says why.
    """
    path = Path(path).absolute()
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise OSError(f"{path} cannot be written: File name too long, more than {LONGEST_NAME} bytes.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder. Name a file.")
    if path.exists() and not path.is_file():  # /dev/null, say, whose place a file would take
        raise OSError(f"{path} cannot be written: it is a device or pipe. Name a file.")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written: it is read-only. Name another file.")
    try:
        folder = next(folder for folder in path.parents if folder.exists())
        with beside(folder / path.name):
            pass
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}.") from error
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(f"{path} takes {size / 1e6:,.0f} MB, but {free / 1e6:,.0f} MB are free there: make room first.")
