"""Prompt lists as people have them in files: text, JSON, tables.

    rows = read_rows(Path("list.csv"))      # a dict a caption: prompt, and url, index and type where it has them
    folder / plain_name(row["index"])       # of its training images

No caption vanishes silently: a line is what a text editor shows as one, a row without a caption is told by a warning,
and a file of any other form is refused with the line to blame. A file of a stranger has limits: bytes, rows, lengths.
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

import pyarrow
from pyarrow import parquet

Row = dict[str, Any]
"""Column to value; empty for an empty line."""
Rows = tuple[str, Iterator[tuple[int, Row]]]
"""What the rows of a form are called, and each with its number."""

FORMS = (
    "a caption a line (.txt); a table whose header has one column caption, prompt or text (.csv, .tsv, .parquet); or "
    "JSON: strings, or objects with such a key, one a line (.jsonl) or in an array, or an object of columns (.json)"
)
MOST_BYTES = 100_000_000
"""Of a text file, and of what is kept of any list."""
MOST_ROWS = 1_000_000
LONGEST = 10_000
"""Characters of a caption or an address. (CLIP reads 77 tokens, some 300 characters.)"""
LONGEST_NAME = 200
"""Bytes of an index: file systems take 255."""
_ALIASES = {"caption": ("caption", "captions", "prompt", "prompts", "text", "texts"), "type": ("type", "overfit_type")}
_COLUMNS = {alias: column for column in ("caption", "url", "index", "type") for alias in _ALIASES.get(column, [column])}
"""Names of columns, as published lists write them and in lower case, to what they are called here."""
_OTHER = {
    b"\x1f\x8b": "gzip",
    b"pk\x03\x04": "a zip archive or an Excel sheet",
    b"par1": "parquet",
    b"%pdf": "a PDF",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS",
}
"""How files begin, in lower case, that are no prompt list under the name of one."""


def read_rows(path: Path) -> list[Row]:
    """The captions of a list in order, each with what else is kept of its row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another form, is too large, or holds no captions; the message names the line to blame.
    """
    if not path.exists():
        raise FileNotFoundError(f"no prompt file at {path}.")
    try:
        return _read_rows(path)
    except ValueError as error:
        raise ValueError(f"{error} Prompt lists are {FORMS}.") from None


def _read_rows(path: Path) -> list[Row]:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ValueError(f"{path} is a folder or no plain file: a prompt list is one file.")
    if suffix not in READERS:
        kind = f" {path.suffix!r}: unpack or convert it" if suffix else ", as it has no suffix: name it by its form"
        raise ValueError(f"{path} is of unknown kind{kind}.")
    rows, empty, size = [], [], 0
    unit, numbered = READERS[suffix](path)
    for number, row in numbered:
        if kept := _kept(row, f"{path}, {unit} {number},"):
            rows.append(kept)
            size += len(kept["prompt"]) + len(kept.get("url") or "")
        else:
            empty.append(number)
        if len(rows) + len(empty) > MOST_ROWS or size > MOST_BYTES:
            raise _too_large(path)
    if not rows:
        raise ValueError(f"{path} holds no captions.")
    if empty:
        numbers = ", ".join(map(str, empty[:10])) + f" and {len(empty) - 10} more" * (len(empty) > 10)
        warnings.warn(f"{path}: no caption in {unit}{'s' * (len(empty) > 1)} {numbers}.", stacklevel=3)
    return rows


def _too_large(path: Path) -> ValueError:
    return ValueError(
        f"{path} is larger than a prompt list may be, {MOST_ROWS:,} rows and {MOST_BYTES // 10**6} MB: cut it in parts."
    )


def _kept(row: Row, where: str) -> Row:
    """The caption as `prompt`, and index, url and type if the row has them; empty if there is no caption.

    Raises:
        ValueError: the caption is no text, a value no number or text or too long, or the index no plain name.
    """
    values: Row = {column: row[column] for column in ("caption", "url", "index", "type") if column in row}
    for column, value in values.items():
        if value is None or value != value or value == "":  # not a number: how tables write a missing one
            values[column] = None
        elif not isinstance(value, str if column == "caption" else (str, int, float)):
            raise ValueError(f"{where} has {_an(column)} that is no text: {str(value)[:80]}.")
        elif len(str(value)) > LONGEST:
            raise ValueError(f"{where} has {_an(column)} of {len(str(value)):,} characters, more than {LONGEST:,}.")
    if values.get("index") is not None:
        try:
            values["index"] = plain_name(values["index"])
        except ValueError as error:
            raise ValueError(f"{where} has the {error}") from None
        if re.fullmatch(r"0|-?[1-9][0-9]{0,17}", values["index"]):
            values["index"] = int(values["index"])  # whatever the form: one list's numbers are the other's
    for column in values.keys() & {"url", "type"}:
        values[column] = None if values[column] is None else str(values[column])
    caption = (values.pop("caption", None) or "").strip()
    if re.search("[\0\ud800-\udfff]", caption):
        raise ValueError(f"{where} has a caption that is no text: it contains a NUL or half a character.")
    return {"prompt": caption, **values} if caption else {}


def _an(column: str) -> str:
    return f"{'an' if column == 'index' else 'a'} {column}"


def plain_name(index: Any) -> str:
    """An index as the name of the folder of its training images: 3, 3.0 and "3" are one. Lists are of strangers.

    Raises:
        ValueError: it would lead out of the folder that holds it, or is no name on every system.
    """
    if isinstance(index, float) and index.is_integer():
        index = int(index)
    name = re.sub(r"\A([0-9]+)\.0\Z", r"\1", str(index))  # pandas writes whole numbers beside missing ones like that
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", name)
    strange = re.search(r'[/\\:*?"<>|\x00-\x1f\x7f\ud800-\udfff]', name)
    if reserved or strange or name != name.strip() or name.endswith(".") or not 0 < len(name.encode()) <= LONGEST_NAME:
        raise ValueError(
            f"index {name[:60]!r}, which is no plain name or number: it names the folder of training images, so it "
            f"holds no '/', '\\' or ':', is not '..' and has at most {LONGEST_NAME} bytes."
        )
    return name


def _columns(names: Sequence[Any], where: str) -> list[str]:
    """Names of columns as they are called here: the published lists write some of them in several ways.

    Raises:
        ValueError: no column holds captions, or two columns mean the same.
    """
    columns = [_COLUMNS.get(str(name).strip().lower(), "") for name in names]
    if "caption" not in columns:
        listed = ", ".join(str(name)[:40].lower() for name in names[:20]) + " ..." * (len(names) > 20)
        raise ValueError(f"{where} has no column 'caption'; its columns are: {listed}.")
    for column in filter(None, dict.fromkeys(columns)):
        if columns.count(column) > 1:
            same = [repr(name) for name, other in zip(names, columns, strict=True) if other == column]
            raise ValueError(f"{where} has the columns {' and '.join(same)}, which mean the same: keep one of them.")
    return columns


# --- text ----------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    """A text file, without the byte order marks that Windows writes, and without line ends at its end.

    Raises:
        ValueError: the file is neither UTF-8 nor UTF-16 with its mark, or too large.
    """
    if path.stat().st_size > MOST_BYTES:
        raise _too_large(path)
    content = path.read_bytes()
    for beginning, form in _OTHER.items():
        if content[:100].lstrip().lower().startswith(beginning):
            raise ValueError(f"{path} is {form} inside, not text.")
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if wide else "utf-8")
    except UnicodeDecodeError as error:
        number = len(_split(content[: error.start].decode("utf-8", "replace")))
        line = "" if wide else f" from line {number} on"
        raise ValueError(f"{path} is not UTF-8 text{line}: save it as UTF-8 in a text editor.") from None
    if "\0" in text:
        number = len(_split(text[: text.index("\0")]))
        raise ValueError(f"{path}, line {number}, holds NUL characters and no captions: save the file as UTF-8 text.")
    if any(text.count(character) > 5 * MOST_ROWS for character in "\n\r[{"):  # pretty JSON has some lines a row
        raise _too_large(path)
    return re.sub("(^|[\r\n])\ufeff+", r"\1", text).rstrip("\r\n")  # also where files were put together


def _split(text: str) -> list[str]:
    """Lines as a text editor shows them. (`str.splitlines` splits also at characters that captions contain.)"""
    return re.split(r"\r\n|\n|\r", text)


def _read_text(path: Path) -> Rows:
    lines = _split(_text(path))
    filled = [line for line in lines if line.strip()]
    for text in (filled[0], "\n".join(lines)) if filled and filled[0].lstrip()[0] in "[{" else ():
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
    return "line", ((number, {"caption": line}) for number, line in enumerate(lines, 1))


# --- JSON ----------------------------------------------------------------------------------------------------


class _Pairs(list):
    """The names and values of a JSON object, in which a name may stand twice."""


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        line += getattr(error, "lineno", 1) - 1
        raise ValueError(f"{path}, line {line}, is no JSON: {getattr(error, 'msg', error)}.") from None


def _json_row(value: Any, where: str) -> Row:
    """A line of JSON, or an item of an array."""
    if isinstance(value, _Pairs):
        columns = _columns([name for name, _ in value], where)
        return dict(zip(columns, [v for _, v in value], strict=True))
    if value is None or isinstance(value, str):
        return {"caption": value}
    raise ValueError(f"{where} is no JSON object and no string: {json.dumps(value)[:80]}.")


def _read_json(path: Path) -> Rows:
    """JSON lines, or a document: the suffix does not tell, as programs write either under both."""
    lines = _split(_text(path))
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
        ValueError: it is something else, or its columns differ in length.
    """
    if isinstance(document, list) and not isinstance(document, _Pairs):
        return "item", ((i, _json_row(value, f"{path}, item {i},")) for i, value in enumerate(document, 1))
    row = {column: value for column, value in _json_row(document, f"{path}, line {line},").items() if column}
    if not isinstance(row["caption"], list):
        return "line", iter([(line, row)])
    # pandas writes a column as an object, from the row's name to its value.
    values = [[v for _, v in value] if isinstance(value, _Pairs) else value for value in row.values()]
    sizes = [len(value) if isinstance(value, list) else "no list" for value in values]
    if len(set(sizes)) > 1:
        told = ", ".join(f"{column}: {size}" for column, size in zip(row, sizes, strict=True))
        raise ValueError(f"{path} has columns of several lengths ({told}): each needs a value a caption.")
    return "item", enumerate((dict(zip(row, cells, strict=True)) for cells in zip(*values, strict=True)), 1)


