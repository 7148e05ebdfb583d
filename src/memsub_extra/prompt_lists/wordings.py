"""Other wordings of captions, and whether an edit also works for them.

    wordings_of(rows)                           # for each row: `rephrased` of a list, `content` of a world
    required(captions, wordings, "SISS")        # one each, else an error that names the column to add

    listed = wordings_in(rows)                  # one row per prompt: prompt, image, row, is_caption
    by_wording(scored, listed)                  # replication by wording; scored: model to a table of images

A list has other wordings in a column `rephrased` (several: one a line, a JSON list, or columns caption1, ...). Or, as
in MemBench, it is a list of wordings with the addresses of the images that they replicate. There, a unit consists of
all prompts that are connected by common addresses.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from memsub.io.lists import READERS

CAPTION, OTHER, ANY = "the caption", "other wordings", "any wording of the image"
"""The rows of `by_wording`."""


def wordings_of(rows: pd.DataFrame, path: str | Path | None = None) -> list[list[str]]:
    """Other wordings of each row's caption; may be empty.

    Args:
        path: file of the list, for messages.

    Raises:
        ValueError: a cell begins like a list of texts but is none; the message names the caption and its line.
    """
    column = next((name for name in ("rephrased", "content") if name in rows), None)
    if column is None:
        return [[] for _ in range(len(rows))]
    cells = rows[column].where(rows[column].notna(), "").astype(str)
    others = []
    for caption, cell in zip(rows["prompt"], cells, strict=True):
        try:
            texts = _texts(cell)
        except ValueError as error:
            where = _where(path, str(caption), column, cell)
            raise ValueError(f"{where}the other wordings of {str(caption)[:60]!r} {error}") from None
        others.append([text for text in dict.fromkeys(texts) if text != str(caption).strip()])
    return others


def _texts(cell: str) -> list[str]:
    """The texts of a cell, which has one text per line, or a list."""
    lines = re.split("[\r\n]+", cell)
    try:
        listed = _listed(cell)
    except ValueError:
        if len(lines) == 1:
            raise
        listed = None
    if listed is None:  # cells of several columns were joined as lines; each may be a list
        of_lines = ((line, _listed(line)) for line in lines)
        listed = [text for line, texts in of_lines for text in ([line] if texts is None else texts)]
    return [text.strip() for text in listed if text.strip()]


def _listed(text: str) -> list[str] | None:
    """The texts of a list in JSON or Python notation ("['a', 'b']"); None if the cell is a plain text.

    Raises:
        ValueError: it begins with a bracket and a quote, but is no list of texts.
    """
    text = text.strip()
    if not text.startswith("["):
        return None
    try:
        values = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        try:
            values = ast.literal_eval(text)
            strings = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.STRING]
            if len(strings) > len(values):  # ['a' 'b'], as numpy writes it, is one text in Python
                values = None
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
            values = None
    if isinstance(values, list) and all(value is None or isinstance(value, str) for value in values):
        return [value for value in values if value]
    if re.match(r"""\[\s*["']""", text):
        raise ValueError(f'are no list of texts: {text[:80]!r}; expected a JSON list such as ["one", "another"].')
    return None


def required(captions: Sequence[str], wordings: Sequence[Sequence[str]], what: str) -> list[str]:
    """The first other wording of each caption.

    Args:
        what: what requires it, for the message.

    Raises:
        ValueError: a caption has none; the message says how many, and which column to add.
    """
    of_each = list(wordings) or [[] for _ in captions]
    if without := [caption for caption, others in zip(captions, of_each, strict=True) if not others]:
        raise ValueError(
            f"{what} needs the content of each caption in other words, and {len(without)} of {len(captions)} captions "
            f"have none, such as {without[0][:60]!r}. Add a column 'rephrased' to the prompt list, with a caption that "
            "describes the same image in other words."
        )
    return [others[0] for others in of_each]


def wordings_in(rows: pd.DataFrame, path: Path | None = None) -> pd.DataFrame:
    """The prompts of a list, grouped by image.

    Args:
        path: the list's file, for messages.

    Returns:
        Columns prompt, image (number of the unit), row (place in the list, whose training images apply) and is_caption.
        A caption and its other wordings are a unit. If the list has addresses (`urls`, as in MemBench), all its prompts
        are other wordings, and prompts with a common address are a unit. A repeated prompt counts for its first image.

    Raises:
        ValueError: the list has neither other wordings nor addresses, or they cannot be read; the message names the
            line.
    """
    if "urls" in rows and rows["urls"].notna().any():
        prompts = rows["prompt"].tolist()
        units = _units([_addresses(cell, prompt, path) for cell, prompt in zip(rows["urls"], prompts, strict=True)])
        table = pd.DataFrame({"prompt": prompts, "image": units, "row": range(len(rows)), "is_caption": False})
        return table.drop_duplicates("prompt", ignore_index=True)
    listed = []
    for row, (caption, others) in enumerate(zip(rows["prompt"], wordings_of(rows, path), strict=True)):
        if others:
            listed += [(caption, row, row, True), *((other, row, row, False) for other in others)]
    if not listed:
        held = ", ".join(column for column in rows if rows[column].notna().any())
        raise ValueError(
            f"{path or 'the list'} has no other wordings: a column 'rephrased' is expected, or 'urls' as MemBench has; "
            f"of the columns that are read it holds {held}."
        )
    table = pd.DataFrame(listed, columns=["prompt", "image", "row", "is_caption"])
    return table.drop_duplicates("prompt", ignore_index=True)


def _addresses(cell: object, prompt: str, path: Path | None) -> list[str]:
    """The addresses of a cell: a Python list "['http://a', 'http://b']" (MemBench), or separated by commas etc."""
    text = "" if pd.isna(cell) else str(cell).strip()
    if not text.startswith("["):
        return re.split(r"[\s,;|]+(?=https?://)", text) if text else []
    try:
        addresses = _listed(text)
    except ValueError:
        addresses = None
    if addresses is None:
        raise ValueError(
            f"{_where(path, prompt, 'urls', text)}the addresses of {prompt[:60]!r} are no list of texts: "
            f"{text[:80]!r}; expected a list such as ['http://a', 'http://b']."
        )
    return addresses


def _where(path: str | Path | None, prompt: str, column: str, cell: str) -> str:
    """The place of a prompt with this cell in its file, for messages: "a.csv, line 3: "; "" if there is no file."""
    if not path or not Path(path).is_file():  # it may be a list by name
        return ""
    unit, rows = READERS[Path(path).suffix.lower()](Path(path))
    for number, row in rows:
        if str(row.get("caption")).strip() == prompt and str(row.get(column)).strip() == cell.strip():
            return f"{path}, {unit} {number}: "
    return f"{path}: "


def _units(addresses: Sequence[Sequence[str]]) -> list[int]:
    """The unit of each prompt: prompts that are connected by common addresses; a prompt without address is a unit."""
    import networkx

    graph = networkx.Graph()
    for i, of_prompt in enumerate(addresses):
        graph.add_node(i)
        graph.add_edges_from((i, address) for address in of_prompt)
    number: dict[int, int] = {}
    for unit, nodes in enumerate(networkx.connected_components(graph)):
        number |= {node: unit for node in nodes if isinstance(node, int)}
    return [number[i] for i in range(len(addresses))]


def by_wording(scored: Mapping[str, pd.DataFrame], listed: pd.DataFrame) -> pd.DataFrame:
    """Replication with the caption, with other wordings, and with any wording of an image.

    Args:
        scored: model to a table with one row per image: prompt and replicated (NaN: no training image).
        listed: as from `wordings_in`.

    Returns:
        A row for each model and wording: rate (mean over units of the share of replicated images; for "any wording":
        share of units with a replicated image); low and high (95 %, over units); images (units with a training image);
        wordings.
    """
    from memsub.measure.intervals import interval
    from memsub_extra.notebooks.intervals import mean_interval

    rows = []
    for model, table in scored.items():
        rates = table.groupby("prompt")["replicated"].agg(["mean", "max"]).dropna()
        known = listed.merge(rates, left_on="prompt", right_index=True)
        parts = {CAPTION: known[known["is_caption"]], OTHER: known[~known["is_caption"]], ANY: known}
        for wording, part in parts.items():
            if part.empty:
                continue
            units = part.groupby("image")
            each = (units["max"].max() > 0) if wording == ANY else units["mean"].mean()
            low, high = mean_interval(each.to_numpy())
            if wording != ANY and each.nunique() == 1:  # a bootstrap has no width here: each unit is one outcome
                low, high = interval(round(float(each.sum())), len(each))
            counts = {"images": len(each), "wordings": len(part)}
            rows.append(
                {"model": model, "wording": wording, "rate": float(each.mean()), "low": low, "high": high} | counts
            )
    return pd.DataFrame(rows, columns=["model", "wording", "rate", "low", "high", "images", "wordings"])
