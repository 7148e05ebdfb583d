"""Tables of the notebooks by kind of memorized caption: verbatim, template, and all.

    evaluated(run, rows, ...)                   # the table of a notebook; also notes it by kind
    run.by_kind["pruned models"]                # columns of the table, kind, n, references, listed, rates
    readable(run.by_kind["pruned models"])      # the same for display
    figure = plots.by_kind(run.by_kind["pruned models"], run.judge.column)
    with_references(run, table)                 # adds how many captions have an image

For lists with kinds (`Data.memorized`), experiments also note their tables by kind. `findings.checks` records them with
the notebook's findings, and the report shows them with their limitations (`prompt_lists.kinds`). They require no more
sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pandas as pd

from memsub.measure.evaluation import alignment
from memsub.measure.intervals import rate
from memsub.neurons import WeightMasks
from memsub.overlap import pairwise_iou
from memsub_extra.prompt_lists.kinds import ALL, kinds_in, notes
from memsub_extra.run.model import Model
from memsub_extra.run.run import Run
from memsub_extra.run.sample import described

from .intervals import Span
from .notebook02 import density
from .subsets import Measured, profile

IMAGES = "with a training image"
"""The column of tables with the number of captions whose training image is known."""


def kinds_of(run: Run) -> list[str]:
    """The kinds of a run's memorized captions, in the order of tables, then "all"; empty for a single kind."""
    return kinds_in(run.data.memorized.kinds)


def listed(run: Run, located_on: Collection[int], part: str = "report") -> list[int]:
    """Places of a part's memorized prompts that did not locate an edit, with and without a training image."""
    return [place for place in run.data.split[part] if place not in set(located_on)]


def note(run: Run, title: str, rows: list[dict[str, Any]]) -> None:
    """Adds rows to a table by kind, without rows that an earlier call added."""
    if not rows:
        return
    earlier = [run.by_kind[title]] if title in run.by_kind else []
    table = pd.concat([*earlier, pd.DataFrame(rows)], ignore_index=True)
    run.by_kind[title] = table.drop_duplicates(ignore_index=True)  # several models may have one name


def note_scored(
    run: Run,
    title: str,
    labels: Mapping[str, Any],
    scored: pd.DataFrame,
    places: Collection[int],
    of_part: Collection[int],
) -> None:
    """Notes a table of `Scores.memorized` by kind.

    Args:
        labels: labels of the row, by column.
        scored: one row for each image of the captions at `places`.
        of_part: places of all captions of the part, with and without a training image.
    """
    captions, rows = run.data.captions("memorized"), []
    for kind in kinds_of(run):
        of_kind = {captions[place] for place in run.data.memorized.of_kind(places, kind)}
        part = scored[scored["prompt"].isin(of_kind)]
        row = {**labels, "kind": kind, "n": len(part), **references(run, of_part, kind)}
        if len(part):
            row |= rate("replication", part["replicated"])
            if run.judge.column == "exact":
                row |= rate("exact", run.judge.of(part))
            row["copy_similarity"] = float(part["copy_similarity"].mean())
            row["memorized_alignment"] = alignment(part)
        rows.append(row)
    note(run, title, rows)


def note_evaluated(
    run: Run,
    title: str,
    labels: Mapping[str, Any],
    model: Model,
    places: Collection[int],
    of_part: Collection[int],
    **how: Any,
) -> None:
    """`note_scored` for the images that `Scores.evaluate` scores with these arguments; nothing for a single kind."""
    if kinds_of(run):
        note_scored(run, title, labels, run.scores.memorized(model, places, **how), places, of_part)


def note_outcomes(
    run: Run, title: str, labels: Mapping[str, Any], outcomes: Mapping[int, bool], name: str, of_part: Collection[int]
) -> None:
    """Notes the rate `name` of each kind; `outcomes` has one outcome per caption, by place."""
    rows = []
    for kind in kinds_of(run):
        hits = [outcomes[place] for place in run.data.memorized.of_kind(list(outcomes), kind)]
        row = {**labels, "kind": kind, "n": len(hits), **references(run, of_part, kind)}
        rows.append(row | (rate(name, hits) if hits else {}))
    note(run, title, rows)


