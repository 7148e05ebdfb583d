"""Rows of the notebooks' tables: what each is of, and both axes of the trade-off with their intervals.

rows = [Row({"model": "unedited"}), Row({"model": "pruned"}, spec), *control_rows(run, "model")]
rows += baseline_rows(run, "embedding optimization", [1.0, 0.4], column="model")
table = evaluated(run, rows, part="report", description="pruned models")        # a row each
readable(table)                                                                  # as people read it
per_caption(run, rows, "report")                                                 # a row an image
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
"""The paper's sparsity: a row of every table."""


@dataclass(frozen=True)
class Row:
    """A model of a table, or a baseline at a strength.

    Attributes:
        labels: what the table calls it, by column.
        spec: how its edit is made; None: it has none.
        control: name of a model that was never trained on the memorized pairs (`Run.controls`); it instead.
        baseline: name and strength of what is done at inference time.
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
        """What `run.scores` takes for it besides the model: how it samples, and what that is a function of."""
        if not self.baseline:
            return {}
        name, strength = self.baseline
        baseline = BASELINES.find(name)
        content = {"method": name, "strength": baseline.label(strength), "version": getattr(baseline, "version", 1)}
        return {"sample": baseline.make(_context(run), strength), **content}

    def held_out(self, run: Run, part: str) -> list[int]:
        """Places of the memorized prompts of a part that did not locate its edit."""
        return run.data.held_out(run.data.located_on(self.spec.located_on) if self.spec else [], part)


@lru_cache(maxsize=1)  # a baseline's statistics of ordinary prompts belong to it, and are the same at every strength
def _context(run: Run) -> Context:
    p = run.parameters
    options = {"steps": p.capture.steps, "batch_size": p.sampling.batch_size}
    plain, ordinary = run.scores.sample(run.unedited), run.data.captions("ordinary")
    rows = gradient_rows(run.denoiser, p.sampling.batch_size)
    return Context(run.pipe, plain, ordinary, gradient_rows=rows, **options)


def control_rows(run: Run, column: str, **labels: Any) -> list[Row]:
    """The controls as rows of a table, where the model has any: the name of each in `column`, before other labels."""
    return [Row({column: name} | labels, control=name) for name in run.info.controls]


def baseline_rows(run: Run, name: str, strengths: Sequence[Any] | None = None, column: str = "method") -> list[Row]:
    """A row a strength of a baseline (default: of the parameters, or its own): its name in `column`, and `strength`."""
    baseline = BASELINES.find(name)
    swept = run.parameters.baselines.strengths.get(name, baseline.strengths) if strengths is None else strengths
    return [Row({column: name, "strength": baseline.label(s)}, baseline=(name, s)) for s in swept]


def evaluated(
    run: Run, rows: Sequence[Row], part: str, description: str, captions: int | None = None, unseen: int | None = None
) -> pd.DataFrame:
    """`Scores.evaluate` of each row on prompts that did not locate its edit, with 95 % intervals of all three axes.

    Without a world, columns references and listed say how many such prompts have a training image, and how many there
    are. What the table says of each kind of captions is noted under the description (`notebooks.kinds`).

    Args:
        part: "choose" or "report": memorized and unseen captions of one are none of the other.
        captions, unseen: memorized and unseen captions (default: `evaluation.captions`).
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
    """Of copy similarity and relative alignment, over captions; what is scored is stored by now."""
    similar = run.scores.memorized(model, places, **how)["copy_similarity"]
    each, reference = (
        alignment_each(run.scores.unseen(which, n, part=part, **more))
        for which, more in ((model, how), (run.scores.reference, {}))
    )
    bounds = {"copy": mean_interval(similar), "relative": ratio_interval(each, reference, paired=True)}
    return {f"{name}_{end}": x for name, both in bounds.items() for end, x in zip(("low", "high"), both, strict=True)}


def per_caption(run: Run, rows: Sequence[Row], part: str) -> pd.DataFrame:
    """What `evaluated` summarizes, a row an image: the first label as `model`, prompt, verdict and copied (of memorized
    captions), alignment (of unseen ones)."""
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
    """A column of `per_caption`, averaged over the models of one name: a row a caption that all have, a column a model.

    Captions are the independent units: models that were located on different prompts share them.
    """
    known = table.dropna(subset=[column]).astype({column: float})
    return known.pivot_table(index="prompt", columns="model", values=column, sort=False).dropna()


def share_interval(values: Values) -> tuple[float, float]:
    """`mean_interval` of shares a caption: where all are 0 or 1, Wilson's, which has a width at none and at all."""
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
"""What tables call what `evaluated` measures."""


def readable(table: pd.DataFrame, labels: Sequence[str] = ()) -> pd.DataFrame:
    """A table of `evaluated` as people read it: values with their 95 % intervals; the labels are its index.

    Args:
        labels: columns that say what a row is (default: those before the measures).
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
    """A value of a table with the interval beside it: of "exact_rate" exact_low and exact_high."""
    beginning = name.split("_")[0]
    return Span(*(scale * float(row[column]) for column in (name, f"{beginning}_low", f"{beginning}_high")))


def spans(table: pd.DataFrame, columns: Mapping[str, str], scale: float = 100, form: str = ".0f") -> pd.DataFrame:
    """Some values of a table with their intervals, under the names that `columns` gives them."""
    return pd.DataFrame(
        {title: [f"{span(row, name, scale):{form}}" for _, row in table.iterrows()] for name, title in columns.items()},
        index=table.index,
    )


def under_attack(run: Run) -> list[Model]:
    """The models that an attack is tried on: unedited, pruned, and the controls where there are any."""
    return [run.unedited, run.model(), *run.controls.values()]


def gradient_rows(denoiser: Denoiser, batch_size: int) -> int:
    """Rows of a network call that keeps its activations for a gradient: four at 64 x 64 latents, about 10 GB.

    Args:
        batch_size: of sampling; half of it at most, so that a small one keeps all of a run small.
    """
    return min(max(4, 4 * 64**2 // denoiser.latent_shape[1] ** 2), max(1, batch_size // 2))
