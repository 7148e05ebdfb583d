"""Measures models of several row widths, for notebook 04: `python -m tools.widths --train 1 6 --models W`.

Trains models with rows of these widths beside the shipped one, with its autoencoder (three hours and a half of one
core; `memsub_extra.training.train --widths` makes them with a model of their own), into `W`, where they are found
again. An edit is located on the first third of the verbatim prompts, by METHOD with tau = 10, at sparsities from hardly
any to most of a row, and judged on the other two thirds by the exact test. Writes the table that ships with the
embedded model.

    python -m tools.widths --again W       # adds one that memsub_extra.training.train made: another training
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from memsub.activations import capture
from memsub.measure.evaluation import alignment, score
from memsub.measure.metrics import Metrics, load_metrics
from memsub.measure.verdict import by_exact_test
from memsub.models import as_denoiser, generate, load_pipeline
from memsub.neurons import locate
from memsub.prompts import Prompts, load_prompts
from memsub.pruning import pruned
from memsub.testbed.dataset import weights_folder
from memsub.testbed.world import WORLD
from memsub_extra.files import save_table
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run
from memsub_extra.training.train import train_widths
from memsub_extra.training.widths import TABLE
from memsub_extra.unlearning.pairs import SAMPLING

SPARSITY = (0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.4, 0.6)


def measure(pipe: Any, metrics: Metrics, prompts: Prompts, kept: float, training: int) -> pd.DataFrame:
    """The rows of one model, which is the `training`-th of its width; `kept` is the alignment of the twin."""
    split, judge = Run(Parameters()).data.split, by_exact_test(WORLD)
    captions, images = prompts.of("verbatim"), prompts.images("verbatim")
    judged = [*split["choose"], *split["report"]]
    located_on, wanted = ([captions[i] for i in places] for places in (split["locate"], judged))
    how: dict[str, Any] = {"first": 10, "guidance_scale": 3.0, "progress": False}
    stats, null = (capture(pipe, part, **how) for part in (located_on, [""]))
    sample, tables = partial(generate, pipe, **SAMPLING), []
    width = float(np.mean([layer.in_features for layer in as_denoiser(pipe).layers().values()]))
    for sparsity in tqdm((0.0, *SPARSITY), desc=f"rows of {width:.0f} weights"):
        edit = locate(pipe, stats, null, sparsity).union(10) if sparsity else None
        with pruned(pipe, edit):
            sampled = generate(pipe, wanted, seeds=[0] * len(judged), **SAMPLING)
            unseen = score(sample, metrics, prompts.of("heldout")[: len(judged)])
        row = {"row": width, "training": training, "sparsity": sparsity, "density": edit.density if edit else 0.0}
        row["alignment"] = alignment(unseen) / kept
        hits = judge(sampled, wanted, images[judged])
        tables.append(pd.DataFrame({"caption": judged, "replicated": hits, **row}))
    return pd.concat(tables, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.widths", description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, nargs="+", default=[1, 6], help="widths of the other models (1 6)")
    parser.add_argument("--models", type=Path, default=Path("runs/widths"), help="their folder (runs/widths)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="that trains")
    parser.add_argument(
        "--out", type=Path, default=weights_folder() / TABLE, help="table to write (default: the shipped one)"
    )
    parser.add_argument("--again", type=Path, help="folder of a model to add to the table; trains none")
    args = parser.parse_args()
    if args.again:
        known, models = [pd.read_parquet(args.out)], [args.again]
        training = int(known[0]["training"].max()) + 1
    else:
        models = ["tiny", *train_widths(args.models, args.models / "checkpoints", args.train, device=args.device)]
        known, training = [], 0
    metrics, prompts = load_metrics("tiny"), load_prompts("tiny")
    twin = partial(generate, load_pipeline("tiny-twin"), **SAMPLING)
    kept = alignment(score(twin, metrics, prompts.of("heldout")[:66]))
    pipes = [load_pipeline(model, dtype=torch.float32) for model in models]
    table = pd.concat([*known, *(measure(pipe, metrics, prompts, kept, training) for pipe in pipes)])
    save_table(table.sort_values(["row", "training", "sparsity", "caption"], ignore_index=True), args.out)
    print(table.groupby(["row", "training", "sparsity"])[["density", "replicated", "alignment"]].mean().to_string())


if __name__ == "__main__":
    main()
