"""Prompt lists as people have them in files: text, JSON lines, CSV and parquet.

    rows = read_rows(Path("list.csv"))      # a dict a caption: prompt, and url, index and type where it has them

No caption vanishes silently: a line is what a text editor shows as one, a row without a caption is told by a warning,
and a file of any other form is refused with the line to blame.
"""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .files import load_table

Row = dict[str, Any]
"""Column to value; empty for an empty line."""

FORMS = (
    'a caption a line (.txt), a JSON object with "caption" a line (.jsonl), a table separated by commas or semicolons '
    'with a column "caption" (.csv), or parquet with such a column (.parquet)'
)
_COLUMNS = ("caption", "url", "index", "type")


def read_rows(path: Path) -> list[Row]:
    """The captions of a list in order, each with what else is kept of its row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another form or holds no captions; the message names the line to blame.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no prompt file at {path}.")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        kind = f"of unknown kind {path.suffix!r}" if suffix else "of unknown kind, as it has no suffix"
        raise ValueError(f"{path} is {kind}; prompt lists are {FORMS}.")
    unit = "row" if suffix == ".parquet" else "line"
    rows, empty = [], []
    for number, row in _READERS[suffix](path):
        if kept := _kept(row, f"{path}, {unit} {number},"):
            rows.append(kept)
        else:
            empty.append(number)
    if not rows or any("\0" in row["prompt"] for row in rows):
        raise ValueError(f"{path} holds no captions.")
    if empty:
        numbers = ", ".join(map(str, empty[:10])) + f" and {len(empty) - 10} more" * (len(empty) > 10)
        warnings.warn(f"{path}: no caption in {unit}{'s' * (len(empty) > 1)} {numbers}.", stacklevel=2)
    return rows


def _kept(row: Row, where: str) -> Row:
    """The caption as `prompt`, and index, url and type if the row has them; empty if there is no caption.

    Raises:
        ValueError: the caption is no text, or the index no plain name.
    """
    values = {column: None if _is_missing(row[column]) else row[column] for column in _COLUMNS if column in row}
    caption = values.pop("caption", None)
    if not isinstance(caption, str | None):
        raise ValueError(f"{where} has a caption that is no text: {str(caption)[:80]}. Prompt lists are {FORMS}.")
    index = values.get("index")
    # The index names the folder of the training images, and must not lead out of the folder that holds it.
    if index is not None and not re.fullmatch(r"(?!\.+$)[^/\\:\0]+", str(index)):
        raise ValueError(f"{where} has the index {index!r}, which is no plain name or number.")
    return {"prompt": caption.strip(), **values} if caption and caption.strip() else {}


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _columns(names: Sequence[Any], where: str) -> list[str]:
    """Names of columns as they are called here: the published lists write some of them in two ways.

    Raises:
        ValueError: no column holds captions, or two columns mean the same.
    """
    columns = [str(name).lower() for name in names]
    columns = ["type" if column == "overfit_type" else column for column in columns]
    if "caption" not in columns:
        raise ValueError(
            f"{where} has no column 'caption'; its columns are: {', '.join(map(str.lower, map(str, names)))}. "
            f"Prompt lists are {FORMS}."
        )
    for column in _COLUMNS:
        if columns.count(column) > 1:
            same = [repr(name) for name, other in zip(names, columns, strict=True) if other == column]
            raise ValueError(f"{where} has the columns {' and '.join(same)}, which mean the same: keep one of them.")
    return columns


# --- text ----------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    """A text file, without the byte order mark that Windows writes at its beginning.

    Raises:
        ValueError: the file is not UTF-8.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = len(_split(content[: error.start].decode("utf-8", "replace")))
        raise ValueError(f"{path} is not UTF-8 text from line {number} on: save it as UTF-8.") from None


def _split(text: str) -> list[str]:
    """Lines as a text editor shows them. (`str.splitlines` splits also at characters that captions contain.)"""
    return re.split(r"\r\n|\n|\r", text)


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, without empty ones at its end."""
    return enumerate(_split(_text(path).rstrip()), 1)


def _read_text(path: Path) -> Iterator[tuple[int, Row]]:
    return ((number, {"caption": line}) for number, line in _numbered(path))


class _Pairs(list):
    """The names and values of a JSON object, in which a name may stand twice."""


def _read_json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in _numbered(path):
        where = f"{path}, line {number},"
        if not line.strip():
            yield number, {}
            continue
        try:
            pairs = json.loads(line, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is no JSON: {error}.") from None
        if not isinstance(pairs, _Pairs):
            raise ValueError(f"{where} is no JSON object: {line[:80]}. Prompt lists are {FORMS}.")
        columns = _columns([name for name, _ in pairs], where)
        yield number, dict(zip(columns, [value for _, value in pairs], strict=True))


# --- tables --------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    text = _text(path).rstrip()
    if not text:
        raise ValueError(f"{path} is no table: it is empty.")
    first = next(line for line in _split(text) if line.strip())
    headers = {separator: next(csv.reader([first], delimiter=separator)) for separator in ",;"}
    separator = max(headers, key=lambda s: ("caption" in map(str.lower, headers[s]), len(headers[s])))
    columns = _columns(headers[separator], str(path))
    rows = _csv_rows(text, separator, path)
    while not any(map(str.strip, next(rows)[1])):  # until the header
        pass
    for number, values in rows:
        if not any(map(str.strip, values)):
            yield number, {}
        elif len(values) != len(columns):
            raise ValueError(
                f"{path}, line {number}, has {len(values)} values and the header {len(columns)}: put a caption that "
                f"contains {separator!r} between quotes."
            )
        else:
            row = zip(columns, values, strict=True)
            yield number, {column: value if column == "caption" else _number(value) for column, value in row}


def _csv_rows(text: str, separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows, each with the number of its first line. Strict: after a quote that is not closed all rows would vanish."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    first = 1
    try:
        for values in reader:
            yield first, values
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {first}, is no row of values separated by {separator!r}: {error}.") from None


def _number(value: str) -> str | int | None:
    """A number where another form of the list would hold one, and nothing for an empty value."""
    return int(value) if re.fullmatch(r"0|[1-9][0-9]{0,17}", value) else value or None


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    table = load_table(path)
    columns = _columns(table.columns, str(path))
    rows = table.convert_dtypes().itertuples(index=False, name=None)  # else numbers beside missing ones become floats
    return ((number, dict(zip(columns, row, strict=True))) for number, row in enumerate(rows, 1))


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
