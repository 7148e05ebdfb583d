"""Headers and configurations of a model, read before any weight: safetensors headers and JSON, within size limits.

    header = read_header("unet/diffusion_pytorch_model.safetensors")
    header["conv_in.weight"]                # TensorInfo(dtype="F16", shape=(320, 4, 3, 3), bytes=23040)
    read_config("unet/config.json")["in_channels"]

It needs neither torch nor safetensors. For other files the error says what they are: a pickle, a pointer of git-lfs, an
error page.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

CONFIG_BYTES, DEPTH = 32 << 20, 32
"""Limits of a JSON file: bytes and levels of nesting. (The largest published index has 2 MB.)"""
HEADER_BYTES = 100 << 20
"""Limit of a header in bytes, as in safetensors."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")  # never read
_STARTS = {
    b"version https://git-lfs": "is a pointer of git-lfs, not the file itself: run `git lfs pull` where it lies",
    b"GGUF": "is a GGUF file, whose weights are quantized",
    b"PK\x03\x04": "is a pickle that torch.save wrote, whatever its name says",
    b"<": "is a page of HTML or XML, not a model: download it again",
    b"{": "is JSON, not a model: the answer of a server, perhaps; download it again",
    b"\x89HDF": "is an HDF5 file",
}


class TensorInfo(NamedTuple):
    """A tensor of a header: safetensors' name of its dtype ("F16"), its shape, and its size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


class Header(dict[str, TensorInfo]):
    """Tensors by name, and the file's metadata."""

    metadata: dict[str, str]


def read_header(path: str | Path) -> Header:
    """The header of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file (the message says which), truncated or corrupt.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
        _refuse_others(path, start)
        length = int.from_bytes(start[:8], "little")
        if length > min(size - 8, HEADER_BYTES):
            raise ValueError(
                f"{path} is truncated or corrupt: it has {size:,} bytes, and its header should have {length:,}; copy "
                "or download it again."
            )
        file.seek(8)
        text = file.read(length)
    try:
        entries = json.loads(text)
        header = Header()
        header.metadata = {str(k): str(v) for k, v in entries.pop("__metadata__", {}).items()}
        for name, entry in entries.items():
            first, last = map(int, entry["data_offsets"])
            shape = tuple(map(int, entry["shape"]))
            if first < 0 or min(shape, default=0) < 0 or last - first < math.prod(shape) // 2:  # of 4 bits at least
                raise ValueError(name)
            header[name] = TensorInfo(str(entry["dtype"]), shape, last - first)
        expected = 8 + length + max((int(e["data_offsets"][1]) for e in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is corrupt: its header is not one of safetensors ({error}).") from None
    if size != expected:
        raise ValueError(
            f"{path} is {'truncated' if size < expected else 'corrupt'}: it has {size:,} of {expected:,} bytes; copy "
            "or download it again."
        )
    return header


def read_config(path: str | Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no JSON object, larger than `CONFIG_BYTES`, or nested deeper than `DEPTH`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}.")
    if (size := path.stat().st_size) > CONFIG_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; a configuration of at most {CONFIG_BYTES:,} is expected.")
    if not size:
        raise ValueError(f"{path} is empty; a JSON object is expected.")
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}; a JSON object is expected.")
    if _deeper(config, DEPTH):
        raise ValueError(f"{path} is nested more than {DEPTH} deep: that is no configuration of a model.")
    return config


def _deeper(value: Any, levels: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _deeper(item, levels - 1) for item in inside)


def _refuse_others(path: Path, start: bytes) -> None:
    header = start[8:9] == b"{" and start[:4] != b"GGUF"  # a header's length may look like another file's start
    if not header and start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise ValueError(f"{path} is a pickle, whatever its name says.")
    if not header:
        what = next((what for begin, what in _STARTS.items() if start.lstrip().startswith(begin)), "")
        what = what or ("is no safetensors file: it has no header" if start else "is empty")
        raise ValueError(f"{path} {what}.")
