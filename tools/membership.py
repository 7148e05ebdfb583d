"""The exact membership test on the embedded model, its controls, what ships of the removals, and other edits.

    python -m tools.membership --out runs/membership        # a quarter of an hour of one core for each model
    python -m tools.membership --out runs/membership --processes 2      # two models at a time, one thread each
    python -m tools.membership --out runs/membership --edits regrowth=runs/removals/edits/0123.safetensors
    python -m tools.figures --membership runs/membership/membership.json
    python -m tools.membership --out runs/membership --ship     # ... and writes what ships, for notebooks 00 and 06

All verbatim pairs are tested with their own caption, with other wording, and with the empty prompt. The losses of two
noises are averaged before images are ranked. The unit is the pair. The p-values of all tests of uniformity are adjusted
together (Holm). A model is equivalent to the twin if the 95 % interval of the paired difference of mean p is within
0.10. A second call resumes at the first missing model and caption. The last line printed is the cost of all tests.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from memsub.io.files import save_json
from memsub.measure.exact import uniformity
from memsub.measure.intervals import interval
from memsub.measure.membership import MEMBERSHIP_ALTERNATIVES, STEPS, membership_p
from memsub.models import MODELS, Pipeline, fingerprint, load_pipeline
from memsub.prompts import load_prompts
from memsub.pruning import Edit, pruned
from memsub.testbed.world import WORLD
from memsub_extra.notebooks.equivalence import equivalence, holm
from memsub_extra.notebooks.intervals import mean_interval
from memsub_extra.store import Kind, Store
from memsub_extra.unlearning import shipped

SMALLEST = 1 / (MEMBERSHIP_ALTERNATIVES + 1)
P = Kind("membership", 2)
"""P-values of all pairs, and their minutes; raise the version when the test computes something else."""


def models(more: Mapping[str, Path]) -> dict[str, tuple[Pipeline, Edit | None]]:
    """Models by name: first the controls, since the others are compared with the twin; then the unedited model, and the
    model with each shipped edit and each edit in a file of `more`."""
    pipe = load_pipeline("tiny")
    compared: dict[str, tuple[Pipeline, Edit | None]] = {}
    for name, source in MODELS["tiny"].controls.items():
        compared[name] = load_pipeline(source), None
    compared["unedited"] = pipe, None
    for name, file in (shipped.edits() | dict(more)).items():
        compared[name] = pipe, Edit.load(file)
    return compared


class Bench:
    """The models, the pairs that they are tested on, and a store of p-values."""

    def __init__(self, out: Path, more: Mapping[str, Path], pairs: int | None, steps: int, noises: int):
        listed = load_prompts("tiny")
        rows = listed.rows("verbatim")[:pairs]
        self.prompts, self.images = rows["prompt"].tolist(), listed.images("verbatim", 0, len(rows))
        self.captions = {"its own": self.prompts, "other wording": rows["content"].tolist(), "empty": [""] * len(rows)}
        self.models, self.store = models(more), Store(out)
        self.options: dict[str, Any] = {"steps": steps, "noises": noises}

    def tested(self, name: str, caption: str) -> dict[str, np.ndarray]:
        """The p-values of all pairs for a model and a kind of caption, and the CPU-core minutes of the test."""
        pipe, edit = self.models[name]
        given = self.captions[caption]

        def make() -> dict[str, np.ndarray]:
            began = time.process_time()
            with pruned(pipe, edit):
                p = membership_p(pipe, self.prompts, self.images, WORLD, captions=given, **self.options)
            return {"p": p, "minutes": np.array([(time.process_time() - began) / 60])}

        content = {"prompts": self.prompts, "given": given, "model": fingerprint(pipe), **self.options}
        return self.store.arrays(P, make, **content, edit=edit.fingerprint if edit else None)


@cache
def bench_of_process(
    out: Path, more: tuple[tuple[str, Path], ...], pairs: int | None, steps: int, noises: int
) -> Bench:
    """The bench of this process, with one thread: several processes use the cores better than several threads."""
    torch.set_num_threads(1)
    return Bench(out, dict(more), pairs, steps, noises)


def one(given: tuple, name: str, caption: str) -> None:
    """Tests one model with one kind of caption, and stores the p-values."""
    bench_of_process(*given).tested(name, caption)


def named(text: str) -> tuple[str, Path]:
    """Parses "name=file"; raises ArgumentTypeError if the file does not exist."""
    name, separator, file = text.partition("=")
    if not (name and separator and Path(file).is_file()):
        raise argparse.ArgumentTypeError(f"{text!r} is no name=file of an edit that there is.")
    return name, Path(file)


def row(model: str, caption: str, p: np.ndarray, twin: np.ndarray) -> dict:
    """One row of the table: mean p, the share of pairs with the smallest p, and the difference from the twin."""
    least = p <= SMALLEST + 1e-9
    low, high = mean_interval(p, bounds=(SMALLEST, 1.0))
    against = equivalence(p, twin, "mean p")
    fewest, most = interval(int(least.sum()), len(p))
    return {
        "model": model,
        "caption": caption,
        "n": len(p),
        "mean": float(p.mean()),
        "low": low,
        "high": high,
        "least": float(least.mean()),
        "least_low": fewest,
        "least_high": most,
        "ks": uniformity(p, SMALLEST),
        "against_twin": None if model == "twin" else against.value,
        "against_twin_low": against.low,
        "against_twin_high": against.high,
        "verdict": None if model == "twin" else against.verdict,
        "power": against.power,
        "needed": against.needed,
    }


def adjusted(rows: list[dict]) -> list[dict]:
    """The table with a column holm: p-values of the tests of uniformity, adjusted over all rows."""
    together = holm({str(place): row["ks"] for place, row in enumerate(rows)})
    return [row | {"holm": together[str(place)]} for place, row in enumerate(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.membership", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of p-values and membership.json")
    parser.add_argument("--pairs", type=int, help="only the first so many")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the noise schedule ({STEPS}; 4 screen)")
    parser.add_argument("--noises", type=int, default=2, help="at each step, averaged before images are ranked (2)")
    parser.add_argument("--edits", type=named, nargs="*", default=[], metavar="NAME=FILE", help="that do not ship")
    parser.add_argument("--processes", type=int, default=1, help="models at a time, one thread each (1: all threads)")
    parser.add_argument("--ship", action="store_true", help="into the folder of the embedded model")
    args = parser.parse_args()
    given = (args.out, tuple(args.edits), args.pairs, args.steps, args.noises)
    bench = Bench(args.out, dict(args.edits), *given[2:])
    parts = [(name, caption) for caption in bench.captions for name in bench.models]
    if args.processes > 1:
        with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
            for done in [pool.submit(one, given, *part) for part in parts]:
                done.result()
    table, each, minutes = [], [], 0.0
    for name, caption in parts:
        made, twin = bench.tested(name, caption), bench.tested("twin", caption)
        minutes += float(made["minutes"][0])
        table.append(row(name, caption, made["p"], twin["p"]))
        pairs = range(len(bench.prompts))
        each.append(pd.DataFrame({"model": name, "caption": caption, "target": pairs, "p": made["p"]}))
        print(table[-1], flush=True)
        save_json(adjusted(table), args.out / "membership.json")
    if args.ship:
        shipped.ship_membership(adjusted(table), pd.concat(each, ignore_index=True))
    print(f"{minutes:.0f} CPU-core minutes in all")


if __name__ == "__main__":
    main()
