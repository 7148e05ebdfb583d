"""Reads prompt lists from files: text here, tables and JSON in `memsub.io.tables`, parquet in `memsub_extra`.

    rows = read_rows(Path("list.csv"))      # a dict for each caption: prompt, and url, index, type if present
    folder / plain_name(row["index"])       # the folder of its training images

No caption is dropped silently. Lines are those that a text editor shows, a row without a caption causes a warning, and
a file of another form raises an error that names the line. Files have limits of bytes, rows and lengths.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..registry import Registry

Row = dict[str, Any]
"""Column to value; empty for an empty line."""
Rows = tuple[str, Iterator[tuple[int, Row]]]
"""What a row is called ("line", for example), and the rows with their numbers."""

KEPT = ("url", "urls", "index", "type", "mean_sscd", "max_sscd", "rephrased", "file")
"""Columns that are kept in addition to captions. `rephrased` holds other wordings, one a line."""
TYPES = dict.fromkeys(("vm", "mv", "rv", "verbatim"), "verbatim") | dict.fromkeys(("tm", "tv", "template"), "template")
TYPES |= {"memorized": "memorized", "n": "N"}
"""Types of captions in published lists, in lower case (matching, retrieved, template verbatims; N: not memorized)."""
FORMS = (
    "a caption a line (.txt); a table whose header has one column caption, prompt or text (.csv, .tsv, .parquet); or "
    "JSON: strings, or objects with such a key, one a line (.jsonl) or in an array, or an object of columns (.json)"
)
MOST_BYTES = 100_000_000
"""Limit of a text file, and of the kept columns of any list."""
MOST_ROWS = 1_000_000
LONGEST = 10_000
"""Characters of a caption or an address. (CLIP reads 77 tokens, some 300 characters.)"""
LONGEST_NAME = 200
"""Bytes of an index. (File systems allow 255.)"""
_SUSPECT = re.compile("caption|prompt|text|://|\\t|^\\s*[\\[{\"'“„«]", re.IGNORECASE)  # signs of no plain text
READERS: Registry[Callable[[Path], Rows]] = Registry(
    "memsub.prompt_files",
    "kind of prompt file",
    dict.fromkeys((".jsonl", ".json"), "memsub.io.tables:read_json")
    | dict.fromkeys((".csv", ".tsv"), "memsub.io.tables:read_table"),
)
"""Readers of all forms except text, by suffix. Each returns what a row is called, and the rows."""
SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
_OTHER = {
    b"\x1f\x8b": "gzip",
    b"pk\x03\x04": "a zip archive or an Excel sheet",
    b"par1": "parquet",
    b"%pdf": "a PDF",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS",
}
"""First bytes, in lower case, of other kinds of files that may have the suffix of a prompt list."""


def read_rows(path: Path) -> list[Row]:
    """The captions of a list in order, with the other kept columns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another form, is too large, or holds no captions; the message names the line.
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
    if suffix not in SUFFIXES:
        kind = f" {path.suffix!r}: unpack or convert it" if suffix else ", as it has no suffix: name it by its form"
        raise ValueError(f"{path} is of unknown kind{kind}.")
    rows, odd, size = list[Row](), dict[str, list[str]](), 0
    if suffix == ".txt":
        unit, numbered = _read_text(path)
    else:
        unit, numbered = READERS[suffix](path)
    for count, (number, row) in enumerate(numbered, 1):
        if kept := _kept(row, f"{path}, {unit} {number},"):
            rows.append(kept)
            size += sum(len(value) for value in kept.values() if isinstance(value, str))
            if kept.get("type") and not kind_of(kept["type"]):
                what = f"an unknown type, which is ignored (none of {', '.join(TYPES)})"
                odd.setdefault(what, []).append(f"{number} ({kept['type'][:40]!r})")
        else:
            odd.setdefault("no caption", []).append(str(number))
        if count > MOST_ROWS or size > MOST_BYTES:
            raise too_large(path)
    if not rows:
        raise ValueError(f"{path} holds no captions.")
    for what, at in odd.items():
        numbers = ", ".join(at[:10]) + f" and {len(at) - 10} more" * (len(at) > 10)
        warnings.warn(f"{path}: {what} in {unit}{'s' * (len(at) > 1)} {numbers}.", stacklevel=3)
    return rows


def kind_of(named: object) -> str | None:
    """The kind that a type in a list stands for, in any case; None for an unknown or missing type."""
    return TYPES.get(str(named).strip().casefold())


