"""Artifacts in a folder, each under a key made of the content of everything it is a function of. Knows no domain.

    store = Store("runs/tiny/artifacts")
    stats = store.get("grid", ActivationStats, make, prompts=prompts, seed=0)     # made once, then read
    table = store.table("sweep", make, model=fingerprint, captions=captions, images=images)
    images = store.arrays("samples", make, ...)

A key is a digest of values: numbers and text, lists and mappings of them, the bytes of arrays, the `fingerprint` of
objects that have one, and the code that makes the artifact (the module of `make` and every module of this package
that it imports, without comments and docstrings). A change in any of these gives another file, never a stale one.
Files lie at `<kind>/<digest>.<suffix>`; `<digest>.json` beside it says what the key was made of.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch

from .distributed import is_main, wait
from .files import load_table, load_tensors, save_artifact, save_json, save_table


class Artifact(Protocol):
    """Saves itself to a file and loads from one."""

    def save(self, path: Path) -> None: ...

    @classmethod
    def load(cls, path: Path) -> Any: ...


A = TypeVar("A")
T = TypeVar("T", bound=Artifact)


class Store:
    """A folder of artifacts."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, kind: str, suffix: str, made_by: Callable | None = None, /, **of: Any) -> Path:
        """Where an artifact lies that `made_by` makes of these values."""
        told = {"code": code_version(made_by) if made_by else None}
        told |= {name: describe(value) for name, value in of.items()}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / kind / f"{digest}{suffix}"

    def get(self, kind: str, artifact: type[T], make: Callable[[], T], /, **of: Any) -> T:
        """Reads an artifact if it is there, else makes and saves it.

        Raises:
            ValueError: the file is truncated; names it.
        """
        return self._get(kind, ".safetensors", make, lambda made, path: made.save(path), artifact.load, of)

    def table(self, kind: str, make: Callable[[], pd.DataFrame], /, **of: Any) -> pd.DataFrame:
        """Reads a table if it is there, else makes and saves it."""
        return self._get(kind, ".parquet", make, save_table, load_table, of)

    def arrays(self, kind: str, make: Callable[[], dict[str, np.ndarray]], /, **of: Any) -> dict[str, np.ndarray]:
        """Reads named arrays if they are there, else makes and saves them."""

        def save(made: dict[str, np.ndarray], path: Path) -> None:
            save_artifact({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in made.items()}, path, kind, {})

        def load(path: Path) -> dict[str, np.ndarray]:
            return {name: tensor.numpy() for name, tensor in load_tensors(path, kind)[0].items()}

        return self._get(kind, ".safetensors", make, save, load, of)

    def _get(
        self,
        kind: str,
        suffix: str,
        make: Callable[[], A],
        save: Callable[[A, Path], None],
        load: Callable[[Path], A],
        of: dict[str, Any],
    ) -> A:
        """All processes make it together, one saves it."""
        path = self.path(kind, suffix, make, **of)
        missing = not path.is_file()
        wait()  # until every process has looked
        if missing:
            made = make()
            if is_main():
                save(made, path)
                save_json(
                    {name: describe(value, readable=True) for name, value in of.items()}, path.with_suffix(".json")
                )
            wait()
        return load(path)


def describe(value: Any, readable: bool = False) -> Any:
    """A value as JSON that is equal for equal content.

    Args:
        readable: long lists as their beginning and digest, for people.

    Raises:
        TypeError: a value whose content cannot be told.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        held = value.detach().cpu()
        value = (held.float() if held.dtype == torch.bfloat16 else held).numpy()  # numpy has no bfloat16
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype} {value.shape} {digest}"
    if isinstance(value, Mapping):
        return {str(key): describe(v, readable) for key, v in value.items()}
    if hasattr(value, "fingerprint"):
        return f"{type(value).__name__} {value.fingerprint}"
    if isinstance(value, (Sequence, range)):
        if readable and len(value) > 8:
            digest = hashlib.sha256(json.dumps([describe(v) for v in value]).encode()).hexdigest()
            return [*(describe(v, readable) for v in value[:3]), f"... {len(value)} in all, {digest}"]
        return [describe(v, readable) for v in value]
    raise TypeError(f"cannot tell the content of a {type(value).__name__}: give it a property `fingerprint`.")


def code_version(function: Callable) -> str:
    """Digest of the module that defines a function and of all modules of its package that it depends on."""
    while isinstance(function, partial):
        function = function.func
    if getattr(sys.modules.get(function.__module__), "__file__", None):
        return module_version(function.__module__)
    code = function.__code__  # defined in a notebook
    return hashlib.sha256(code.co_code + repr(code.co_consts).encode()).hexdigest()[:16]


@cache
def module_version(module: str) -> str:
    """Digest of a module and of all modules of its package that it imports, without comments and docstrings."""
    package, seen, todo = module.partition(".")[0], {}, [module]
    while todo:
        name = todo.pop()
        file = getattr(sys.modules.get(name), "__file__", None)
        if name in seen or not file or name == package:  # the package itself imports everything
            continue
        seen[name], found = _parsed(name, file)
        todo += [m for m in found if m.partition(".")[0] == package]
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _parsed(name: str, file: str) -> tuple[str, list[str]]:
    """A module's code without comments and docstrings, and what it imports."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    found = imported(tree, name, file.endswith("__init__.py"))
    return _without_docstrings(tree), found


def imported(tree: ast.Module, module: str, is_package: bool) -> list[str]:
    """Absolute names of the modules that a module imports, also inside functions, and of what may be modules."""
    found = []
    base = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = base[: len(base) - node.level + 1] if node.level else []
            name = ".".join([*above, *([node.module] if node.module else [])])
            found += [name, *(f"{name}.{alias.name}" for alias in node.names)]
    return found


def _without_docstrings(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return ast.dump(tree)
