"""Makes every removal's edit on the embedded model and audits it: `python -m tools.removals --out runs/removals`.

The first two thirds of the verbatim pairs are removed, the last third is not told. Edits, seconds and tables go to
`--out`, one model after another: a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd

from memsub.audit import Pairs, Subjects, attack_curve, audited, log_rank
from memsub.files import load_json, load_table, save_json, save_table
from memsub.models import load_pipeline
from memsub.prompts import Prompts, load_prompts
from memsub.pruning import Edit, pruned
from memsub.removal import REMOVALS
from memsub.testbed import dataset

REMOVED = 67
ORDINARY = 320
TABLES = ("replication", "attack", "relearning", "diversity")


def subjects(prompts: Prompts) -> Subjects:
    """What the embedded model's removals are told, and what they are judged on."""

    def pairs(kind: str, start: int, stop: int) -> Pairs:
        rows = prompts.rows(kind)[start:stop]
        return Pairs(rows["prompt"].tolist(), prompts.images(kind, start, stop))

    return Subjects(
        removed=pairs("verbatim", 0, REMOVED),
        unseen=pairs("verbatim", REMOVED, dataset.VERBATIM),
        fresh=pairs("heldout", 0, REMOVED),
        ordinary=pairs("ordinary", 0, ORDINARY),
    )


def made(name: str, pipe, of: Subjects, out: Path) -> Edit:
    """The edit of a removal, from `out` if it lies there; how long it took beside it."""
    path = out / "edits" / f"{slug(name)}.safetensors"
    if not path.is_file():
        began = time.monotonic()
        edit = REMOVALS[name].edit(pipe, of.removed, of.ordinary, folder=out / "unfinished")
        edit.save(path)
        about = {"minutes": (time.monotonic() - began) / 60, "bytes": path.stat().st_size, "density": edit.density}
        save_json(about, path.with_suffix(".json"))
    return Edit.load(path)


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).replace("--", "-")


def audit_of(name: str, pipe, of: Subjects, out: Path, **options) -> dict[str, pd.DataFrame]:
    """The tables of one model, from `out` if they lie there."""
    paths = {table: out / "audit" / f"{slug(name)}-{table}.parquet" for table in TABLES}
    if not all(path.is_file() for path in paths.values()):
        for table, found in audited(pipe, of, **options).items():
            save_table(found, paths[table])
    return {table: load_table(path) for table, path in paths.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.removals", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/removals"), help="folder (runs/removals)")
    parser.add_argument("--only", nargs="*", default=list(REMOVALS), help="names of removals (default: all)")
    parser.add_argument("--iterations", type=int, nargs="*", default=[0, 5, 10, 25, 50, 100], help="when to look")
    parser.add_argument("--starts", nargs="*", default=["its caption", "noise"], help="what the attack begins with")
    args = parser.parse_args()
    if unknown := [name for name in args.only if name not in REMOVALS]:
        parser.error(f"no removal {unknown[0]!r}; expected some of {', '.join(REMOVALS)}")
    of, pipe, twin = subjects(load_prompts("tiny")), load_pipeline("tiny"), load_pipeline("tiny-twin")
    options = {"iterations": args.iterations, "begin": args.starts}
    tables = {"twin": audit_of("twin", twin, of, args.out, **options)}
    tables["unedited"] = audit_of("unedited", pipe, of, args.out, **options)
    for name in args.only:
        with pruned(pipe, made(name, pipe, of, args.out)):
            tables[name] = audit_of(name, pipe, of, args.out, **options)
    for name, found in tables.items():
        told = found["replication"].assign(hit=found["replication"]["p"] <= 1 / 256).groupby("pairs")["hit"].mean()
        print(f"{name}: replicated", ", ".join(f"{pairs} {share:.1%}" for pairs, share in told.items()))
        for start, work in found["attack"][found["attack"]["pairs"] == "removed"].groupby("start"):
            reference = tables["twin"]["attack"].query("pairs == 'removed' and start == @start")
            curve = attack_curve(work, args.iterations)
            shares = ", ".join(f"{r.iterations:.0f}: {r.share:.0%}" for r in curve.itertuples())
            print(f"    attacked from {start}: {shares}; log-rank against the twin p = {log_rank(work, reference):.1e}")
        edit = args.out / "edits" / f"{slug(name)}.json"
        print("   ", load_json(edit) if edit.is_file() else "")


if __name__ == "__main__":
    main()