# --- tables --------------------------------------------------------------------------------------------------

_SEPARATORS = ",;\t"


def _cells(line: str, separator: str) -> list[str]:
    """The values of a row that may be no row of a table: nothing is checked."""
    return next(csv.reader([line[:LONGEST]], delimiter=separator), [])


def _holds_captions(header: Sequence[str]) -> bool:
    return any(_COLUMNS.get(name.strip().lower()) == "caption" for name in header)


def _read_table(path: Path) -> Rows:
    text = _text(path)
    if not text.strip():
        raise ValueError(f"{path} is no table: it is empty.")
    first = next(line for line in _split(text) if line.strip())
    headers = {separator: _cells(first, separator) for separator in _SEPARATORS}
    separator = max(headers, key=lambda s: (_holds_captions(headers[s]), len(headers[s])))
    rows = _table_rows(text, separator, path)
    columns = _columns(next(values for _, values in rows if any(map(str.strip, values))), str(path))
    return "line", ((number, _table_row(values, columns, separator, number, path)) for number, values in rows)


def _table_row(values: list[str], columns: list[str], separator: str, number: int, path: Path) -> Row:
    if not any(map(str.strip, values)):
        return {}
    if len(values) != len(columns):
        raise ValueError(
            f"{path}, line {number}, has {len(values)} values and the header {len(columns)}: put a caption that "
            f"contains {separator!r} between quotes."
        )
    return dict(zip(columns, values, strict=True))