def note_sets(run: Run, notebook: str) -> None:
    """Notes the density (notebook 02) and the overlap (03) of masks of captions of one kind, at the first steps.

    Their statistics come from the same capture as all others.
    """
    if notebook not in SETS:
        return
    masks, groups = dict[str, list[WeightMasks]](), run.grid.groups_by_kind()
    for group in groups:
        masks.setdefault(group.kind, []).append(run.grid.masks(group, steps=run.parameters.edit.steps))
    if not masks:
        return
    title, measure = SETS[notebook]
    sets, rows = len(masks["verbatim"]), []
    for name, measured in measure(masks).items():
        mean, low, high = profile(measured).overall.tolist()
        rows.append({"kind": name, "sets": sets, "captions": groups[0].size, "mean": mean, "low": low, "high": high})
    note(run, title, rows)


def _shared(masks: Masks) -> dict[str, Measured]:
    """IoU of every two sets of the same kind, and of every verbatim set with every template set."""
    n = len(masks["verbatim"])
    alike, crossed = list(combinations(range(n), 2)), list(product(range(n), range(n)))
    shared = {f"{kind} – {kind}": Measured(pairwise_iou(m, pairs=alike).numpy(), alike) for kind, m in masks.items()}
    across = pairwise_iou(masks["verbatim"], masks["template"], crossed).numpy()
    return shared | {"verbatim – template": Measured(across, crossed)}


Masks = Mapping[str, Sequence[WeightMasks]]
SETS: dict[str, tuple[str, Callable[[Masks], dict[str, Measured]]]] = {
    "02_memorized_neurons": ("memorized weights (%) of sets of one kind", density),
    "03_subspace_overlap": ("overlap (IoU) of sets of one kind", _shared),
}
"""Notebook to the title of its table, and the measure of the masks of each kind."""


def references(run: Run, of_part: Collection[int], kind: str = ALL) -> dict[str, int]:
    """Numbers of captions of a kind at these places: all (listed), and with a training image (references)."""
    of_kind = run.data.memorized.of_kind(of_part, kind)
    return {"references": sum(place in run.data.references for place in of_kind), "listed": len(of_kind)}


def with_references(run: Run, table: pd.DataFrame, of_part: Collection[int] | None = None) -> pd.DataFrame:
    """Adds to a table how many captions at these places (default: of the third that reports) have a training image;
    for a world, where all are known, the table is unchanged."""
    if run.data.world is not None:
        return table
    known = references(run, listed(run, []) if of_part is None else of_part)
    return table.assign(**{IMAGES: "{references} of {listed}".format(**known)})


def readable(table: pd.DataFrame, title: str = "") -> pd.DataFrame:
    """A table by kind for display: values with their 95 % intervals, rates in percent; empty if no caption of a kind
    was judged.

    Args:
        table: a table of `Run.by_kind`.
        title: title of the columns.
    """
    at = list(table.columns).index("kind") + 1
    rows = [dict(_read(row)) for row in table.iloc[:, at:].to_dict("records")]
    labels = pd.MultiIndex.from_frame(table.iloc[:, :at].astype(str))
    return pd.DataFrame(rows, index=labels).fillna("").rename_axis(columns=title)


def _read(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Columns and values of a row as text; an interval is part of its value."""
    for name, value in row.items():
        if pd.isna(value) or name == "listed" or name.endswith(("low", "high")):
            continue
        if name == "n":
            yield "captions", f"{value:.0f}"
        elif name == "references":
            yield IMAGES, f"{value:.0f} of {row['listed']:.0f}"
        elif name.endswith("_rate"):
            measure = name.removesuffix("_rate")
            low, high = row[f"{measure}_low"], row[f"{measure}_high"]
            yield f"{measure} (%)", f"{Span(100 * value, 100 * low, 100 * high):.0f}"
        elif name.endswith(", AUC"):
            score = name.removesuffix(", AUC")
            yield name, f"{Span(value, row[f'{score}, low'], row[f'{score}, high']):.2f}"
        else:
            yield name.replace("_", " "), f"{value:.2f}"


def notes_of(run: Run) -> list[str]:
    """Notes on all tables by kind of a run: kinds and training images of its list, and `prompt_lists.kinds.notes`."""
    rows = run.data.memorized.rows
    if not kinds_in(rows["kind"]):
        return []
    places = range(len(rows))
    counts = {kind: references(run, places, kind) for kind in kinds_in(rows["kind"])}
    known = ", ".join(f"{count['references']} of {count['listed']} {kind}" for kind, count in counts.items())
    images = f"Training images: {known}; only captions that have one are judged."
    return [*described(run.data), images, *notes(rows, run.judge.column)]
