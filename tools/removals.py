"""Makes the removals' edits on the embedded model and audits them: `python -m tools.removals --out runs/removals`.

The first two thirds of the verbatim pairs are removed, the last third is not told. Edits, minutes and tables go to
`--out` under keys of what they are a function of: a second call goes on where the first one stopped. `--ship` writes
the tables, pictures of the audited models, and the edits named by `--edits` to the folder that ships with the model.
All that ships (hours; two models at a time, one thread each):

    python -m tools.removals --processes 2 --edits pruning regrowth --ship \\
        --long twin unedited pruning regrowth "regrowth, seed 1" "regrowth, seed 2"
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from memsub.attacks import embedding_attack
from memsub.audit import ITERATIONS, SAMPLING, STARTS, Pairs, Subjects, attack_work, audited, starts, summary
from memsub.denoiser import as_denoiser, fingerprint
from memsub.files import load_json, load_table, save_json, save_table
from memsub.generation import Sample, generate
from memsub.metrics import load_metrics
from memsub.models import load_pipeline
from memsub.prompts import Prompts, load_prompts
from memsub.pruning import Edit, pruned
from memsub.removal import REMOVALS, Removal
from memsub.store import Store, module_version
from memsub.testbed import dataset, deletion

REMOVED = 67
ORDINARY = 20_000
FRESH = 600
AGAIN = ["regrowth, seed 1", "regrowth, seed 2"]
"""Made once more: does what passes the audit pass it by its seed?"""
SHOWN = 8
"""Removed pairs whose pictures are kept."""
LONG_TARGETS = 40
"""Of the long attack, and as many fresh pictures: to 500 iterations from their captions, to 100 from other starts."""


def subjects(prompts: Prompts) -> Subjects:
    """What the embedded model's removals are told, and what they are judged on."""

    def pairs(kind: str, start: int, stop: int) -> Pairs:
        rows = prompts.rows(kind)[start:stop]
        return Pairs(rows["prompt"].tolist(), prompts.images(kind, start, stop))

    corpus = dataset.build()
    kept = corpus.ordinary[:ORDINARY]
    return Subjects(
        removed=pairs("verbatim", 0, REMOVED),
        unseen=pairs("verbatim", REMOVED, dataset.VERBATIM),
        fresh=pairs("heldout", 0, FRESH),
        ordinary=Pairs(corpus.table["prompt"].iloc[kept].tolist(), corpus.images[kept]),
    )


def removal(name: str) -> tuple[Removal, int]:
    """A removal and its seed, by "name" or "name, seed n"; raises ValueError for one that is not registered."""
    known, _, seed = name.partition(", seed ")
    if known not in REMOVALS or not f"{seed or 0}".isdigit():
        raise ValueError(f"no removal {name!r}; expected some of {', '.join(REMOVALS)}, or '..., seed 1'")
    return REMOVALS[known], int(seed or 0)


