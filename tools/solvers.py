"""How few steps, and bits, may a picture be judged in? `python -m tools.solvers --out runs/solvers.json`.

The same captions and seeds by several samplers, on the embedded model, unedited and with the edits that ship, and on
its twin, in float32 or bfloat16: the exact test's verdicts and the alignment against those of fifty steps of the
model's own scheduler. `python -m tools.figures --solvers` takes the table into the documents.
"""

from __future__ import annotations

import argparse
import copy
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memsub.audit import by_exact_test
from memsub.evaluation import interval, score
from memsub.files import save_json
from memsub.generation import Sample, generate
from memsub.metrics import load_metrics
from memsub.models import load_pipeline
from memsub.prompts import load_prompts
from memsub.pruning import Edit, pruned
from memsub.testbed import deletion

SAMPLERS: list[dict[str, Any]] = [
    {"solver": "own", "steps": 50},
    {"solver": "own", "steps": 10},
    {"solver": "multistep", "steps": 10},
    {"solver": "multistep", "steps": 8},
    {"solver": "multistep", "steps": 6},
    {"solver": "multistep", "steps": 8, "dtype": "bfloat16"},
]
"""The first is what the others are compared with."""


def measured(captions: int = 100, never_seen: int = 60) -> list[dict[str, Any]]:
    """A row a model and sampler."""
    pipe, twin, prompts = load_pipeline("tiny"), load_pipeline("tiny-twin"), load_prompts("tiny")
    metrics = load_metrics("tiny", more=[])
    memorized, references = prompts.memorized[:captions], prompts.images("verbatim", 0, captions)
    others = prompts.of("heldout")[:never_seen]
    edits = {"unedited": None} | {name: Edit.load(path) for name, path in deletion.edits().items()} | {"twin": None}
    rows = []
    for name, edit in edits.items():
        model, first = twin if name == "twin" else pipe, None
        with nullcontext() if name == "twin" else pruned(pipe, edit):
            for sampler in SAMPLERS:
                how = {"dtype": "float32"} | sampler
                of = model if how["dtype"] == "float32" else copy.deepcopy(model).to(getattr(torch, how["dtype"]))
                told = {key: how[key] for key in ("solver", "steps")}
                sample: Sample = partial(generate, of, guidance_scale=3.0, progress=False, **told)
                began = time.perf_counter()
                images = sample(memorized, seeds=range(captions))
                seconds = (time.perf_counter() - began) / captions
                hits = by_exact_test(images, memorized, references)
                scored = score(sample, metrics, others)
                above = (scored["prompt_similarity"] - scored["chance"]).to_numpy()
                first = (hits, above) if first is None else first
                low, high = interval(int(hits.sum()), captions)
                shares = {"replicated": float(hits.mean()), "low": low, "high": high, "n": captions}
                row = {"model": name} | how | shares
                row |= {"agree": float(np.mean(hits == first[0])), "alignment": float(above.mean() / first[1].mean())}
                rows.append(row | {"seconds": seconds})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.solvers", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/solvers.json"), help="(runs/solvers.json)")
    save_json(measured(), parser.parse_args().out)


if __name__ == "__main__":
    main()
