"""Makes the removals' edits on the embedded model and audits them: `python -m tools.removals --out runs/removals`.

The first two thirds of the verbatim pairs are the forget set; the last third are held-out memorized pairs. `--out`
keeps edits, minutes and tables, under keys of the values that they depend on. So a second call resumes: a training at
its last checkpoint, an audit at its first missing table. `--ship` writes the tables, images of the audited models, and
the edits named by `--edits` to the folder that ships with the model. Edits that take minutes to make do not ship. This
command makes everything that ships (hours; two models at a time, one thread each):

    python -m tools.removals --processes 2 --edits pruning --ship --long twin other unedited pruning regrowth

The last line printed is the cost of all edits and audits in CPU-core minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
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

from memsub.io.files import load_json, save_json
from memsub.measure.metrics import load_metrics
from memsub.measure.noise import noise_seeds
from memsub.measure.verdict import by_exact_test
from memsub.models import MODELS, Sample, as_denoiser, fingerprint, generate, load_pipeline
from memsub.prompts import Prompts, load_prompts
from memsub.pruning import Edit, pruned
from memsub.testbed.world import WORLD
from memsub_extra.attacks import embedding_attack
from memsub_extra.files import load_table, save_table
from memsub_extra.prompt_lists.wordings import wordings_of
from memsub_extra.store import Kind, Store
from memsub_extra.training import dataset
from memsub_extra.unlearning import shipped
from memsub_extra.unlearning.attack_work import ITERATIONS, STARTS, attack_work, starts
from memsub_extra.unlearning.audit import TABLES, audited, compared, summary
from memsub_extra.unlearning.pairs import FORGET_SET, SAMPLING, UNSEEN, Pairs, Subjects
from memsub_extra.unlearning.removals import REMOVALS, Removal

REMOVED = 67
ORDINARY = 20_000
FRESH = 600
MADE = [
    "pruning",
    "pruning at 1 %",
    "adversarial pruning",
    "adversarial fine-tuning",
    "SISS",
    "ReTrack",
    "adversarial distillation",
    "regrowth",
    "training anew",
    "further training",
    "regrowth, seed 1",
    "regrowth, seed 2",
]
"""Removals that are made by default: each in its usual form, none restricted to located or random weights. Regrowth,
which comes closest to the twin, has three seeds, to show whether the result depends on the seed."""
CONTROLS = ["twin", "other", "unedited"]
"""Models that are audited without an edit, if the embedded model has them."""
SHOWN = 8
"""Number of pairs of the forget set whose images are kept."""
LONG_TARGETS = 40
"""Pairs of the forget set, and unseen ones, in the long attack: 500 iterations from captions, 100 from other starts."""
EDITS, AUDITS, LONG, IMAGES = Kind("edits"), Kind("audit", 3), Kind("long", 2), Kind("images", 2)
"""Kinds of artifacts in `--out`; raise a version when the code of a kind computes something else."""


def subjects(prompts: Prompts) -> Subjects:
    """The pairs that removals of the embedded model get, and the pairs that they are judged on."""

    def pairs(kind: str, start: int, stop: int) -> Pairs:
        rows = prompts.rows(kind)[start:stop]
        return Pairs(rows["prompt"].tolist(), prompts.images(kind, start, stop), wordings_of(rows))

    corpus = dataset.build()
    kept = corpus.ordinary[:ORDINARY]
    return Subjects(
        forget_set=pairs("verbatim", 0, REMOVED),
        held_out=pairs("verbatim", REMOVED, dataset.VERBATIM),
        unseen=pairs("heldout", 0, FRESH),
        ordinary=Pairs(corpus.table["prompt"].iloc[kept].tolist(), corpus.images[kept]),
    )


def removal(name: str) -> tuple[Removal, int]:
    """A removal and its seed, by "name" or "name, seed n"; raises ValueError for one that is not registered."""
    known, _, seed = name.partition(", seed ")
    if known not in REMOVALS or not f"{seed or 0}".isdigit():
        raise ValueError(f"no removal {name!r}; expected some of {', '.join(REMOVALS)}, or '..., seed 1'")
    return REMOVALS[known], int(seed or 0)


def product_ms() -> float:
    """CPU milliseconds of a product of two 2,048 x 2,048 float32 matrices: machines differ by a factor of two."""
    square, took = torch.ones(2048, 2048), []
    for _ in range(6):
        began = time.process_time()
        square @ square
        took.append(1000 * (time.process_time() - began))
    return min(took[1:])  # the first one allocates


class Bench:
    """The audited models, and a store of their edits, tables and images."""

    def __init__(self, out: Path, **options: Any):
        self.store, self.options = Store(out), options
        self.subjects, self.metrics = subjects(load_prompts("tiny")), load_metrics("tiny")
        self.pipe = load_pipeline("tiny")
        self.controls = {name: load_pipeline(source) for name, source in MODELS["tiny"].controls.items()}

    @property
    def unremoved(self) -> list[str]:
        """Names of the models that no removal made."""
        return [name for name in CONTROLS if name in self.controls or name == "unedited"]

    def edit(self, name: str) -> tuple[Edit, dict[str, Any]]:
        """A removal's edit, and what it took: CPU-core minutes (None if it resumed), bytes, and milliseconds of
        a reference."""
        made_by, seed = removal(name)
        forget_set, ordinary, path = self.subjects.forget_set, self.subjects.ordinary, self.path(name)
        if not path.is_file():
            work, began = path.with_suffix(""), time.process_time()  # of all threads, whatever else runs
            resumed = work.is_dir()
            edit = made_by.edit(self.pipe, forget_set, ordinary, folder=work, seed=seed)
            edit.save(path)
            minutes = None if resumed else (time.process_time() - began) / 60
            about = {"name": name, "minutes": minutes, "threads": 1, "bytes": path.stat().st_size}
            save_json(about | {"product_ms": product_ms()}, path.with_suffix(".json"))
            shutil.rmtree(work, ignore_errors=True)  # its checkpoints
        return Edit.load(path), load_json(path.with_suffix(".json"))

    def path(self, name: str) -> Path:
        """The path of a removal's edit, which need not exist."""
        made_by, _ = removal(name)
        content: dict[str, Any] = {"name": name, "model": fingerprint(self.pipe)}
        content |= {"captions": self.subjects.forget_set.captions, "kept": self.subjects.ordinary.captions}
        content |= {"options": made_by.options, "version": made_by.version}
        return self.store.path(EDITS, ".safetensors", **content)

    @contextmanager
    def model(self, name: str) -> Iterator[Any]:
        """A context with one model: the unedited pipeline, a control, or the pipeline with a removal's edit."""
        if name in self.controls:
            yield self.controls[name]
        else:
            with pruned(self.pipe, None if name == "unedited" else self.edit(name)[0]):
                yield self.pipe

    def audit(self, name: str) -> dict[str, pd.DataFrame]:
        """The tables of one model."""
        with self.model(name) as pipe:
            content = {"model": fingerprint(pipe), "options": self.options}
            content |= {kind: pairs.captions for kind, pairs in self.subjects.judged.items()}
            paths = {kind: self.store.path(AUDITS, f"-{kind}.parquet", **content) for kind in TABLES}
            for kind, path in paths.items():
                if not path.is_file():
                    began = time.process_time()
                    made = audited(pipe, self.subjects, self.metrics, WORLD, only=[kind], **self.options)
                    save_table(made[kind], path)
                    save_json({"minutes": (time.process_time() - began) / 60}, path.with_suffix(".json"))
        return {kind: load_table(path) for kind, path in paths.items()}

    def minutes(self) -> float:
        """CPU-core minutes of all edits and audits in the store."""
        logs = [path for kind in (EDITS, AUDITS) for path in (self.store.folder / kind.name).glob("*.json")]
        return sum(load_json(path)["minutes"] or 0 for path in logs)

    def long_attack(self, name: str) -> pd.DataFrame:
        """Work of the attack from each start, and on unseen pairs from captions: `attack_work`, with start, pairs."""
        looks = {start: ITERATIONS if start == STARTS[0] else ITERATIONS[:-2] for start in STARTS}
        judge = by_exact_test(WORLD)
        with self.model(name) as pipe:
            content: dict[str, Any] = {"model": fingerprint(pipe), "looks": looks, "targets": LONG_TARGETS}
            path = self.store.path(LONG, ".parquet", captions=self.subjects.forget_set.captions, **content)
            if not path.is_file():
                tables = []
                for kind, start in [*((FORGET_SET, start) for start in STARTS), (UNSEEN, STARTS[0])]:
                    pairs = self.subjects.judged[kind].first(LONG_TARGETS)
                    begin = starts(pipe, pairs.captions)[start]
                    work = attack_work(pipe, pairs, begin, judge, iterations=looks[start], noises=2)
                    tables.append(work.assign(pairs=kind, start=start))
                save_table(pd.concat(tables, ignore_index=True), path)
        return load_table(path)

    def images(self, name: str, iterations: int = 100) -> dict[str, np.ndarray]:
        """Images of a model for `SHOWN` captions of the forget set ("caption"), and for attacked ones ("attacked")."""
        pairs = self.subjects.forget_set.first(SHOWN)
        with self.model(name) as pipe:
            sample: Sample = partial(generate, pipe, **SAMPLING)
            start = starts(pipe, pairs.captions)["its caption"]

            def make() -> dict[str, np.ndarray]:
                attacked = embedding_attack(pipe, pairs.images, start, iterations=iterations, noises=4)
                embeddings = {"caption": as_denoiser(pipe).embed(pairs.captions), "attacked": attacked}
                return {key: sample(e, seeds=noise_seeds(pairs.captions, 1000)) for key, e in embeddings.items()}

            content = {"model": fingerprint(pipe), "captions": pairs.captions, "iterations": iterations}
            return self.store.arrays(IMAGES, make, **content)


