"""Rows of the notebooks' tables: the models that they describe, and both axes of the trade-off with intervals.

rows = [Row({"model": "unedited"}), Row({"model": "pruned"}, spec), *control_rows(run, "model")]
rows += baseline_rows(run, "embedding optimization", [1.0, 0.4], column="model")
table = evaluated(run, rows, part="report", description="pruned models")        # a row each
readable(table)                                                                  # for display
per_caption(run, rows, "report")                                                 # one row per image
for model in under_attack(run): ...                                              # unedited, pruned, and controls
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from memsub.measure.evaluation import alignment_each
from memsub.models import Denoiser
from memsub_extra.mitigations import BASELINES, Context
from memsub_extra.run.model import Model
from memsub_extra.run.run import OTHER as OTHER
from memsub_extra.run.run import TWIN as TWIN
from memsub_extra.run.run import Run
from memsub_extra.run.specs import EditSpec

from .intervals import Span, Values, mean_interval, ratio_interval
from .kinds import IMAGES, listed, note_evaluated, references

PAPER = 0.01
"""The paper's sparsity, which is a row of every table."""


@dataclass(frozen=True)
class Row:
    """A model of a table, or a baseline at a strength.

    Attributes:
        labels: labels in the table, by column.
        spec: spec of its edit; None: no edit.
        control: name of a control model (`Run.controls`) that takes the place of the run's model.
        baseline: name and strength of a mitigation at inference time.
    """

    labels: dict[str, Any]
    spec: EditSpec | None = None
    control: str = ""
    baseline: tuple[str, Any] | None = None

    def model(self, run: Run) -> Model:
        name = str(next(iter(self.labels.values()), ""))
        if self.control:
            return Model(name, run.control_pipes[self.control])
        return Model(name, run.pipe, run.grid.edit(self.spec) if self.spec else None)

    def how(self, run: Run) -> dict[str, Any]:
        """Arguments of `run.scores` in addition to the model: the sampling function, and what it depends on."""
        if not self.baseline:
            return {}
        name, strength = self.baseline
        baseline = BASELINES.find(name)
        content = {"method": name, "strength": baseline.label(strength), "version": getattr(baseline, "version", 1)}
        return {"sample": baseline.make(_context(run), strength), **content}

    def held_out(self, run: Run, part: str) -> list[int]:
        """Places of the memorized prompts of a part that did not locate its edit."""
        return run.data.held_out(run.data.located_on(self.spec.located_on) if self.spec else [], part)


@lru_cache(maxsize=1)  # shared by all strengths, with its statistics of ordinary prompts
def _context(run: Run) -> Context:
    p = run.parameters
    options = {"steps": p.capture.steps, "batch_size": p.sampling.batch_size}
    plain, ordinary = run.scores.sample(run.unedited), run.data.captions("ordinary")
    rows = gradient_rows(run.denoiser, p.sampling.batch_size)
    return Context(run.pipe, plain, ordinary, gradient_rows=rows, **options)


def control_rows(run: Run, column: str, **labels: Any) -> list[Row]:
    """The controls, if any, as rows of a table: the name of each in `column`, before other labels."""
    return [Row({column: name} | labels, control=name) for name in run.info.controls]


def baseline_rows(run: Run, name: str, strengths: Sequence[Any] | None = None, column: str = "method") -> list[Row]:
    """A row for each strength of a baseline (default: the parameters', else the baseline's), labelled by both."""
    baseline = BASELINES.find(name)
    swept = run.parameters.baselines.strengths.get(name, baseline.strengths) if strengths is None else strengths
    return [Row({column: name, "strength": baseline.label(s)}, baseline=(name, s)) for s in swept]


def evaluated(
    run: Run, rows: Sequence[Row], part: str, description: str, captions: int | None = None, unseen: int | None = None
) -> pd.DataFrame:
    """`Scores.evaluate` of each row on prompts that did not locate its edit, with 95 % intervals.

    Rates, copy similarity and relative alignment have intervals. Without a world, the columns references and listed
    give the number of such prompts with a training image, and of all such prompts. The table by kind of caption is
    noted under the description (`notebooks.kinds`).

    Args:
        part: "choose" or "report"; these parts share no memorized or unseen captions.
        captions, unseen: numbers of memorized and unseen captions (default: `evaluation.captions`).
    """
    n, table = run.parameters.evaluation.captions, []
    for row in tqdm(rows, desc=description):
        model, places, how = row.model(run), row.held_out(run, part)[: captions or n], row.how(run)
        entries = run.scores.evaluate(model, places, unseen or n, part, **how)
        of_part = listed(run, run.data.located_on(row.spec.located_on) if row.spec else [], part)
        note_evaluated(run, description, row.labels, model, places, of_part, **how)
        entries |= references(run, of_part) if run.data.world is None else {}
        table.append(row.labels | entries | _intervals(run, model, places, unseen or n, part, how))
    return pd.DataFrame(table)


