"""Reads the tables in a folder of training images: which file or index belongs to which caption.

    pack = Pack(folder, folder, ByCaption(rows["prompt"]))
    pack.files("a red heart")           # by metadata.csv or list.jsonl: columns caption, and file or index
    numbered(rows, pack, here)          # by prompt_to_ref.csv: columns prompt_idx and ref_file, perhaps the caption

Unusable entries of a table are noted. Tables may come from strangers: a file outside of the folder is an error.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from pathlib import Path

import pandas as pd

from memsub.io.images import SUFFIXES, image_files
from memsub.io.lists import LONGEST_NAME, Row, lines_of, plain_name, read_rows, text_of

from .joining import ByCaption, folded, spaced
from .tally import Table, is_hidden, shortened

NUMBERED = "prompt_to_ref.csv"
PACK = "gt_images"
"""The folder of images in a pack with its own list."""
LISTS = (".jsonl", ".csv", ".tsv", ".parquet")
CAPTIONS = ("caption", "prompt", "text", "raw_prompt")
"""Possible names of the column of captions in `NUMBERED`."""


class Pack:
    """The tables of a folder, and the images directly in it.

    Attributes:
        tables: the tables, including those that could not be read.
        notes: sentences on unusable entries.
        named: names of files in the tables, each with the existing files.
        lists: captions of each table without file names; `NUMBERED` may refer to them by number.

    Raises:
        ValueError: a table names a file outside of the folder.
    """

    def __init__(self, folder: Path, root: Path, here: ByCaption):
        self.folder, self.root, self.here = folder, root, here
        self.flat = _flat(root)
        self.tables: list[Table] = []
        self.notes: list[str] = []
        self.named: dict[str, list[Path]] = {}
        self.lists: list[list[str]] = []
        self._rows: list[Row] = []
        self._by_index: dict[str, list[str]] = {}
        self._by_file: dict[Path, list[str]] = {}
        beside = sorted(folder.parent.glob("*.jsonl")) if folder.name == PACK else []
        inside = [path for path in sorted({*folder.iterdir(), *root.iterdir()}) if path.suffix.lower() in LISTS]
        for path in [*inside, *beside]:
            if path.name != NUMBERED and not path.name.startswith("."):
                self._read(path)
        self._places = ByCaption(row["prompt"] for row in self._rows)

    def _read(self, path: Path) -> None:
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                rows = read_rows(path)
        except (ValueError, OSError) as error:
            why = str(error).split(" Prompt lists are ")[0].rstrip(".")
            self.notes.append(f"{path} is no list of captions: it is passed over ({why}).")
            self.tables.append(Table(path, 0, 0, f"is passed over ({why})"))
            return
        self.notes += [str(one.message) for one in told if "type" not in str(one.message)]
        table = Table(path, len(rows), sum(bool(self.here.find(row["prompt"])) for row in rows))
        if not any(row.get("file") or row.get("index") is not None for row in rows):
            table.problem = "it has no column of files (file, file_name, filename, ref_file, image) and no index"
        self.tables.append(table)
        if not any(row.get("file") for row in rows):  # a table with files is no list whose rows `NUMBERED` counts
            self.lists.append([row["prompt"] for row in rows])
        self._rows += rows
        several: dict[str, set[str]] = {}
        for row in rows:
            for file in self._named(row["file"]) if row.get("file") else []:
                self._by_file.setdefault(file, []).append(row["prompt"])
            if row.get("index") is not None:
                name = plain_name(row["index"])
                several.setdefault(name, set()).add(folded(row["prompt"]))
                self._by_index.setdefault(name, []).append(row["prompt"])
        if twice := [name for name, captions in several.items() if len(captions) > 1 and self.indexed(name)]:
            self.notes.append(
                f"{path}: {len(twice)} indices are of several captions each, which all get its images: "
                f"{shortened(twice)}"
            )

    def _named(self, name: str) -> list[Path]:
        if name not in self.named:
            self.named[name] = self.existing(name)
        return self.named[name]

    def files(self, caption: str) -> list[Path]:
        """The files that the tables assign to a caption."""
        files: list[Path] = []
        for place in self._places.find(caption, self.here):
            row = self._rows[place]
            by_name = self._named(row["file"]) if row.get("file") else []
            if not by_name and row.get("index") is not None:
                by_name = self.indexed(plain_name(row["index"]))
            files += by_name
        return files

    def indexed(self, name: str) -> list[Path]:
        """The images of an index: those in its folder, or the file with its name."""
        inside = image_files(self.root / name)
        return [file for file in inside if not is_hidden(file.relative_to(self.root))] or self.flat.get(name, [])

    def owner(self, name: str, files: list[Path]) -> str | None:
        """The caption to which the tables assign an index or its files, preferably a caption of the list."""
        captions = self._by_index.get(name) or [c for file in files for c in self._by_file.get(file, [])]
        return next((caption for caption in captions if self.here.find(caption)), next(iter(captions), None))

    def existing(self, name: str) -> list[Path]:
        """The file that a table names, if it exists.

        Raises:
            ValueError: the path leads out of the folder.
        """
        if "\0" in name or len(name.encode("utf-8", "replace")) > 10 * LONGEST_NAME:
            raise ValueError(f"a table in {self.folder} names a file {name[:60]!r}, which is no name of a file.")
        for base in dict.fromkeys((self.root, self.folder)):
            for path in dict.fromkeys((base / name, base / name.replace("\\", "/"))):  # Windows paths
                if not path.resolve().is_relative_to(self.folder.resolve()):
                    raise ValueError(f"a table in {self.folder} names {name[:60]!r}, which leads out of the folder.")
                if path.suffix.lower() in SUFFIXES and path.is_file():
                    return [path]
        return []


def _flat(root: Path) -> dict[str, list[Path]]:
    """Image files directly in a folder, by name without suffix."""
    files: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
            files.setdefault(path.stem, []).append(path)
    return files


# --- a table of numbers -----------------------------------------------------------------------------------------------


def numbered(rows: pd.DataFrame, pack: Pack, here: ByCaption) -> dict[int, list[Path]]:
    """Reads `prompt_to_ref.csv`: place of a caption to its files. Unusable rows are noted.

    If it has a column of captions, they decide. Otherwise its numbers count, from 0, the rows of a list beside it that
    shares captions with the prompt list. Without a list beside it, they count the rows of the prompt list.

    Raises:
        ValueError: a column is missing, or a number is no row of the list.
    """
    path = pack.folder / NUMBERED
    if not path.is_file():
        return {}
    table, caption_column = _table(path)
    beside = _beside(pack, here)
    if beside is None and not caption_column and pack.lists:
        pack.notes.append(
            f"{path}: its numbers are not used, as no caption of the list beside it is in the prompt list: it was made "
            "for another one."
        )
        return {}
    order = rows["row"].tolist() if "row" in rows else list(range(len(rows)))
    place_of = {int(number): place for place, number in enumerate(order)}
    most = len(beside) if beside is not None else max(place_of) + 1
    files: dict[int, list[Path]] = {}
    strange, numbers = list[str](), set[int]()
    for line, row in table:
        where, own = f"{path}, line {line},", spaced(row[caption_column] or "") if caption_column else ""
        at = _number(row["prompt_idx"], most if not own else None, where)
        numbers.add(at)
        name = (row["ref_file"] or "").strip()
        if beside is not None and at < most:
            caption, places = beside[at], here.find(beside[at])
        else:
            places = [place_of[at]] if at in place_of else []
            caption = rows["prompt"].iloc[places[0]] if places else ""
        if own and folded(own) != folded(caption):
            strange.append(f"line {line} is {own[:60]!r}, and row {at} is {spaced(caption)[:60]!r}")
            places = here.find(own)
        if name and name.upper() != "MISSING":
            found = pack.named.setdefault(name, pack.existing(name))
            for place in places if found else []:
                files.setdefault(place, []).extend(file for file in found if file not in files.get(place, []))
    if strange:
        pack.notes.append(
            f"{path}: {len(strange)} captions are not those of the list's rows of their numbers; the caption decides: "
            f"{shortened(strange)}"
        )
    if beside is None and not caption_column:
        pack.notes.append(_unchecked(path, rows, numbers, most))
    return files


def _table(path: Path) -> tuple[list[tuple[int, dict[str, str | None]]], str]:
    """The rows of the table with their line numbers, and the name of its column of captions, or "".

    Raises:
        ValueError: a column prompt_idx or ref_file is missing.
    """
    text = text_of(path)
    first = next((line for line in lines_of(text) if line.strip()), "")
    separator = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    columns = [str(name).strip().lower() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    if not {"prompt_idx", "ref_file"} <= set(columns):
        listed = ", ".join(columns[:10]) or "none"
        raise ValueError(f"{path} has no columns prompt_idx and ref_file; its columns are: {listed}.")
    return [(reader.line_num, row) for row in reader], next((name for name in CAPTIONS if name in columns), "")


def _beside(pack: Pack, here: ByCaption) -> list[str] | None:
    """The captions of the list beside a table that shares most captions with the prompt list; None if none does."""
    lists = list(pack.lists)
    for path in sorted(pack.folder.glob("*.txt")):
        if not path.name.startswith("."):
            try:
                lists.append([line for line in lines_of(text_of(path)) if line.strip()])
            except ValueError as error:
                pack.notes.append(f"{path} is passed over: {error}")
    joined = {place: sum(bool(here.find(caption)) for caption in captions) for place, captions in enumerate(lists)}
    most = max(joined, key=lambda place: joined[place], default=None)
    return lists[most] if most is not None and joined[most] else None


def _number(text: str | None, most: int | None, where: str) -> int:
    """Parses the number of a row in a list of `most` rows (None: any number).

    Raises:
        ValueError: it is no such number.
    """
    number = re.fullmatch(r"0*(\d{1,9})(\.0)?", (text or "").strip())
    if not number or (most is not None and int(number[1]) >= most):
        raise ValueError(
            f"{where} has the prompt_idx {str(text)[:20]!r}; the list has the rows 0 to {(most or 1) - 1}: give the "
            "list that the folder was made for, or put it beside the table as a .jsonl or .txt file."
        )
    return int(number[1])


def _unchecked(path: Path, rows: pd.DataFrame, numbers: set[int], most: int) -> str:
    """A sentence on numbers that no caption confirms."""
    fits = "" if len(numbers) == most else f" It has {len(numbers)} rows and the list {most}: was it made for another?"
    return (
        f"{path} says no captions, and no list lies beside it: its numbers are taken for rows of the prompt list, from "
        f"0 ({spaced(rows['prompt'].iloc[0])[:60]!r}), unchecked.{fits} Add a column 'caption' to it, or put the list "
        "that it was made for beside it."
    )