# --- several models at a time ----------------------------------------------------------------------------------------


@cache
def bench_of_process(out: Path, options: str) -> Bench:
    """The bench of this process, with one thread: several processes use the cores better than several threads."""
    torch.set_num_threads(1)
    return Bench(out, **json.loads(options))


def one(out: Path, options: str, name: str, parts: list[str]) -> None:
    """Does these parts of the work ("audit", "long_attack", "images") on one model, and stores the results."""
    for part in parts:
        getattr(bench_of_process(out, options), part)(name)


def side_by_side(processes: int, out: Path, options: dict[str, Any], parts: dict[str, list[str]]) -> None:
    """Does the parts of the work on each model. One process does all parts of a model: the first one makes its edit."""
    dumped = json.dumps(options)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(one, out, dumped, name, of_model) for name, of_model in parts.items()]:
            done.result()


# --- what ships ----------------------------------------------------------------------------------------------------


def of_this_model(model: str) -> bool:
    """Whether the files that ship now belong to this model; tables of two models must not be mixed."""
    if not (shipped.folder() / "edits.json").is_file():
        return False
    return all(path.is_file() and Edit.load(path).provenance["model"] == model for path in shipped.edits().values())


def ship(
    bench: Bench, tables: dict[str, dict[str, pd.DataFrame]], long: dict[str, pd.DataFrame], edits: list[str]
) -> None:
    """Writes the files that ship with the embedded model. Results of removals that were not audited now are kept."""
    kept = of_this_model(fingerprint(bench.pipe))
    images = {"training images": bench.subjects.forget_set.images[:SHOWN]}
    for name in shipped.whole(tables):
        sampled = bench.images(name)
        images |= {name: sampled["caption"], f"{name}, attacked": sampled["attacked"]}
    files = {name: "".join(c if c.isalnum() else "-" for c in name) + ".safetensors" for name in edits}
    for name, file in files.items():
        bench.edit(name)[0].save(shipped.folder() / file)
    costs = {name: bench.edit(name)[1] for name in tables if name not in CONTROLS}
    if kept:
        tables, images = shipped.audits() | tables, shipped.images() | images
        costs = shipped.costs() | {
            name: cost for name, cost in costs.items() if cost["minutes"] is not None or name not in shipped.costs()
        }
        long = dict(iter(shipped.long_attack().groupby("model", sort=False))) | long
        files = {name: path.name for name, path in shipped.edits().items()} | files
    known = [*CONTROLS, *REMOVALS]  # the order of models in tables; other seeds come last
    tables = {name: tables[name] for name in sorted(tables, key=lambda n: known.index(n) if n in known else len(known))}
    shipped.ship(tables, long, costs, images, files)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.removals", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/removals"), help="folder (runs/removals)")
    audited_by_default = [*CONTROLS, *MADE]
    of_models = f"models (default: {', '.join(audited_by_default)})".replace("%", "%%")
    parser.add_argument("--only", nargs="*", default=audited_by_default, help=of_models)
    parser.add_argument("--iterations", type=int, nargs="*", default=[0, 5, 10, 25, 50, 100], help="when to look")
    parser.add_argument("--starts", nargs="*", default=["its caption"], help="what the attack begins with")
    parser.add_argument("--attacked", nargs="*", default=[FORGET_SET], help="kinds of pairs that are attacked")
    parser.add_argument("--noises", type=int, default=2, help="of the attack, an iteration")
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-5, 1e-4], help="of relearning")
    parser.add_argument("--looks", type=int, nargs="*", default=[0, 10, 25, 100], help="steps of relearning")
    parser.add_argument("--seeds", type=int, default=4, help="images of each caption for the exact test (4)")
    parser.add_argument("--membership-steps", type=int, default=4, help="of the membership test (4 screen, 12: whole)")
    parser.add_argument("--long", nargs="*", default=[], help="names of models that are attacked from every start")
    parser.add_argument("--edits", nargs="*", default=[], help="names of removals whose edits ship")
    parser.add_argument("--processes", type=int, default=1, help="models at a time, one thread each (1: all threads)")
    parser.add_argument("--ship", action="store_true", help="into the folder of the embedded model")
    args = parser.parse_args()
    try:
        for name in [name for name in (*args.only, *args.edits, *args.long) if name not in CONTROLS]:
            removal(name)  # the first unknown name is an error, before anything is loaded
    except ValueError as error:
        parser.error(str(error))
    passed = ("iterations", "attacked", "noises", "rates", "looks", "seeds", "membership_steps")
    options = {name: getattr(args, name) for name in passed} | {"begin": args.starts}
    bench = Bench(args.out, **options)
    as_shipped = all(getattr(args, name) == parser.get_default(name) for name in (*passed, "starts"))
    tables = dict(shipped.audits()) if as_shipped and of_this_model(fingerprint(bench.pipe)) else {}
    names = [name for name in args.only if name not in CONTROLS or name in bench.unremoved]
    if "twin" not in (*names, *tables):
        names.insert(0, "twin")  # with which the others are compared
    if args.processes > 1:
        whole = shipped.whole(names)
        parts: dict[str, list[str]] = {name: [] for name in dict.fromkeys([*whole, *names, *args.long])}
        for name, of_model in parts.items():  # variants come last
            of_model += ["audit"] if name in names else []
            of_model += ["long_attack"] if name in args.long else []
            of_model += ["images"] if name in whole and args.ship else []
        side_by_side(args.processes, args.out, options, parts)
    for name in names:
        tables[name] = bench.audit(name)
        print(summary(tables).to_string(float_format="{:.3f}".format), flush=True)
    print(compared(tables).to_string(float_format="{:.3f}".format), flush=True)
    long = {name: bench.long_attack(name) for name in args.long}
    for name in [name for name in names if name not in CONTROLS]:
        print(
            f"{name}: {bench.path(name)}, {bench.edit(name)[1]['minutes'] or math.nan:.1f} CPU-core minutes", flush=True
        )
    if args.ship:
        ship(bench, {name: tables[name] for name in names}, long, args.edits)
    print(f"edits and audits: {bench.minutes():.0f} CPU-core minutes in all")


if __name__ == "__main__":
    main()