def too_large(path: Path) -> ValueError:
    return ValueError(
        f"{path} is larger than a prompt list may be, {MOST_ROWS:,} rows and {MOST_BYTES // 10**6} MB: cut it in parts."
    )


def _kept(row: Row, where: str) -> Row:
    """The caption as `prompt`, and the columns of `KEPT`; empty without a caption. Raises ValueError for bad values."""
    values: Row = {column: row[column] for column in ("caption", *KEPT) if column in row}
    if isinstance(image := row.get("image"), str) and len(image) <= 10 * LONGEST_NAME and not values.get("file"):
        values["file"] = image  # otherwise it is the image itself, which is not needed
    for column, value in values.items():
        a_column = f"{'an' if column == 'index' else 'a'} {column}"
        if value is None or value != value or value == "":  # NaN stands for a missing value in tables
            values[column] = None
        elif not isinstance(value, str if column == "caption" else (str, int, float)):
            raise ValueError(f"{where} has {a_column} that is no text: {str(value)[:80]}.")
        elif len(str(value)) > LONGEST:
            raise ValueError(f"{where} has {a_column} of {len(str(value)):,} characters, more than {LONGEST:,}.")
    if values.get("index") is not None:
        try:
            values["index"] = plain_name(values["index"])
        except ValueError as error:
            raise ValueError(f"{where} has the {error}") from None
        if re.fullmatch(r"0|-?[1-9][0-9]{0,17}", values["index"]):
            values["index"] = int(values["index"])  # the same in every form of list
    for column in values.keys() - {"caption", "index"}:
        values[column] = None if values[column] is None else str(values[column])
    caption = (values.pop("caption", None) or "").strip()
    if re.search("[\0\ud800-\udfff]", caption):
        raise ValueError(f"{where} has a caption that is no text: it contains a NUL or half a character.")
    return {"prompt": caption, **values} if caption else {}


def plain_name(index: Any) -> str:
    """An index as the name of the folder of its training images; 3, 3.0 and "3" give the same name.

    Raises:
        ValueError: the name would lead out of its parent folder, or is invalid on some system.
    """
    if isinstance(index, float) and index.is_integer():
        index = int(index)
    name = re.sub(r"\A([0-9]+)\.0\Z", r"\1", str(index))  # pandas writes 3 as 3.0 if other values are missing
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", name)
    strange = re.search(r'[/\\:*?"<>|\x00-\x1f\x7f\ud800-\udfff]', name)
    if reserved or strange or name != name.strip() or name.endswith(".") or not 0 < len(name.encode()) <= LONGEST_NAME:
        raise ValueError(
            f"index {name[:60]!r}, which is no plain name or number: it names the folder of training images, so it "
            f"holds no '/', '\\' or ':', is not '..' and has at most {LONGEST_NAME} bytes."
        )
    return name


# --- text -------------------------------------------------------------------------------------------------


def text_of(path: Path) -> str:
    """The content of a text file, without byte order marks and without line ends at its end.

    Raises:
        ValueError: the file is neither UTF-8 nor UTF-16 with a byte order mark, or is too large.
    """
    if path.stat().st_size > MOST_BYTES:
        raise too_large(path)
    content = path.read_bytes()
    for beginning, form in _OTHER.items():
        if content[:100].lstrip().lower().startswith(beginning):
            raise ValueError(f"{path} is {form} inside, not text.")
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if wide else "utf-8")
    except UnicodeDecodeError as error:
        number = len(lines_of(content[: error.start].decode("utf-8", "replace")))
        line = "" if wide else f" from line {number} on"
        raise ValueError(f"{path} is not UTF-8 text{line}: save it as UTF-8 in a text editor.") from None
    if "\0" in text:
        number = len(lines_of(text[: text.index("\0")]))
        raise ValueError(f"{path}, line {number}, holds NUL characters and no captions: save the file as UTF-8 text.")
    if any(text.count(character) > 5 * MOST_ROWS for character in "\n\r[{"):  # indented JSON has several lines a row
        raise too_large(path)
    return re.sub("(^|[\r\n])\ufeff+", r"\1", text).rstrip("\r\n")  # also in the middle of concatenated files


def lines_of(text: str) -> list[str]:
    """Lines as a text editor shows them. (`str.splitlines` also splits at characters that captions contain.)"""
    return re.split(r"\r\n|\n|\r", text)


def _read_text(path: Path) -> Rows:
    lines = lines_of(text_of(path))
    filled = [line for line in lines if line.strip()]
    if any(map(_SUSPECT.search, filled)):
        from .tables import check_text

        check_text(path, lines, filled)
    return "line", ((number, {"caption": line}) for number, line in enumerate(lines, 1))
