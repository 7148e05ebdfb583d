"""Kinds of memorized captions, joined from published types; and notes on tables by kind.

    table = with_types(load_prompts("sd14").table, read_prompts("memorized_laion_prompts.csv"))
    table[["prompt", "kind", "max_sscd"]]       # as many rows as before, in their order
    for note in notes(table, "replication"): print(note)

A list of captions and a table of types are joined by index and caption, then by caption alone, ignoring case. No row is
lost or repeated. If the two disagree, a warning names the caption, and its kind stays "memorized". If fewer than half
of the captions can be joined, this is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from memsub.io.downloads import NEMO, fetch_url
from memsub.io.lists import plain_name, read_rows
from memsub.prompts import KINDS, read_prompts

from .joining import ByCaption, folded, spaced
from .tally import shortened

TYPES = {"sd14": NEMO + "prompts/memorized_laion_prompts.csv"}
"""Published types and statistics of the memorized prompts: model to address."""
ALL = "all"
"""The row for all captions in a table by kind."""
STATISTICS = ("mean_sscd", "max_sscd")


def published_types(name: str) -> Path | None:
    """The file of published types of a list, fetched on first use; None if there is none.

    Raises:
        ConnectionError, ValueError: as `memsub.io.downloads.fetch_url`.
    """
    if name not in TYPES:
        return None
    url = TYPES[name]
    return fetch_url(url, f"types of the prompts of {name}", f"{name}-types-{url.rsplit('/', 1)[-1]}", check=read_rows)


def read_types(path: str | Path) -> pd.DataFrame:
    """Reads a table of types: columns prompt, kind, and index, mean_sscd and max_sscd if it has them.

    Raises:
        FileNotFoundError, ValueError: as `read_prompts`; or the table has no types, or a statistic is no number.
    """
    table = read_prompts(path)
    if set(table["kind"]) <= {"memorized"}:
        raise ValueError(
            f"{path} says no type of its captions: a column 'type' (or 'kind') is expected, with VM or verbatim, TM or "
            "template."
        )
    for name in table.columns.intersection(STATISTICS):
        try:
            table[name] = pd.to_numeric(table[name]).astype(float)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: the column {name!r} is expected to hold numbers ({error}).") from None
    return table


def with_types(table: pd.DataFrame, types: pd.DataFrame, source: str = "the table of types") -> pd.DataFrame:
    """Adds the kinds and statistics of a table of types to prompts; only rows of memorized kinds change.

    Args:
        table: as in `Prompts.table`.
        types: as from `read_types`.
        source: name of the types in messages.

    Returns:
        The same rows in the same order, with columns mean_sscd and max_sscd added (NaN if unknown).

    Raises:
        ValueError: a caption has two types, in the table of types, or in the table and the list; or fewer than half of
            the captions are in the table.
    """
    by_both, by_caption, by_index = _lookups(types, source)
    there, here, captions = ByCaption(types["prompt"]), ByCaption(table["prompt"]), types["prompt"].tolist()
    alike = {(index, folded(caption)): caption for index, caption in by_both if index is not None}
    joined: dict[int, dict[str, Any]] = {}
    other: list[str] = []
    memorized = table.index[table["kind"].isin(KINDS)]
    for place in memorized:
        caption, index = spaced(table.at[place, "prompt"]), _name(table, place)
        row = by_both.get((index, caption)) or by_both.get((index, alike.get((index, folded(caption)), "")))
        if row is None and (same := there.find(caption, here)):
            row = by_caption.get(spaced(captions[same[0]]))
        if row is not None:
            joined[place] = row
        elif index is not None and index in by_index:
            other.append(f"index {index}: {caption[:60]!r}, and there {by_index[index][:60]!r}")
    missing = len(memorized) - len(joined)
    first = next((spaced(table.at[place, "prompt"]) for place in memorized if place not in joined), "")
    if missing > len(joined):
        raise ValueError(
            f"{source} holds {len(joined) or 'none'} of the {len(memorized)} memorized captions, and not "
            f"{first[:60]!r}; its {len(types)} begin with {spaced(types['prompt'].iloc[0])[:60]!r}: is it of another "
            "list? At least half of the captions are expected."
        )
    _check_kinds(table, joined, source)
    if missing:
        warnings.warn(
            f"{source} says nothing of {missing} of {len(memorized)} memorized captions, such as {first[:60]!r}: their "
            "kind stays as it is." + (f" An index of another caption: {shortened(other)}." if other else ""),
            stacklevel=2,
        )
    typed = table.copy()
    typed["kind"] = [joined[place]["kind"] if place in joined else table.at[place, "kind"] for place in table.index]
    for name in STATISTICS:
        typed[name] = [joined.get(place, {}).get(name, float("nan")) for place in table.index]
    return typed


def _name(table: pd.DataFrame, place: Any) -> str | None:
    """The index of a row as text; None if it has none."""
    if "index" not in table or pd.isna(table.at[place, "index"]):
        return None
    return plain_name(table.at[place, "index"])


def _lookups(types: pd.DataFrame, source: str) -> tuple[dict, dict, dict[str, str]]:
    """Rows of types by (index, caption), and by caption if it has a single type; captions by index."""
    by_both: dict[tuple[str | None, str], dict[str, Any]] = {}
    of_caption: dict[str, list[dict[str, Any]]] = {}
    by_index: dict[str, str] = {}
    for place in types.index:
        caption, index = spaced(types.at[place, "prompt"]), _name(types, place)
        row = {name: types.at[place, name] for name in ("kind", *STATISTICS) if name in types}
        first = by_both.setdefault((index, caption), row)
        if first["kind"] != row["kind"]:
            raise ValueError(f"{source} has two types of {caption[:60]!r}: {first['kind']} and {row['kind']}.")
        of_caption.setdefault(caption, []).append(row)
        if index is not None:
            by_index.setdefault(index, caption)
    by_caption = {caption: rows[0] for caption, rows in of_caption.items() if len({row["kind"] for row in rows}) == 1}
    return by_both, by_caption, by_index


def _check_kinds(table: pd.DataFrame, joined: dict[int, dict[str, Any]], source: str) -> None:
    for place, row in joined.items():
        if table.at[place, "kind"] not in ("memorized", row["kind"]):
            raise ValueError(
                f"the prompt list calls {spaced(table.at[place, 'prompt'])[:60]!r} {table.at[place, 'kind']}, and "
                f"{source} {row['kind']}: leave one of the two out."
            )


# --- what a table by kind says ----------------------------------------------------------------------------------------


def kinds_in(kinds: Iterable[str]) -> list[str]:
    """The kinds of captions in the order of tables, then "all"; empty for a single kind."""
    present = [kind for kind in KINDS if kind in set(kinds)]
    return [*present, ALL] if len(present) > 1 else []


def counted(rows: pd.DataFrame) -> str:
    """ "112 verbatim, 388 template": how many captions of each kind."""
    counts = rows["kind"].value_counts()
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts)


def notes(rows: pd.DataFrame, judge: str) -> list[str]:
    """Notes on a table of replication by kind.

    Args:
        rows: the memorized captions; columns kind, and max_sscd if known.
        judge: `Judge.column` of the verdict; "replication" means copy similarity of whole images.
    """
    said = []
    by_kind = rows["max_sscd"].groupby(rows["kind"]) if "max_sscd" in rows else {}
    known = {kind: values.dropna() for kind, values in by_kind}
    verbatim, template = (known.get(kind, pd.Series(dtype=float)) for kind in ("verbatim", "template"))
    if len(verbatim) and len(template) and verbatim.min() > template.max():
        said.append(
            "The type is itself an SSCD threshold: by the published statistics the maximal SSCD of an unedited model's "
            f"images is {verbatim.min():.3f} or more for every verbatim caption (n = {len(verbatim)}) and "
            f"{template.max():.3f} or less for every template (n = {len(template)}). That the unedited model "
            "replicates verbatim captions more, by SSCD, follows from that and is no finding."
        )
    if judge == "replication" and (rows["kind"] == "template").any():
        said.append(
            "SSCD of whole images cannot judge a template: what a template repeats is a part of the training image, "
            "and the rest varies. A low rate or similarity of templates does not say that nothing is replicated."
        )
    return said
