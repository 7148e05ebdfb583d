"""Prompt tables.

prompts = load_prompts("tiny")   # "sd14", "sd20", or a file of captions
prompts.memorized                # captions of the verbatim pairs
prompts.ordinary                 # captions the model saw a few times among tens of thousands
prompts.of("heldout")            # captions it never saw
prompts.images("verbatim")       # the training images, uint8 (n, h, w, 3)
subsets(100, size=10, count=10)  # indices of ten subsets of ten prompts that share none
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .downloads import SOURCES, fetch
from .files import load_table
from .testbed import dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompts:
    """A table of prompts.

    Attributes:
        table: columns prompt and kind; for the embedded model also group, exposures, content and image (PNG bytes), for
            published lists index and url.
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
        """The captions of one kind."""
        return self.rows(kind)["prompt"].tolist()

    def images(self, kind: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Training images (scenes, for `heldout`) of rows `start` to `stop` of a kind: uint8, (n, height, width, 3)."""
        return np.array([dataset.decode(png) for png in self.rows(kind)["image"][start:stop]])

    def without_near_duplicates(self) -> Prompts:
        """The same without memorized captions that nearly repeat an earlier one."""
        memorized = self.table[self.table["kind"].isin(self.memorized_kinds)]
        repeats = [i is not None for i in near_duplicates(memorized["prompt"].tolist())]
        return Prompts(self.table.drop(memorized.index[repeats]).reset_index(drop=True), self.memorized_kinds)


def read_prompts(path: str | Path) -> pd.DataFrame:
    """A published prompt list.

    Reads a caption a line (`.txt`), JSON lines with `caption` (`.jsonl`), `;`- or `,`-separated tables with `Caption`
    (`.csv`), and parquet with `caption`. Addresses (`url`), numbers (`index`) and types (`type` or `overfit_type`) are
    kept.

    Returns:
        Columns prompt, kind ("verbatim", "template", or "memorized" where the list does not say), and url and index
        where the list has them. Rows that the list marks as not memorized (type N) are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty, is not what its name says, or has no column of captions; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no prompt file at {path}.")
    readers = {".txt": _read_lines, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": load_table}
    if path.suffix not in readers:
        raise ValueError(f"{path} is of unknown kind {path.suffix!r}; expected one of {', '.join(readers)}.")
    try:
        table = readers[path.suffix](path)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text, as a {path.suffix} file should be.") from None
    table = table.rename(columns=str.lower).rename(columns={"overfit_type": "type"})
    if "caption" not in table:
        raise ValueError(f"{path} has no column 'caption'; its columns are: {', '.join(map(str, table.columns))}.")
    table = table[table["caption"].notna()]
    table = table.convert_dtypes()  # else numbers become floats beside a list that has none
    table = table.assign(prompt=table["caption"].astype(str).str.strip())
    table = table[table["prompt"] != ""]
    if "type" in table:
        table = table[table["type"] != "N"].assign(kind=lambda t: t["type"].map(_TYPES).fillna("memorized"))
    else:
        table = table.assign(kind="memorized")
    if table.empty or table["prompt"].str.contains("\0", regex=False).any():
        raise ValueError(f"{path} holds no captions.")
    return table[[c for c in ("prompt", "kind", "url", "index") if c in table]].reset_index(drop=True)


_TYPES = {"VM": "verbatim", "MV": "verbatim", "RV": "verbatim", "TM": "template", "TV": "template"}
"""Types of the published lists: matching, retrieved and template verbatims."""


def _read_lines(path: Path) -> pd.DataFrame:
    return pd.DataFrame({"caption": path.read_text(encoding="utf-8").splitlines()})


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, is no JSON: {error}.") from None
    return pd.DataFrame(rows)


def _read_csv(path: Path) -> pd.DataFrame:
    text = path.read_text(encoding="utf-8")
    separator = ";" if ";" in text.partition("\n")[0] else ","
    try:
        return pd.read_csv(io.StringIO(text), sep=separator)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is no table separated by {separator!r}: {error}.") from None


def near_duplicates(captions: Sequence[str], threshold: float = 0.8) -> list[int | None]:
    """The first earlier caption that each nearly repeats, or None (cosine of TF-IDF of character 3- to 5-grams)."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit_transform(captions)
    found: list[int | None] = []
    for i in range(len(captions)):
        alike = (vectors[:i] @ vectors[i].T).toarray()[:, 0] if i else np.empty(0)
        found.append(int(alike.argmax()) if len(alike) and alike.max() > threshold else None)
    return found


def too_long(captions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """Captions that the tokenizer cuts: their index, and their length in tokens (the start and the end counted)."""
    lengths = map(len, tokenizer(list(captions)).input_ids)
    return {i: n for i, n in enumerate(lengths) if n > tokenizer.model_max_length}


def other_wording(captions: Sequence[str]) -> list[str]:
    """The captions up to their first comma: the same content without the words that memory hangs on."""
    return [caption.partition(", ")[0] or caption for caption in captions]


def subsets(prompts: int, size: int, count: int, seed: int = 0) -> list[list[int]]:
    """`count` subsets of `size` indices below `prompts`, that share as little as possible.

    The indices are shuffled and cut into disjoint subsets; when they run out, they are shuffled anew. Only subsets of
    one shuffle are sure to be disjoint (`disjoint_pairs`): two that share prompts overlap for that reason alone.

    Raises:
        ValueError: a subset would be larger than the list.
    """
    if not 1 <= size <= prompts:
        raise ValueError(f"subsets of {size} prompts were asked for, but there are {prompts}.")
    rng = np.random.default_rng(seed)
    found: list[list[int]] = []
    while len(found) < count:
        order = rng.permutation(prompts).tolist()
        found += [order[i : i + size] for i in range(0, prompts - size + 1, size)]
    return found[:count]


def disjoint_pairs(members: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of subsets that share no prompt."""
    return [(i, j) for i, j in combinations(range(len(members)), 2) if set(members[i]).isdisjoint(members[j])]


def load_prompts(source: str | Path | Mapping[Any, str | Path]) -> Prompts:
    """The prompts that belong to a model, or a list in a file.

    Args:
        source: "tiny"; "sd14" or "sd20" (lists fetched on first use, see `memsub.downloads`); or a file
            (`read_prompts`), all of whose captions count as memorized; or one file each for "memorized", "ordinary" and
            "heldout".

    Raises:
        ValueError: there is no such list, or the file is not one; close matches are offered.
        FileNotFoundError: no such file.
        ConnectionError: a list has to be fetched and cannot be; says which file to put where.
    """
    if isinstance(source, Mapping):
        return _from_files({kind: Path(path) for kind, path in source.items()})
    name = str(source)
    if name in LISTS:
        return LISTS[name]()
    if Path(name).suffix:
        return _from_files({"memorized": Path(name)})
    close = difflib.get_close_matches(name, LISTS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"no prompt list named {name!r}.{hint} Expected one of {', '.join(LISTS)}, or a file.")


def _fetched(name: str) -> Prompts:
    return _from_files({kind: fetch(name, kind) for kind in SOURCES[name]})


def _from_files(files: dict[str, Path]) -> Prompts:
    parts = [read_prompts(path) for path in files.values()]
    parts = [p if kind == "memorized" else p.assign(kind=kind) for kind, p in zip(files, parts, strict=True)]
    return Prompts(pd.concat(parts, ignore_index=True), ("verbatim", "template", "memorized"))


LISTS: dict[str, Callable[[], Prompts]] = {
    "tiny": lambda: Prompts(dataset.ground_truth()),
    **{name: partial(_fetched, name) for name in SOURCES},
}
"""The lists that belong to models, by name."""
