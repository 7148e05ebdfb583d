"""The command `memsub run`: executes all notebooks, and writes a report."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the others of `python -m memsub`."""
    run = commands.add_parser("run", help="execute the notebooks in order, then write an HTML report")
    names = "names in papermill_params/ (quick, tiny, sd14-quick, sd14, ...), or YAML files"
    run.add_argument("parameters", nargs="+", help=names)
    run.add_argument("--out", type=Path, help="run folder (default: runs/NAME); of several, the folder that holds them")
    run.add_argument("--notebooks", nargs="+", metavar="NN", help="only those whose names begin so, such as 00 01")
    run.add_argument("--fresh", action="store_true", help="execute all of them again")
    run.add_argument("--jobs", type=int, default=1, help="so many notebooks side by side, on one CPU 2 pay (1)")
    run.set_defaults(function=_run)


def _run(args: argparse.Namespace) -> None:
    from . import batch

    for report in batch.run(args.parameters, args.out, args.notebooks or (), args.fresh, args.jobs):
        print(f"Report: {report}")