def _intervals(
    run: Run, model: Model, places: list[int], n: int, part: str, how: Mapping[str, Any]
) -> dict[str, float]:
    """Intervals of copy similarity and relative alignment over captions, from stored scores."""
    similar = run.scores.memorized(model, places, **how)["copy_similarity"]
    each, reference = (
        alignment_each(run.scores.unseen(which, n, part=part, **more))
        for which, more in ((model, how), (run.scores.reference, {}))
    )
    bounds = {"copy": mean_interval(similar), "relative": ratio_interval(each, reference, paired=True)}
    return {f"{name}_{end}": x for name, both in bounds.items() for end, x in zip(("low", "high"), both, strict=True)}


def per_caption(run: Run, rows: Sequence[Row], part: str) -> pd.DataFrame:
    """The images that `evaluated` summarizes, a row for each: the first label as `model`, prompt, verdict and copied
    (of memorized captions), alignment (of unseen ones)."""
    n, tables = run.parameters.evaluation.captions, []
    for row in rows:
        model, how = row.model(run), row.how(run)
        scored = run.scores.memorized(model, row.held_out(run, part)[:n], **how)
        unseen = run.scores.unseen(model, n, part=part, **how)
        verdicts = {"prompt": scored["prompt"], "verdict": run.judge.of(scored), "copied": scored["replicated"]}
        aligned = {"prompt": unseen["prompt"], "alignment": alignment_each(unseen)}
        name = next(iter(row.labels.values()))
        tables.append(pd.concat([pd.DataFrame(verdicts), pd.DataFrame(aligned)]).assign(model=name))
    return pd.concat(tables, ignore_index=True)


def of_captions(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of `per_caption`, averaged over models with the same name: a row for each common caption.

    Captions are the independent units. The result has a column for each name of a model.
    """
    known = table.dropna(subset=[column]).astype({column: float})
    return known.pivot_table(index="prompt", columns="model", values=column, sort=False).dropna()


def share_interval(values: Values) -> tuple[float, float]:
    """`mean_interval` of shares, one per caption; if all are 0 or all are 1, Wilson's interval, which has a width."""
    shares = pd.Series(values)
    return mean_interval(shares.astype(bool) if shares.isin([0, 1]).all() else shares)


READ = {
    "density": "weights at zero (%)",
    "exact": "replicated, exact test (%)",
    "replication": "replicated, copy metric (%)",
    "copy_similarity": "copy similarity",
    "relative_alignment": "relative alignment (%)",
    "n": "captions",
    "references": IMAGES,
}
"""Names of the columns of `evaluated` for display."""


def readable(table: pd.DataFrame, labels: Sequence[str] = ()) -> pd.DataFrame:
    """A table of `evaluated` for display: values with their 95 % intervals; the labels are its index.

    Args:
        labels: columns that identify a row (default: those before the measures).
    """
    labels = list(labels or table.columns[: table.columns.get_loc("replication_rate")])
    return pd.DataFrame([dict(_read(row)) for row in table.to_dict("records")], index=_index(table, labels))


def _index(table: pd.DataFrame, labels: list[str]) -> pd.Index:
    shown = table[labels].map(lambda x: f"{x:g}" if isinstance(x, float) else x)
    return pd.MultiIndex.from_frame(shown) if len(labels) > 1 else pd.Index(shown[labels[0]], name=labels[0])


def _read(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "density" in row:
        yield READ["density"], f"{100 * row['density']:.1f}"
    for judge in ("exact", "replication"):
        if f"{judge}_rate" in row:
            yield READ[judge], f"{span(row, f'{judge}_rate', 100):.0f}"
    yield READ["copy_similarity"], f"{span(row, 'copy_similarity'):.2f}"
    yield READ["relative_alignment"], f"{span(row, 'relative_alignment', 100):.0f}"
    yield READ["n"], f"{row['n']:.0f}"
    if "references" in row:
        yield READ["references"], f"{row['references']:.0f} of {row['listed']:.0f}"


def span(row: Mapping[str, Any] | pd.Series, name: str, scale: float = 1) -> Span:
    """A value of a table with its interval: for "exact_rate" from exact_low to exact_high."""
    beginning = name.split("_")[0]
    return Span(*(scale * float(row[column]) for column in (name, f"{beginning}_low", f"{beginning}_high")))


def spans(table: pd.DataFrame, columns: Mapping[str, str], scale: float = 100, form: str = ".0f") -> pd.DataFrame:
    """Values of a table with their intervals, with the column names of `columns`."""
    return pd.DataFrame(
        {title: [f"{span(row, name, scale):{form}}" for _, row in table.iterrows()] for name, title in columns.items()},
        index=table.index,
    )


def under_attack(run: Run) -> list[Model]:
    """The models under attack: unedited, pruned, and the controls if there are any."""
    return [run.unedited, run.model(), *run.controls.values()]


def gradient_rows(denoiser: Denoiser, batch_size: int) -> int:
    """Rows of a network call that keeps its activations for a gradient: four at 64 x 64 latents, about 10 GB.

    Args:
        batch_size: batch size of sampling; the result is at most half of it.
    """
    return min(max(4, 4 * 64**2 // denoiser.latent_shape[1] ** 2), max(1, batch_size // 2))
