"""Does any notebook call the network more often than it may? `python -m tools.budget runs/tiny`.

The folder `findings/` of a run records the rows of network calls of each notebook: latents, counted once for each half
of a guided call. They are equal on all machines; cached artifacts reduce them. A budget is a measured number plus a
tenth. To spend more, raise it here, and write what for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from tools.figures import findings

BUDGETS: dict[str, tuple[int, str]] = {
    "00_testbed": (
        26_600,
        "each memorized caption once, verbatim and 100 unseen ones in both controls, and the pairs of other: intervals "
        "of 4 points; membership of 16 pairs",
    ),
    "01_activation_capture": (13_300, "the grid: 200 prompts and the empty one, ten steps; the same in both controls"),
    "02_memorized_neurons": (9_100, "four subsets of each kind at all fifty steps"),
    "03_subspace_overlap": (3_700, "four subsets of each kind from a second noise, and the conditional half"),
    "04_pruning": (24_000, "16 memorized and 16 unseen captions a model; sweep, ten models and controls, Wen et al."),
    "05_attack_evaluation": (
        21_600,
        "11 methods on 32 captions, and 16 that choose; extraction; the attack on 16 images and three models",
    ),
    "06_deletion": (11_100, "the attack on 16 images and four models, until they are sampled; regrowth of a block"),
    "07_explorer": (1_500, "a grid of ten captions, and an attack of 60 iterations"),
}
"""Notebook to its largest number of rows, and their purpose."""


def spent(run: Path) -> pd.DataFrame:
    """Columns rows, budget and what_for, by notebook; raises as `figures.findings`."""
    rows = {
        name: {"rows": recorded["network_rows"], "budget": BUDGETS[name][0], "what_for": BUDGETS[name][1]}
        for name, recorded in findings(run).items()
    }
    return pd.DataFrame(rows).T


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.budget", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run that began empty")
    table = spent(parser.parse_args().run)
    print(table.to_string())
    over = table[table["rows"] > table["budget"]]
    for name, row in over.iterrows():
        print(f"{name}: {row['rows']:,} rows, of {row['budget']:,} that it may call the network with")
    sys.exit(bool(len(over)))


if __name__ == "__main__":
    main()