class Bench:
    """The models under audit, and a store of what was made of them."""

    def __init__(self, out: Path, **options: Any):
        self.store, self.options = Store(out), options
        self.of, self.metrics = subjects(load_prompts("tiny")), load_metrics("tiny")
        self.pipe, self.twin = load_pipeline("tiny"), load_pipeline("tiny-twin")

    def edit(self, name: str) -> tuple[Edit, dict[str, Any]]:
        """A removal's edit, and what it took (minutes, bytes)."""
        made_by, seed = removal(name)
        told: dict[str, Any] = {"name": name, "model": fingerprint(self.pipe), "captions": self.of.removed.captions}
        told |= {"kept": self.of.ordinary.captions, "options": made_by.options}
        path = self.store.path("edits", ".safetensors", None, **told, code=made_by.code)
        if not path.is_file():
            began = time.monotonic()
            edit = made_by.edit(self.pipe, self.of.removed, self.of.ordinary, folder=self.store.folder, seed=seed)
            edit.save(path)
            minutes = (time.monotonic() - began) / 60
            about = {"minutes": minutes, "threads": torch.get_num_threads(), "bytes": path.stat().st_size}
            save_json(about | {"name": name}, path.with_suffix(".json"))
        return Edit.load(path), load_json(path.with_suffix(".json"))

    @contextmanager
    def model(self, name: str) -> Iterator[Any]:
        """The pipeline as "twin", "unedited", or with a removal's edit."""
        if name == "twin":
            yield self.twin
        else:
            with pruned(self.pipe, None if name == "unedited" else self.edit(name)[0]):
                yield self.pipe

    def audit(self, name: str) -> dict[str, pd.DataFrame]:
        """The tables of one model."""
        with self.model(name) as pipe:
            told = {"model": fingerprint(pipe), "captions": self.of.removed.captions, "options": self.options}
            told |= {"unseen": self.of.unseen.captions, "fresh": self.of.fresh.captions}
            code = module_version("memsub.audit")
            paths = {
                table: self.store.path("audit", f"-{table}.parquet", None, **told, code=code)
                for table in deletion.TABLES
            }
            if not all(path.is_file() for path in paths.values()):
                for table, found in audited(pipe, self.of, self.metrics, **self.options).items():
                    save_table(found, paths[table])
        return {table: load_table(path) for table, path in paths.items()}

    def long_attack(self, name: str) -> pd.DataFrame:
        """Work of the attack from every start, and on fresh pictures: `audit.attack_work`, columns start and pairs."""
        looks = {start: ITERATIONS if start == STARTS[0] else ITERATIONS[:-2] for start in STARTS}
        with self.model(name) as pipe:
            told: dict[str, Any] = {"model": fingerprint(pipe), "captions": self.of.removed.captions, "looks": looks}
            path = self.store.path("long", ".parquet", attack_work, targets=LONG_TARGETS, **told)
            if not path.is_file():
                tables = []
                for kind, start in [*(("removed", start) for start in STARTS), ("fresh", STARTS[0])]:
                    some = vars(self.of)[kind].first(LONG_TARGETS)
                    begin = starts(pipe, some.captions)[start]
                    found = attack_work(pipe, some, begin, iterations=looks[start], noises=2)
                    tables.append(found.assign(pairs=kind, start=start))
                save_table(pd.concat(tables, ignore_index=True), path)
        return load_table(path)

    def pictures(self, name: str, iterations: int = 100) -> dict[str, np.ndarray]:
        """What a model draws for some removed captions, and for embeddings that were attacked from them."""
        some = self.of.removed.first(SHOWN)
        with self.model(name) as pipe:
            sample: Sample = partial(generate, pipe, **SAMPLING)
            start = starts(pipe, some.captions)["its caption"]

            def draw() -> dict[str, np.ndarray]:
                attacked = embedding_attack(pipe, some.images, start, iterations=iterations, noises=4)
                embeddings = {"caption": as_denoiser(pipe).embed(some.captions), "attacked": attacked}
                return {key: sample(e, seeds=[1000] * SHOWN) for key, e in embeddings.items()}

            told = {"model": fingerprint(pipe), "captions": some.captions, "iterations": iterations}
            return self.store.arrays("pictures", draw, **told)


@cache
def own_bench(out: Path, options: str) -> Bench:
    """The bench of this process, which has one thread: the embedded model fills cores better so."""
    torch.set_num_threads(1)
    return Bench(out, **json.loads(options))


def one(out: Path, options: str, part: str, name: str) -> None:
    """One part of the work ("audit", "long_attack", "pictures") on one model, into the store."""
    getattr(own_bench(out, options), part)(name)


def side_by_side(processes: int, out: Path, options: dict[str, Any], parts: list[tuple[str, str]]) -> None:
    """Parts of the work, as many at a time as there are processes; an edit is made in the first part that needs it."""
    told = json.dumps(options)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(one, out, told, part, name) for part, name in parts]:
            done.result()


