"""How few steps, and bits, may an image be judged in? `python -m tools.solvers --out runs/solvers.json`.

Several samplers, in float32 or bfloat16, sample the same captions and seeds on the embedded model (unedited, and with
each shipped edit) and on its twin. Verdicts of the exact test and alignment are compared with those of fifty steps of
the model's own scheduler. `python -m tools.figures --solvers` takes the table into the documents.
"""

from __future__ import annotations

import argparse
import copy
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memsub.io.files import save_json
from memsub.measure.evaluation import alignment_each, score
from memsub.measure.intervals import interval
from memsub.measure.metrics import load_metrics
from memsub.measure.verdict import by_exact_test
from memsub.models import Sample, generate, load_pipeline
from memsub.prompts import load_prompts
from memsub.pruning import Edit
from memsub.testbed.world import WORLD
from memsub_extra.run.model import Model
from memsub_extra.unlearning import shipped

SAMPLERS: list[dict[str, Any]] = [
    {"solver": "own", "steps": 50},
    {"solver": "own", "steps": 10},
    {"solver": "multistep", "steps": 10},
    {"solver": "multistep", "steps": 8},
    {"solver": "multistep", "steps": 6},
    {"solver": "multistep", "steps": 8, "dtype": "bfloat16"},
]
"""The others are compared with the first."""


def measured(captions: int = 100, unseen: int = 60) -> list[dict[str, Any]]:
    """Measures all models and samplers; one row for each."""
    pipe, prompts = load_pipeline("tiny"), load_prompts("tiny")
    metrics, judge = load_metrics("tiny", more=[]), by_exact_test(WORLD)
    memorized, references = prompts.memorized[:captions], prompts.images("verbatim", 0, captions)
    models = [Model("unedited", pipe)]
    models += [Model(name, pipe, Edit.load(path)) for name, path in shipped.edits().items()]
    models.append(Model("twin", load_pipeline("tiny-twin")))
    rows = []
    for model in models:
        first: tuple[np.ndarray, np.ndarray] | None = None
        for sampler in SAMPLERS:
            how = {"dtype": "float32"} | sampler
            with model.applied() as edited:
                network: Any = edited
                if how["dtype"] != "float32":
                    network = copy.deepcopy(network).to(getattr(torch, how["dtype"]))
                options = {"solver": how["solver"], "steps": how["steps"], "guidance_scale": 3.0, "progress": False}
                sample: Sample = partial(generate, network, **options)
                began = time.perf_counter()
                images = sample(memorized, seeds=range(captions))
                seconds = (time.perf_counter() - began) / captions
                above = alignment_each(score(sample, metrics, prompts.of("heldout")[:unseen])).to_numpy()
            hits = judge(images, memorized, references)
            first = first or (hits, above)
            low, high = interval(int(hits.sum()), captions)
            shares = {"replicated": float(hits.mean()), "low": low, "high": high, "n": captions}
            row = {"model": model.name} | how | shares
            row |= {"agree": float(np.mean(hits == first[0])), "alignment": float(above.mean() / first[1].mean())}
            rows.append(row | {"seconds": seconds})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.solvers", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/solvers.json"), help="(runs/solvers.json)")
    args = parser.parse_args()
    save_json(measured(), args.out)


if __name__ == "__main__":
    main()