def _table_rows(text: str, separator: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows, each with the number of its first line. Strict: after a quote that is not closed all rows would vanish."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    first = 1
    try:
        for values in reader:
            yield first, values
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {first}, is no row of values separated by {separator!r}: {error}.") from None


def _read_parquet(path: Path) -> Rows:
    try:
        with parquet.ParquetFile(path) as file:
            names, about = file.schema_arrow.names, file.metadata
            columns = _columns(names, str(path))
            wanted = {name: column for name, column in zip(names, columns, strict=True) if column}
            groups = [about.row_group(i) for i in range(about.num_row_groups)]
            chunks = [group.column(j) for group in groups for j in range(group.num_columns)]
            kept = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in wanted]
            # Values of a list count as well. What repeats is small in the file: it stays one object in memory.
            values = max([about.num_rows, *(chunk.num_values for chunk in kept)])
            if values > MOST_ROWS or sum(chunk.total_uncompressed_size for chunk in kept) > MOST_BYTES:
                raise _too_large(path)
        repeated = {chunk.path_in_schema for chunk in kept} & wanted.keys()
        with parquet.ParquetFile(path, read_dictionary=list(repeated)) as file:
            table = file.read(list(wanted))
            cells = [[v for chunk in table[name].chunks for v in _python(chunk)] for name in wanted]
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or no parquet file: {error}.") from error
    return "row", enumerate((dict(zip(wanted.values(), row, strict=True)) for row in zip(*cells, strict=True)), 1)


def _python(chunk: Any) -> list[Any]:
    if not pyarrow.types.is_dictionary(chunk.type):
        return chunk.to_pylist()
    values = chunk.dictionary.to_pylist()
    return [None if i is None else values[i] for i in chunk.indices.to_pylist()]


READERS: dict[str, Callable[[Path], Rows]] = {
    ".txt": _read_text,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
}
