"""The exact membership test on the embedded model, its twin and what ships of the removals.

    python -m tools.membership --out runs/membership        # half an hour of one core; a second call resumes
    python -m tools.figures --membership runs/membership/membership.json
    python -m tools.membership --out runs/membership --ship     # ... and to what ships, for notebooks 00 and 06

All verbatim pairs are tested, with their own caption and with the empty prompt. The unit is the pair; the tests of
uniformity are read together, so that their p-values are adjusted (Holm); a model is equivalent to the twin if the 95 %
interval of the paired difference of mean p lies within 0.10.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from memsub.io.files import save_json
from memsub.measure.exact import uniformity
from memsub.measure.intervals import interval
from memsub.measure.membership import MEMBERSHIP_ALTERNATIVES, STEPS, membership_p
from memsub.models import Pipeline, fingerprint, load_pipeline
from memsub.prompts import load_prompts
from memsub.pruning import Edit, pruned
from memsub.testbed.world import WORLD
from memsub_extra.notebooks.equivalence import equivalence, holm
from memsub_extra.notebooks.intervals import mean_interval
from memsub_extra.store import Kind, Store
from memsub_extra.unlearning import shipped

SMALLEST = 1 / (MEMBERSHIP_ALTERNATIVES + 1)
P = Kind("membership")
"""P-values of all pairs; raise the version when the test computes something else."""


def models() -> dict[str, tuple[Pipeline, Edit | None]]:
    """The twin first, with which the others are compared; then the model, unedited and with each edit that ships."""
    pipe = load_pipeline("tiny")
    edits = {name: Edit.load(file) for name, file in shipped.edits().items()}
    return {"twin": (load_pipeline("tiny-twin"), None), "unedited": (pipe, None)} | {
        name: (pipe, edit) for name, edit in edits.items()
    }


def tested(
    pipe: Pipeline, edit: Edit | None, prompts: list[str], images: np.ndarray, given: list[str]
) -> dict[str, np.ndarray]:
    """The p-values of all pairs under a model."""
    with pruned(pipe, edit):
        return {"p": membership_p(pipe, prompts, images, WORLD, captions=given)}


def row(model: str, caption: str, p: np.ndarray, twin: np.ndarray) -> dict:
    """One line of the table: the mean p of the pairs, how many have the smallest, and the distance from the twin."""
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
    """The table with the p-values of its tests of uniformity adjusted for being read together."""
    together = holm({str(place): row["ks"] for place, row in enumerate(rows)})
    return [row | {"holm": together[str(place)]} for place, row in enumerate(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.membership", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of p-values and membership.json")
    parser.add_argument("--pairs", type=int, help="only the first so many")
    parser.add_argument("--ship", action="store_true", help="into the folder of the embedded model")
    args = parser.parse_args()
    rows = load_prompts("tiny").rows("verbatim")[: args.pairs]
    prompts, images = rows["prompt"].tolist(), load_prompts("tiny").images("verbatim", 0, len(rows))
    store, table, each = Store(args.out), [], []
    for caption, given in {"its own": prompts, "empty": [""] * len(prompts)}.items():
        twin = np.empty(0)
        for name, (pipe, edit) in models().items():
            content = {"prompts": prompts, "given": given, "steps": STEPS, "model": fingerprint(pipe)}
            content |= {"edit": edit.fingerprint if edit else None}
            p = store.arrays(P, partial(tested, pipe, edit, prompts, images, given), **content)["p"]
            twin = p if name == "twin" else twin
            table.append(row(name, caption, p, twin))
            each.append(pd.DataFrame({"model": name, "caption": caption, "target": range(len(p)), "p": p}))
            print(table[-1], flush=True)
            save_json(adjusted(table), args.out / "membership.json")
    if args.ship:
        shipped.ship_membership(adjusted(table), pd.concat(each, ignore_index=True))


if __name__ == "__main__":
    main()
