"""Prompt tables.

prompts = load_prompts("tiny")   # "sd14", "sd20", or a file of captions
prompts.memorized                # captions of the verbatim pairs
prompts.ordinary                 # captions of training images that were not repeated
prompts.of("heldout")            # captions that it was not trained on
prompts.images("verbatim")       # the training images, uint8 (n, h, w, 3)
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from .io.lists import KEPT, SUFFIXES, kind_of, read_rows


@dataclass(frozen=True)
class Prompts:
    """A table of prompts.

    Attributes:
        table: columns prompt and kind. A world adds image (PNG bytes), the testbed also group, exposures and content;
            published lists add index and url.
        memorized_kinds: kinds whose captions count as memorized.
    """

    table: pd.DataFrame
    memorized_kinds: tuple[str, ...] = ("verbatim",)

    @cached_property
    def memorized(self) -> list[str]:
        """Captions whose training image the model reproduces verbatim."""
        return self.memorized_rows["prompt"].tolist()

    @property
    def memorized_rows(self) -> pd.DataFrame:
        """The rows of `memorized`, in order."""
        return self.table[self.table["kind"].isin(self.memorized_kinds)].reset_index(drop=True)

    @cached_property
    def ordinary(self) -> list[str]:
        """Captions of training images that were not repeated."""
        return self.of("ordinary")

    def rows(self, kind: str) -> pd.DataFrame:
        """The rows of one kind, in order.

        Raises:
            ValueError: the table holds no such kind.
        """
        kinds = list(self.table["kind"].unique())
        if kind not in kinds:
            close = difflib.get_close_matches(kind, kinds, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"no prompts of kind {kind!r}.{hint} This table holds: {', '.join(kinds)}.")
        return self.table[self.table["kind"] == kind].reset_index(drop=True)

    def of(self, kind: str) -> list[str]:
        """The captions of one kind, in order."""
        return self.rows(kind)["prompt"].tolist()

    def images(self, kind: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Images of rows `start` to `stop` of a kind, which a model may have been trained on: uint8 (n, h, w, 3).
        Raises ValueError for a table without images, as of a list in a file, and like `rows`."""
        from .io.images import decode_png

        if "image" not in self.table:
            raise ValueError("this list has no images: read those of a folder (docs/images.md).")
        return np.array([decode_png(png) for png in self.rows(kind)["image"][start:stop]])


def read_prompts(path: str | Path, of: Literal["memorized", "ordinary", "any"] = "memorized") -> pd.DataFrame:
    """A prompt list in a file.

    Reads the forms in `io.lists.FORMS`: text, tables and JSON with a column `caption` (or `prompt`, `text`). It keeps
    addresses (`url`), numbers (`index`), types (`type`, `overfit_type` or `kind`), statistics (`mean_sscd`, `max_sscd`)
    and other wordings (`rephrased`). Rows without a caption are skipped, with a warning that names them.

    Args:
        of: what the list is of. Of a list of memorized captions, rows that it marks as not memorized (type N) are
            omitted, with a warning; a list of ordinary captions must not mark any as memorized.

    Returns:
        Columns prompt, kind ("verbatim", "template", "N", or "memorized" if the list gives no type), and the columns
        of `io.lists.KEPT` that the list has.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another form, holds no captions, or marks ordinary ones as memorized.
    """
    table = pd.DataFrame(read_rows(Path(path))).convert_dtypes()  # else numbers become floats beside a list without
    table = table.assign(prompt=table["prompt"].astype(str), kind="memorized")
    if "type" in table:
        kinds = [kind_of(named) for named in table["type"]]
        table = table.assign(kind=[kind or "memorized" for kind in kinds])
        marked = table["prompt"][[kind in KINDS for kind in kinds]]
        if of == "ordinary" and len(marked):
            raise ValueError(
                f"{path} marks {len(marked)} of {len(table)} captions as memorized, such as {marked.iloc[0][:60]!r}: "
                "leave them out of a list of captions that are not."
            )
        if of == "memorized" and (omitted := kinds.count("N")):
            table = table[table["kind"] != "N"]
            warnings.warn(f"{path}: {omitted} captions marked as not memorized (type N) are omitted.", stacklevel=2)
    if table.empty:
        raise ValueError(f"{path} holds no captions that it does not mark as not memorized (type N).")
    return table[[c for c in ("prompt", "kind", *KEPT) if c in table and c != "type"]].reset_index(drop=True)


KINDS = ("verbatim", "template", "memorized")
"""Kinds of memorized captions; "memorized" if nothing more is known."""


def load_prompts(source: str | Path | Mapping[Any, str | Path]) -> Prompts:
    """The prompts that belong to a model, or a list in a file.

    Args:
        source: "tiny"; "sd14" or "sd20" (lists fetched on first use, see `memsub.io.downloads`); a file
            (`read_prompts`) whose captions all count as memorized; or a mapping of "memorized", "ordinary" and
            "heldout" to one file each.

    Raises:
        ValueError: there is no such list (the message offers close matches), no such kind, or no prompts in a file.
        FileNotFoundError: there is no such file.
        ConnectionError: a list cannot be fetched; the message says which file to put where.
    """
    if isinstance(source, Mapping):
        kinds = ("memorized", "ordinary", "heldout")
        wrong = [{key: file} for key, file in source.items() if key not in kinds or not _is_path(file)]
        if wrong or not source:
            raise ValueError(f"a file for one or more of {', '.join(kinds)} expected; got {[*wrong, {}][0]!r:.80}.")
        return _from_files({kind: Path(path) for kind, path in source.items()})
    if not _is_path(source):
        raise ValueError(f"a list's name or file expected; got {type(source).__name__} {str(source)[:60]!r}.")
    name = str(source)
    if Path(name).suffix.lower() in SUFFIXES:
        return _from_files({"memorized": Path(name)})
    from .io.downloads import SOURCES, fetch  # only published lists need the network libraries
    from .models import MODELS, find_model, world_of  # imports torch; a list in a file does not need it

    if name in SOURCES:
        return _from_files({kind: fetch(name, kind) for kind in SOURCES[name]})
    if (name in MODELS or Path(name).is_dir()) and (world := world_of(find_model(name))):
        return world.prompts()
    if Path(name).is_file():  # of a kind that is refused by its name
        return _from_files({"memorized": Path(name)})
    names = list(dict.fromkeys([*(n for n, model in MODELS.items() if model.world), *SOURCES]))
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"no prompt list named {name!r}.{hint} Expected one of {', '.join(names)}, or a file.")


def _is_path(given: object) -> bool:
    return isinstance(given, (str, Path)) and all(len(part) < 256 for part in Path(given).parts)  # of a file system


def _from_files(files: dict[str, Path]) -> Prompts:
    parts = [read_prompts(path, "memorized" if kind == "memorized" else "ordinary") for kind, path in files.items()]
    parts = [p if kind == "memorized" else p.assign(kind=kind) for kind, p in zip(files, parts, strict=True)]
    for (kind, one), (other, another) in combinations(zip(files, parts, strict=True), 2):
        if shared := set(one["prompt"]) & set(another["prompt"]):
            about = f"{len(shared)} captions are {kind} in {files[kind]} and {other} in {files[other]}, such as "
            about += f"{min(shared)[:60]!r}: what is compared has to differ. Leave them out of one list."
            if kind == "memorized" and len(shared) == min(one["prompt"].nunique(), another["prompt"].nunique()):
                raise ValueError(about)
            warnings.warn(about, stacklevel=3)
    return Prompts(pd.concat(parts, ignore_index=True), KINDS)