def of_this_model(model: str) -> bool:
    """Whether what ships already was made of this model: tables of two models do not mix."""
    if not (deletion.folder() / "edits.json").is_file():
        return False
    return all(path.is_file() and Edit.load(path).provenance["model"] == model for path in deletion.edits().values())


def shipped(
    bench: Bench, tables: dict[str, dict[str, pd.DataFrame]], long: dict[str, pd.DataFrame], edits: list[str]
) -> None:
    """Writes what ships with the embedded model; what ships already of removals that were not audited now stays."""
    kept = of_this_model(fingerprint(bench.pipe))
    pictures = {"training images": bench.of.removed.images[:SHOWN]}
    for name in deletion.whole(tables):
        drawn = bench.pictures(name)
        pictures |= {name: drawn["caption"], f"{name}, attacked": drawn["attacked"]}
    files = {name: "".join(c if c.isalnum() else "-" for c in name) + ".safetensors" for name in edits}
    for name, file in files.items():
        bench.edit(name)[0].save(deletion.folder() / file)
    costs = {name: bench.edit(name)[1] for name in tables if name not in ("twin", "unedited")}
    if kept:
        tables, costs, pictures = deletion.audits() | tables, deletion.costs() | costs, deletion.pictures() | pictures
        long = dict(iter(deletion.long_attack().groupby("model", sort=False))) | long
        files = {name: path.name for name, path in deletion.edits().items()} | files
    known = ["twin", "unedited", *REMOVALS]  # in this order, whatever was audited first; other seeds after them
    tables = {name: tables[name] for name in sorted(tables, key=lambda n: known.index(n) if n in known else len(known))}
    deletion.ship(tables, long, costs, pictures, files)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.removals", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/removals"), help="folder (runs/removals)")
    parser.add_argument("--only", nargs="*", default=[*REMOVALS, *AGAIN], help="removals (default: all)")
    parser.add_argument("--iterations", type=int, nargs="*", default=[0, 5, 10, 25, 50, 100], help="when to look")
    parser.add_argument("--starts", nargs="*", default=["its caption"], help="what the attack begins with")
    parser.add_argument("--attacked", nargs="*", default=["removed"], help="kinds of pairs that are attacked")
    parser.add_argument("--noises", type=int, default=2, help="of the attack, an iteration")
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-5, 1e-4], help="of relearning")
    parser.add_argument("--looks", type=int, nargs="*", default=[0, 10, 25, 100], help="steps of relearning")
    parser.add_argument("--seeds", type=int, default=4, help="draws of each caption for the exact test (4)")
    parser.add_argument("--long", nargs="*", default=[], help="names of models that are attacked from every start")
    parser.add_argument("--edits", nargs="*", default=[], help="names of removals whose edits ship")
    parser.add_argument("--processes", type=int, default=1, help="models at a time, one thread each (1: all threads)")
    parser.add_argument("--ship", action="store_true", help="into the folder of the embedded model")
    args = parser.parse_args()
    try:
        for name in [name for name in (*args.only, *args.edits, *args.long) if name not in ("twin", "unedited")]:
            removal(name)  # the first that is unknown is told
    except ValueError as error:
        parser.error(str(error))
    options = {name: getattr(args, name) for name in ("iterations", "attacked", "noises", "rates", "looks", "seeds")}
    options |= {"begin": args.starts}
    tables, names = {}, ["twin", "unedited", *args.only]
    if args.processes > 1:
        whole = deletion.whole(names)
        parts = [("audit", name) for name in whole] + [("long_attack", name) for name in args.long]
        parts += [("pictures", name) for name in whole if args.ship]
        parts += [("audit", name) for name in names if name not in whole]  # what can wait comes last
        side_by_side(args.processes, args.out, options, parts)
    bench = Bench(args.out, **options)
    for name in names:
        tables[name] = bench.audit(name)
        found = summary(tables)
        print(found.to_string(float_format="{:.3f}".format), flush=True)
    long = {name: bench.long_attack(name) for name in args.long}
    if args.ship:
        shipped(bench, tables, long, args.edits)


if __name__ == "__main__":
    main()
