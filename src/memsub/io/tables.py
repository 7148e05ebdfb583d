"""Reads prompt lists that are tables or JSON; `memsub.io.lists` imports this module for such files.

unit, rows = read_table(Path("list.csv"))      # "line", and each row with its number
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .lists import LONGEST, Row, Rows, lines_of, text_of

_ALIASES = {
    "caption": ("caption", "captions", "prompt", "prompts", "text", "texts", "raw_prompt"),
    "type": ("type", "overfit_type", "kind"),
    "file": ("file", "file_name", "filename", "ref_file"),
    **{column: (column,) for column in ("url", "urls", "index", "mean_sscd", "max_sscd", "image")},
}
_COLUMNS = {alias: column for column, aliases in _ALIASES.items() for alias in aliases}
"""Column names of published lists, in lower case, to our names."""
_REPHRASED = re.compile(r"(rephrased|rephrasing|paraphrased?)s?(_(prompt|caption)s?)?_?\d*|caption_?\d+")
"""Columns of other wordings of the caption; a table may have several."""
_ADDRESS = re.compile(r"(^|[\t,;|])\s*https?://\S+(\s*$|\t)")  # an address that is a separate column in a line
_QUOTED = re.compile(r"""\s*("([^"]|"")*"|'[^']*'|\u201c[^\u201c\u201d]*\u201d)\s*,?\s*""")
"""A line that is a quoted value, as in a table or a program."""
_SEPARATORS = ",;\t"


def check_text(path: Path, lines: Sequence[str], filled: Sequence[str]) -> None:
    """Raises ValueError if a text file holds JSON, a table or columns; `filled` are its non-empty lines."""
    for text in (filled[0], "\n".join(lines)) if filled[0].lstrip()[0] in "[{" else ():
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if value and (isinstance(value, dict) or isinstance(value[0], str | dict)):
            raise ValueError(f"{path} is JSON inside: name it .json, or .jsonl if it holds an object a line.")
    for separator in _SEPARATORS:
        header, *others = [_cells(line, separator) for line in filled[:2]] or [[]]
        if len(header) > 1 and len(header) == len(others[0] if others else header) and _holds_captions(header):
            raise ValueError(f"{path} begins with the header of a table, {filled[0][:80]!r}: name it .csv or .tsv.")
    beside = [number for number, line in enumerate(lines, 1) if _ADDRESS.search(line)]
    if beside and ("\t" in lines[beside[0] - 1].strip() or len(beside) == len(filled)):
        raise ValueError(
            f"{path}, line {beside[0]}, holds an address beside its caption, or alone: it would be read as part of the "
            "caption. Name the file .tsv or .csv, and begin it with a header, such as caption and url."
        )
    forms = {"quotes around it": map(_QUOTED.fullmatch, filled), "a tab in it": ("\t" in s.strip() for s in filled)}
    for what, has_form in forms.items():
        if len(filled) > 1 and all(has_form):  # a single line may be a title, or contain a tab by accident
            raise ValueError(
                f"{path}: every line has {what}, which would be read as part of the caption. Remove them, or name the "
                "file .csv or .tsv and begin it with a header, such as caption."
            )


def columns_of(names: Sequence[Any], where: str) -> list[str]:
    """Our names of the columns. Published lists write some of them in several ways.

    Raises:
        ValueError: no column holds captions, or two columns mean the same.
    """
    lower = [str(name).strip().lower() for name in names]
    columns = ["rephrased" if _REPHRASED.fullmatch(name) else _COLUMNS.get(name, "") for name in lower]
    if "caption" not in columns:
        listed = ", ".join(str(name)[:40].lower() for name in names[:20]) + " ..." * (len(names) > 20)
        raise ValueError(f"{where} has no column 'caption'; its columns are: {listed}.")
    for column in dict.fromkeys(columns):
        if column not in ("", "rephrased") and columns.count(column) > 1:
            same = [repr(name) for name, other in zip(names, columns, strict=True) if other == column]
            raise ValueError(f"{where} has the columns {' and '.join(same)}, which mean the same: keep one of them.")
    return columns


def row_of(columns: Sequence[str], values: Sequence[Any]) -> Row:
    """A row as a dictionary. Other wordings of its caption, from one cell or several, become one text, one a line."""
    row, wordings = dict(zip(columns, values, strict=True)), list[Any]()
    for column, value in zip(columns, values, strict=True):
        if column == "rephrased":
            wordings += value if isinstance(value, list) else [value]
    if "rephrased" in row and all(wording is None or isinstance(wording, str) for wording in wordings):
        size = sum(len(wording) + 1 for wording in wordings if wording)
        # Long texts are not joined: their length alone causes the error.
        row["rephrased"] = "\n".join(filter(None, wordings)) if size <= 2 * LONGEST else " " * size
    return row


