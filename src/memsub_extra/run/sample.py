"""Selects and orders the prompts of a run. For lists with kinds, every kind is taken in proportion.

    prompts = sampled(prompts, 50, seed=0)          # 11 verbatim and 39 template of 112 and 388, in the list's order
    parts = thirds(kinds, seed=0)                   # places that locate, choose and report: every kind in each
    order = mixed(places, kinds)                    # the first few include every kind
    for line in described(run.data): print(line)    # the selection

Published lists are sorted: of the first 50 captions of SD1.4's list, 45 are verbatim, of all 500 only 112. For lists
without kinds or with a single kind, and for worlds, a run takes the first captions, and thirds are random.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from memsub.prompts import KINDS, Prompts
from memsub_extra.prompt_lists.kinds import counted, kinds_in

if TYPE_CHECKING:
    from .data import Data

PARTS = ("locate", "choose", "report")
"""Names of the thirds of the memorized prompts."""


def strata(rows: pd.DataFrame) -> list[str]:
    """The kinds by which memorized rows are sampled and split; empty for worlds and for a single kind."""
    return [] if "image" in rows else kinds_in(rows["kind"])[:-1]


def quotas(counts: Mapping[str, int], n: int) -> dict[str, int]:
    """Numbers of captions of each kind among n, in proportion to `counts`, by the largest remainder method.

    A rare kind gets at least one caption for each third, if it has enough captions and n allows it.
    """
    total = sum(counts.values())
    exact = {kind: min(n, total) * count / total for kind, count in counts.items()}
    least = {kind: min(len(PARTS), count) for kind, count in counts.items()}
    taken = {kind: max(int(exact[kind]), least[kind]) for kind in counts}
    while sum(taken.values()) < min(n, total):
        taken[max((k for k in counts if taken[k] < counts[k]), key=lambda k: exact[k] - taken[k])] += 1
    while sum(taken.values()) > n:  # rare kinds got more than their share: other kinds lose captions, if possible
        taken[max(counts, key=lambda k: (taken[k] > least[k], taken[k] - exact[k]))] -= 1
    return taken


def sampled(prompts: Prompts, n: int, seed: int) -> Prompts:
    """Moves the memorized prompts that a run takes to the front, in the order of the list.

    Lists without kinds, or with at most n memorized prompts, are unchanged.
    """
    rows = prompts.memorized_rows
    if n >= len(rows) or not (kinds := strata(rows)):
        return prompts
    rng, of_rows = np.random.default_rng([seed, 7]), rows["kind"].to_numpy()
    taken = quotas({kind: int((of_rows == kind).sum()) for kind in kinds}, n)
    chosen = np.zeros(len(rows), bool)
    for kind, count in taken.items():
        chosen[rng.permutation(np.flatnonzero(of_rows == kind))[:count]] = True
    order = np.arange(len(prompts.table))
    memorized = np.flatnonzero(prompts.table["kind"].isin(prompts.memorized_kinds))
    order[memorized] = memorized[np.argsort(~chosen, kind="stable")]
    return Prompts(prompts.table.iloc[order].reset_index(drop=True), prompts.memorized_kinds)


def thirds(kinds: Sequence[str], seed: int) -> list[list[int]]:
    """The places of captions in three parts; each part has its share of every kind, give or take a caption.

    Kind by kind, captions are assigned to the parts in turn, in random order within a kind.
    """
    rng, of_places = np.random.default_rng([seed, 3]), np.asarray(kinds)
    dealt = np.concatenate([rng.permutation(np.flatnonzero(of_places == kind)) for kind in kinds_in(kinds)[:-1]])
    return [dealt[part :: len(PARTS)].tolist() for part in range(len(PARTS))]


def mixed(places: Collection[int], kinds: Mapping[int, str]) -> list[int]:
    """Reorders places so that the first n contain every kind in proportion, for any n.

    Places of one kind keep their order. The first places have one of each kind, frequent kinds first.

    Args:
        kinds: kinds of the places.
    """
    of_kind = {kind: [place for place in places if kinds[place] == kind] for kind in KINDS}
    due = [
        (i / len(members), -len(members), KINDS.index(kind), place)
        for kind, members in of_kind.items()
        for i, place in enumerate(members)
    ]
    return [place for *_, place in sorted(due)]


def taken(data: Data) -> dict[str, Any]:
    """The selection of a run from a list with kinds, to be saved: numbers of each kind by part, and the rows.

    Empty for lists without kinds.
    """
    rows, listed = data.memorized.rows, data.prompts.memorized_rows
    if not strata(listed):
        return {}
    parts = {name: rows.iloc[places] for name, places in data.split.items()}
    # Row numbers count from 0 in the published list, including rows that `data.near_duplicates` omits.
    numbers = rows["row"].astype(int).tolist()
    return {
        "seed": data.parameters.seed,
        "listed": counted(listed),
        "taken": counted(rows),
        "parts": {name: counted(part) for name, part in parts.items()},
        "rows": {name: [numbers[place] for place in places] for name, places in data.split.items()},
    }


def described(data: Data) -> list[str]:
    """`taken` as sentences."""
    if not (about := taken(data)):
        return []
    by_part = "; ".join(f"{name} {counts}" for name, counts in about["parts"].items())
    how = "all are taken" if about["listed"] == about["taken"] else f"{about['taken']} are taken, at random by kind"
    return [
        f"The list has {about['listed']} captions: {how} (seed {about['seed']}).",
        f"Captions by what they do: {by_part}.",
    ]
