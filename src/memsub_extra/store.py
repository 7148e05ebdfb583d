"""Artifacts in a folder. Each is computed once, and cached under a key of the content that it depends on.

    CAPTURES = Kind("grid", version=1)
    store = Store("runs/tiny/artifacts")
    stats = store.get(CAPTURES, ActivationStats, make, prompts=prompts, seed=0)     # computed once, then read
    table = store.table(Kind("sweep"), make, model=fingerprint, captions=captions, images=images)
    images = store.arrays(Kind("samples"), make, ...)

A key is a digest of the kind's name and version and of all named values: numbers and text, lists and mappings of them,
the bytes of arrays, the `fingerprint` of objects that have one, the name and version of functions. Different content
gives a different file. Code is not part of the key: raise the version of a kind when its code computes something else.
Files are named `<kind>/<digest>.<suffix>`; `<digest>.json` lists the values of the key.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch

from memsub.io.distributed import is_main, wait
from memsub.io.files import load_tensors, save_artifact, save_json
from memsub_extra.files import load_table, save_table


class Artifact(Protocol):
    """Saves itself to a file and loads from one."""

    def save(self, path: Path) -> None: ...

    @classmethod
    def load(cls, path: Path) -> Any: ...


A = TypeVar("A")
T = TypeVar("T", bound=Artifact)


@dataclass(frozen=True)
class Kind:
    """A kind of artifact.

    Attributes:
        name: name of its folder.
        version: raise it when the code that computes these artifacts gives other results than before.
    """

    name: str
    version: int = 1


class Store:
    """A folder of artifacts."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, kind: Kind, suffix: str, /, **of: Any) -> Path:
        """The path of the artifact that depends on these values; it need not exist.

        Raises:
            TypeError: the content of a value is unknown, see `describe`.
        """
        return self._path(kind, suffix, describe(of))

    def _path(self, kind: Kind, suffix: str, described: dict[str, Any]) -> Path:
        key = [kind.name, kind.version, described]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / kind.name / f"{digest}{suffix}"

    def get(self, kind: Kind, artifact: type[T], make: Callable[[], T], /, **of: Any) -> T:
        """Reads an artifact if it exists, else makes and saves it.

        Raises:
            TypeError: the content of a value is unknown, see `describe`.
            ValueError: the file is truncated; the message names it.
        """
        return self._get(kind, ".safetensors", make, lambda made, path: made.save(path), artifact.load, of)

    def table(self, kind: Kind, make: Callable[[], pd.DataFrame], /, **of: Any) -> pd.DataFrame:
        """Reads a table if it exists, else makes and saves it. Raises as `get`."""
        return self._get(kind, ".parquet", make, save_table, load_table, of)

    def arrays(self, kind: Kind, make: Callable[[], dict[str, np.ndarray]], /, **of: Any) -> dict[str, np.ndarray]:
        """Reads named arrays if they exist, else makes and saves them. Raises as `get`."""

        def save(made: dict[str, np.ndarray], path: Path) -> None:
            tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in made.items()}
            save_artifact(tensors, path, kind.name, {})

        def load(path: Path) -> dict[str, np.ndarray]:
            return {name: tensor.numpy() for name, tensor in load_tensors(path, kind.name)[0].items()}

        return self._get(kind, ".safetensors", make, save, load, of)

    def _get(
        self,
        kind: Kind,
        suffix: str,
        make: Callable[[], A],
        save: Callable[[A, Path], None],
        load: Callable[[Path], A],
        of: dict[str, Any],
    ) -> A:
        described = describe(of)  # once, because hashing a model's weights takes as long as a small artifact
        path = self._path(kind, suffix, described)
        missing = not path.is_file()
        wait()  # until every process has looked, so that all of them see the same
        if missing:
            made = make()  # all processes take part
            if is_main():
                save(made, path)
                about = {"artifact": f"{kind.name}, version {kind.version}"} | readable(described)
                save_json(about, path.with_suffix(".json"))
            wait()
        return load(path)


def describe(value: Any) -> Any:
    """A value as JSON. Equal content gives equal JSON.

    Raises:
        TypeError: the content of the value is unknown.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        value = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # numpy has no bfloat16
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype} {value.shape} {digest}"
    if isinstance(value, Mapping):
        return {str(key): describe(v) for key, v in value.items()}
    if (fingerprint := getattr(value, "fingerprint", None)) is not None:  # asked for once: it reads all weights
        return f"{type(value).__name__} {fingerprint}"
    if isinstance(value, (Sequence, range)):
        return [describe(v) for v in value]
    if hasattr(value, "model_dump"):  # a pydantic model, of numbers and text
        return {"type": type(value).__name__, **describe(value.model_dump())}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: describe(getattr(value, field.name)) for field in fields(value)}
        return {"type": type(value).__name__, **parts}
    return _describe_function(value)


def readable(described: Any) -> Any:
    """The result of `describe`, shortened for readers: long lists become their beginning and a digest."""
    if isinstance(described, dict):
        return {key: readable(value) for key, value in described.items()}
    if isinstance(described, list) and len(described) > 8:
        digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
        return [*map(readable, described[:3]), f"... {len(described)} in all, {digest}"]
    return [readable(value) for value in described] if isinstance(described, list) else described


def _describe_function(value: Any) -> Any:
    """Describes a function by its name and its attribute `version` (default 1), and a partial also by its arguments.

    Raises:
        TypeError: it is no function, or a closure, whose result depends on outer variables.
    """
    if isinstance(value, partial):
        return [describe(part) for part in (value.func, value.args, value.keywords)]
    if inspect.isfunction(value) and not value.__closure__:
        name = f"{value.__module__}:{value.__qualname__}"
        if "<" not in name and value.__module__ != "__main__":
            return f"{name}, version {getattr(value, 'version', 1)}"
        # Notebooks redefine functions under the same name, and lambdas have no name: describe these by their code.
        return f"{name}, code {_code_digest(value.__code__)}"
    what = "function that uses variables around it" if inspect.isfunction(value) else type(value).__name__
    raise TypeError(f"the content of a {what} is unknown: give it an attribute `fingerprint`.")


def _code_digest(code: CodeType) -> str:
    constants = [_code_digest(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()[:16]
