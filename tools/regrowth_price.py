"""What regrowth costs, and what it needs: `python -m tools.regrowth_price --out runs/price`.

It compares regrowth with training from random weights, on the same pairs and for equally many steps: forget-set
replication, alignment and mean membership p against compute. It also measures regrowth with fewer ordinary pairs, and
with memorized pairs left among them by mistake. Each training is separate: its learning rate decays to zero at its end.

A second call resumes a training at its last checkpoint, and measurements at the first missing one. The cost of a
training is that of the call that finished it, so each row says whether that call had resumed. It writes price.json, one
row per training, for `python -m tools.figures --price`. The last line printed is the cost of all trainings and
measurements.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from memsub.io.files import load_json, save_json
from memsub.measure.evaluation import alignment_each, score
from memsub.measure.exact import LEVEL
from memsub.measure.intervals import clustered
from memsub.measure.metrics import Metrics, load_metrics
from memsub.models import MODELS, Pipeline, fingerprint, generate, load_pipeline
from memsub.prompts import load_prompts
from memsub.pruning import Edit, pruned
from memsub.testbed.world import WORLD
from memsub_extra.files import load_table, save_table
from memsub_extra.notebooks.equivalence import equivalence
from memsub_extra.notebooks.intervals import mean_interval, ratio_interval
from memsub_extra.store import Kind, Store
from memsub_extra.unlearning.audit import SMALLEST, membership, replication
from memsub_extra.unlearning.pairs import SAMPLING, Pairs, Subjects
from memsub_extra.unlearning.removals import REMOVALS
from tools.removals import ORDINARY, subjects

METHODS = ("regrowth", "training anew")
STEPS = (300, 900, 1800)
"""Numbers of steps of both methods; the last is that of the removal."""
FEWER = (1_000, 5_000)
"""Smaller numbers of ordinary pairs."""
CONTAMINATED = (0.001, 0.01)
"""Shares of ordinary pairs that memorized pairs replace."""
SEEDS, CAPTIONS, SCREENING = 2, 200, 4
"""Images of each pair of the forget set; unseen captions for the alignment; steps of the membership test."""
EDITS, MEASURED = Kind("price-edits"), Kind("price")
TABLES = ("replication", "alignment", "membership")


@dataclass(frozen=True)
class Trial:
    """One training: its method, steps, number of ordinary pairs, and the share of these that is memorized."""

    method: str
    steps: int
    pairs: int = ORDINARY
    contaminated: float = 0.0


def trials(steps: Sequence[int] = STEPS) -> Iterator[Trial]:
    """All trainings: both methods at each number of steps, then regrowth with other data at the second largest one."""
    for number in steps:
        yield from (Trial(method, number) for method in METHODS)
    half = sorted(steps)[-2] if len(steps) > 1 else steps[0]
    yield from (Trial("regrowth", half, pairs=pairs) for pairs in FEWER)
    yield from (Trial("regrowth", half, contaminated=share) for share in CONTAMINATED)


def ordinary_pairs(subjects: Subjects, trial: Trial, seed: int = 0) -> Pairs:
    """The pairs that a trial trains on: the first ordinary pairs, some of them replaced by pairs of the forget set."""
    pairs = subjects.ordinary.first(trial.pairs)
    number = round(trial.contaminated * len(pairs))
    if not number:
        return pairs
    places = np.random.default_rng(seed).choice(len(pairs), number, replace=False)
    memorized = [i % len(subjects.forget_set) for i in range(number)]
    captions, images = list(pairs.captions), pairs.images.copy()
    for place, i in zip(places, memorized, strict=True):
        captions[place], images[place] = subjects.forget_set.captions[i], subjects.forget_set.images[i]
    return Pairs(captions, images)


class Prices:
    """Trials on the embedded model, with a store of their edits and measurements."""

    def __init__(self, out: Path, subjects: Subjects, pipe: Pipeline, metrics: Metrics):
        self.store, self.subjects, self.pipe, self.metrics = Store(out), subjects, pipe, metrics

    def edit(self, trial: Trial, **options: Any) -> tuple[Edit, dict[str, Any]]:
        """The trained weights, and their cost: CPU-core minutes of the call that finished them, and if it resumed."""
        pairs = ordinary_pairs(self.subjects, trial)
        removal, given = REMOVALS[trial.method], {"steps": trial.steps} | options
        content: dict[str, Any] = {"model": fingerprint(self.pipe), "captions": pairs.captions, "images": pairs.images}
        content |= {"method": trial.method, "options": removal.options | given, "version": removal.version}
        path = self.store.path(EDITS, ".safetensors", **content)
        if not path.is_file():
            work, began = path.with_suffix(""), time.process_time()
            resumed = work.is_dir()
            # `removal.edit` would refuse contamination: pairs to remove that are among those to keep.
            made = removal.make(self.pipe, self.subjects.forget_set, pairs, folder=work, **removal.options | given)
            made.save(path)
            about = {"minutes": (time.process_time() - began) / 60, "resumed": resumed, "trial": str(trial)}
            save_json(about, path.with_suffix(".json"))
            shutil.rmtree(work, ignore_errors=True)  # its checkpoints
        return Edit.load(path), load_json(path.with_suffix(".json"))

    def measured(self, pipe: Pipeline, edit: Edit | None = None) -> dict[str, np.ndarray]:
        """Measures a model: hits (pairs of the forget set, seeds), alignment (unseen captions,), p of membership."""
        sample = partial(generate, pipe, **SAMPLING)
        forget_set, unseen = self.subjects.forget_set, self.subjects.unseen.first(CAPTIONS)
        make = {
            "replication": lambda: replication(sample, forget_set, WORLD, range(SEEDS)),
            "alignment": lambda: alignment_each(score(sample, self.metrics, unseen.captions)).to_frame("each"),
            "membership": lambda: membership(pipe, forget_set, WORLD, SCREENING, progress=False),
        }
        tables = {}
        with pruned(pipe, edit):
            content = {"model": fingerprint(pipe), "captions": forget_set.captions, "unseen": unseen.captions}
            for name in TABLES:
                path = self.store.path(MEASURED, f"-{name}.parquet", **content)
                if not path.is_file():
                    began = time.process_time()
                    save_table(make[name](), path)
                    save_json({"minutes": (time.process_time() - began) / 60}, path.with_suffix(".json"))
                tables[name] = load_table(path)
        p = tables["replication"].pivot(index="target", columns="seed", values="p").to_numpy()
        return {
            "hits": p <= LEVEL,
            "alignment": tables["alignment"]["each"].to_numpy(),
            "p": tables["membership"].sort_values("target")["p"].to_numpy(),
        }

    def minutes(self) -> float:
        """CPU-core minutes of all trainings and measurements in the store."""
        logs = [path for kind in (EDITS, MEASURED) for path in (self.store.folder / kind.name).glob("*.json")]
        return sum(load_json(path)["minutes"] for path in logs)


def row(
    trial: Trial, cost: dict[str, Any], ours: dict[str, np.ndarray], twins: dict[str, np.ndarray]
) -> dict[str, Any]:
    """A row of the table, with 95 % intervals: replication rate, alignment relative to the twin's, mean p of membership
    and its difference from the twin's."""
    hits, pairs = ours["hits"], np.repeat(range(len(ours["hits"])), ours["hits"].shape[1])
    against = equivalence(ours["p"], twins["p"], "mean p")
    kept, whole = (each["alignment"].astype(float) for each in (ours, twins))  # a sum in float32 can leave its interval
    intervals = {
        "replicated": (float(hits.mean()), *clustered(hits.ravel(), pairs)),
        "alignment": (float(kept.mean() / whole.mean()), *ratio_interval(kept, whole, paired=True)),
        "membership": (float(ours["p"].mean()), *mean_interval(ours["p"], bounds=(SMALLEST, 1.0))),
        "against_twin": (against.value, against.low, against.high),
    }
    numbers = {
        f"{name}{end}": value
        for name, three in intervals.items()
        for end, value in zip(("", "_low", "_high"), three, strict=True)
    }
    about = {"method": trial.method, "steps": trial.steps, "pairs": trial.pairs, "contaminated": trial.contaminated}
    about |= {"minutes": cost["minutes"], "resumed": cost["resumed"], "n": len(hits), "verdict": against.verdict}
    return about | numbers


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.regrowth_price", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/price"), help="folder (runs/price)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help=f"of both methods {STEPS}")
    args = parser.parse_args()
    prices = Prices(args.out, subjects(load_prompts("tiny")), load_pipeline("tiny"), load_metrics("tiny"))
    twins, rows = prices.measured(load_pipeline(MODELS["tiny"].twin)), []
    for trial in trials(args.steps):
        edit, cost = prices.edit(trial)
        rows.append(row(trial, cost, prices.measured(prices.pipe, edit), twins))
        print(rows[-1], flush=True)
        save_json(rows, args.out / "price.json")
    print(f"{prices.minutes():.0f} CPU-core minutes in all")


if __name__ == "__main__":
    main()
