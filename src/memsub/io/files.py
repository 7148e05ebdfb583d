"""Artifacts on disk: written atomically, read with a check of what they are.

    save_json({"steps": 10}, "runs/tiny/edit.json")
    about = load_json("runs/tiny/edit.json")

After a failure or a kill, a file is either complete or as it was before. Tensors are stored as safetensors, the rest
as JSON and text (images: `memsub.io.images`). Nothing is pickled. Files may come from strangers: any invalid content
raises a ValueError that names the file.
"""

from __future__ import annotations

import json
import math
import os
import platform
import reprlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch

FORMAT = 2
"""Version of the layout of artifacts; files of another version are refused."""
LONGEST_NAME = 200
"""Bytes of a file name. Most disks allow 255, and checkpoints append to the name of their file."""
_TIDY: set[Path] = set()
"""Folders that this process has cleared of the temporary files of killed writers."""


def save_tensors(tensors: Mapping[str, torch.Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file, atomically; folders are made as needed."""
    from safetensors.torch import save_file  # imports torch; a mistake in a command should be reported without it

    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_atomically(Path(path), lambda temporary: save_file(contiguous, temporary, metadata))


def save_artifact(tensors: Mapping[str, torch.Tensor], path: str | Path, kind: str, about: dict) -> None:
    """Writes tensors with their kind and a description (`about`), atomically.

    All metadata are in one entry, because safetensors writes several entries in any order, and equal artifacts should
    have equal bytes.
    """
    text = json.dumps({"kind": kind, "format": FORMAT} | about, default=_number)
    save_tensors(tensors, path, {"about": text})


def _number(value: Any) -> Any:
    """A number of numpy or torch as one of Python; raises ValueError for anything else."""
    if not hasattr(value, "item"):
        raise ValueError(f"text, numbers and lists of them can be saved; got a {type(value).__name__}: {value!r:.60}.")
    return value.item()


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Reads the tensors and `about` of an artifact.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, holds another kind of artifact, or was written by another version of memsub.
    """
    with _opened(path, kind, "pt") as (file, about):
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


def check_artifact(path: str | Path, kind: str) -> None:
    """Raises the errors of `load_tensors`, but reads only the file's header, and needs no torch."""
    with _opened(path, kind, "numpy"):
        pass


@contextmanager
def _opened(path: str | Path, kind: str, framework: str) -> Iterator[tuple[Any, dict]]:
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} at {path}.")
    try:
        with safe_open(path, framework) as file:
            yield file, _about(file, path, kind)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}.") from error


def _about(file: Any, path: str | Path, kind: str) -> dict:
    """The description in an open artifact; raises ValueError for another kind or version."""
    about = parse_json((file.metadata() or {}).get("about", "{}"), f"the metadata of {path}")
    if not isinstance(about, dict) or about.get("kind") != kind:
        what = about.get("kind") if isinstance(about, dict) else None
        what = printable(what)[:40] if isinstance(what, str) else "no artifact of memsub"
        raise ValueError(f"{path} holds {what}, expected {kind}.")
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{path} was written by another version of memsub (format {str(about.get('format', 1))[:40]}, expected "
            f"{FORMAT}): make it again."
        )
    return about


@contextmanager
def as_written(path: str | Path, kind: str) -> Iterator[None]:
    """Turns any error within it into a ValueError that names the file: it may come from a stranger."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError):
        raise ValueError(f"{path} is no {kind} as memsub writes it: parts are missing, or of other types.") from None


def number_of_weights(layer: str, shape: object) -> int:
    """Number of weights of a shape; raises ValueError for an invalid shape, or more weights than int32 can count."""
    if isinstance(shape, list) and 1 <= len(shape) <= 8 and all(type(n) is int and n > 0 for n in shape):
        size = math.prod(shape)
        if size < 2**31:
            return size
    raise ValueError(f"layer {printable(layer)} of this edit: {reprlib.repr(shape)} is no shape of a layer.")


def load_json(path: str | Path) -> Any:
    """Reads JSON.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or is not JSON.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no JSON file at {path}.")
    return parse_json(Path(path).read_bytes(), str(path))


def parse_json(text: str | bytes, source: str) -> Any:
    """Parses JSON; raises a ValueError that names the source for invalid JSON, deep nesting or huge numbers."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is truncated or no JSON: {error}.") from None


def save_text(text: str, path: str | Path) -> None:
    """Writes UTF-8 text, atomically; folders are made as needed."""
    write_atomically(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save_json(value: Any, path: str | Path) -> None:
    """Writes JSON, atomically; folders are made as needed."""
    save_text(json.dumps(value, indent=1) + "\n", path)


def printable(text: object) -> str:
    """Text for a terminal, in one line. Characters that are invisible, such as terminal escapes, appear as codes."""
    line = " ".join(part.strip() for part in str(text).splitlines())
    seen = (c if c.isprintable() or c in "\u200c\u200d" else c.encode("unicode_escape").decode() for c in line)
    return "".join(seen)  # (the two join letters and emoji)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with the path of a temporary file in a new folder beside `path`, then moves that file to `path`.
    Raises:
        OSError: the file could not be written, for example because the disk is full. `path` is unchanged.
    """
    path = path.expanduser()
    try:
        with beside(path) as temporary:
            write(temporary)
            # safetensors makes files that only the user may read; the umask decides about ours.
            temporary.chmod(temporary.with_name("mode").stat().st_mode & 0o777)
            os.replace(temporary, path)
    except (OSError, SafetensorError, pyarrow.ArrowException) as error:  # such as a full disk
        raise OSError(f"{path} could not be written, and is as it was before: {error}") from error


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """The path of a temporary file on the same disk, in a new folder with an unpredictable name.

    The folder is locked while its writer lives; the next writer removes folders without a lock. Names contain the
    machine's name, because on a network disk each machine may see its own locks only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".memsub-{platform.node()[:40].replace(os.sep, '-')}-"
    if path.parent not in _TIDY:
        _TIDY.add(path.parent)
        for left in [entry for entry in path.parent.iterdir() if entry.name.startswith(start)]:
            with exclusive(left) as mine:
                if mine and time.time() - left.stat().st_mtime > 1:  # a new writer has its lock within a second
                    shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=start, dir=path.parent))
    try:
        with exclusive(folder):
            folder.joinpath("mode").touch()
            yield folder / "part"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def exclusive(path: Path) -> Iterator[bool | None]:
    """Locks a file or folder. Yields True, False if another process holds the lock, or None if locks do not exist here.

    The lock ends with its process, also if that is killed. Windows and some network disks have no such locks.
    """
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        yield None
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine: bool | None = True
        except OSError as error:
            mine = False if isinstance(error, BlockingIOError) else None
        yield mine
    finally:
        os.close(handle)