# --- JSON -------------------------------------------------------------------------------------------------------------


class _Pairs(list):
    """The names and values of a JSON object. A name may occur twice."""


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        line += getattr(error, "lineno", 1) - 1
        raise ValueError(f"{path}, line {line}, is no JSON: {getattr(error, 'msg', error)}.") from None


def _json_row(value: Any, where: str) -> Row:
    """The row of a line of JSON, or of an item of an array."""
    if isinstance(value, _Pairs):
        columns = columns_of([name for name, _ in value], where)
        return row_of(columns, [v for _, v in value])
    if value is None or isinstance(value, str):
        return {"caption": value}
    raise ValueError(f"{where} is no JSON object and no string: {json.dumps(value)[:80]}.")


def read_json(path: Path) -> Rows:
    """JSON lines, or one document. Programs write either of them under both suffixes."""
    lines = lines_of(text_of(path))
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        return "line", iter(())
    try:
        as_lines = len(filled) > 1
        _parsed(filled[0][1], path, filled[0][0])
    except ValueError:
        as_lines = False
    if not as_lines:
        try:
            document = _parsed("\n".join(lines), path, 1)
        except ValueError:
            if path.suffix.lower() != ".jsonl" or filled[0][1].strip() in "[{":
                raise
        else:
            return _document_rows(document, path, filled[0][0])
    where = f"{path}, line"
    return "line", (
        (number, _json_row(_parsed(line, path, number), f"{where} {number},") if line.strip() else {})
        for number, line in enumerate(lines, 1)
    )


def _document_rows(document: Any, path: Path, line: int) -> Rows:
    """The rows of a whole JSON document: an array of strings or objects, an object of columns, or one row.

    Raises:
        ValueError: it has another form, or its columns differ in length.
    """
    if isinstance(document, list) and not isinstance(document, _Pairs):
        return "item", ((i, _json_row(value, f"{path}, item {i},")) for i, value in enumerate(document, 1))
    row = {column: value for column, value in _json_row(document, f"{path}, line {line},").items() if column}
    if not isinstance(row["caption"], list):
        return "line", iter([(line, row)])
    # pandas writes a column as an object: row name to value.
    values = [[v for _, v in value] if isinstance(value, _Pairs) else value for value in row.values()]
    sizes = [len(value) if isinstance(value, list) else "no list" for value in values]
    if len(set(sizes)) > 1:
        lengths = ", ".join(f"{column}: {size}" for column, size in zip(row, sizes, strict=True))
        raise ValueError(f"{path} has columns of several lengths ({lengths}): each needs a value a caption.")
    return "item", enumerate((row_of(list(row), cells) for cells in zip(*values, strict=True)), 1)


# --- tables -----------------------------------------------------------------------------------------------------------


def _cells(line: str, separator: str) -> list[str]:
    """The values of a line, split like a row of a table, without checks."""
    return next(csv.reader([line[:LONGEST]], delimiter=separator), [])


def _holds_captions(header: Sequence[str]) -> bool:
    return any(_COLUMNS.get(name.strip().lower()) == "caption" for name in header)


def read_table(path: Path) -> Rows:
    text = text_of(path)
    if not text.strip():
        raise ValueError(f"{path} is no table: it is empty.")
    first = next(line for line in lines_of(text) if line.strip())
    headers = {separator: _cells(first, separator) for separator in _SEPARATORS}
    tabs = path.suffix.lower() == ".tsv"  # decides for a single column, whose captions may contain commas
    separator = max(headers, key=lambda s: (_holds_captions(headers[s]), len(headers[s]), tabs and s == "\t"))
    rows = _table_rows(text, separator, path)
    columns = columns_of(next(values for _, values in rows if any(map(str.strip, values))), str(path))
    return "line", ((number, _table_row(values, columns, separator, number, path)) for number, values in rows)


def _table_row(values: list[str], columns: list[str], separator: str, number: int, path: Path) -> Row:
    if not any(map(str.strip, values)):
        return {}
    if len(values) != len(columns):
        raise ValueError(
            f"{path}, line {number}, has {len(values)} values and the header {len(columns)}: put a caption that "
            f"contains {separator!r} between quotes."
        )
    return row_of(columns, values)


def _table_rows(text: str, separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows, each with the number of its first line. An unclosed quote is an error; it would hide all later rows."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    first = 1
    try:
        for values in reader:
            yield first, values
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {first}, is no row of values separated by {separator!r}: {error}.") from None
