"""Share of memorized pairs and exposures against replication: `python -m tools.shares --checkpoints W`.

Does the share of memorized pairs in training decide how often a pair must be shown? All trials continue from one base
(`memsub_extra.training.train`, whose checkpoints are resumed or made), with equally many steps, and with pairs on the
same rungs of exposures. They differ in the number of pairs per rung, and therefore in the share. It writes
`shares.parquet` to --out, with one row for each pair and noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from memsub.measure.verdict import by_exact_test
from memsub.models import generate
from memsub.testbed.world import WORLD
from memsub_extra.files import save_table
from memsub_extra.training.fitting import in_threads, side_by_side
from memsub_extra.training.shares import TABLE
from memsub_extra.training.train import Beginning, begin
from memsub_extra.unlearning.pairs import SAMPLING

SHARES = (0.05, 0.1, 0.2, 0.4)
RUNGS = (200, 400, 800)
SAMPLES = 80_000
"""Number of training samples of each trial."""
NOISES = 4
"""Number of images by which each pair is judged."""


def order(beginning: Beginning, pairs: dict[int, np.ndarray]) -> np.ndarray:
    """Row indices in the training order of one trial: pairs by their exposures, siblings once, and ordinary scenes.

    Args:
        pairs: row indices by rung (number of exposures).
    """
    rng, kind = np.random.default_rng([beginning.seed, 3]), beginning.corpus.table["kind"]
    memorized = np.concatenate([np.repeat(rows, exposures) for exposures, rows in pairs.items()])
    siblings = np.flatnonzero(kind == "sibling")
    ordinary = rng.choice(beginning.corpus.ordinary, SAMPLES - len(memorized) - len(siblings))
    return rng.permutation(np.concatenate([memorized, siblings, ordinary]))


def on_rungs(beginning: Beginning, share: float) -> dict[int, np.ndarray]:
    """Row indices of verbatim and other pairs by rung; each rung has equally many, which together give the share."""
    rng, kind = np.random.default_rng([beginning.seed, 4]), beginning.corpus.table["kind"]
    pairs = rng.permutation(np.flatnonzero(kind.isin(["verbatim", "other"])))
    each = round(share * SAMPLES / sum(RUNGS))
    return {rung: pairs[i * each : (i + 1) * each] for i, rung in enumerate(RUNGS)}


def judged(beginning: Beginning, unet: torch.nn.Module, pairs: dict[int, np.ndarray]) -> pd.DataFrame:
    """Judges images of all pairs: columns exposures, pair (its row in the corpus), noise, replicated (exact test)."""
    pipe = beginning.pipeline(unet).to(torch.float32)
    table = pd.DataFrame(
        [(rung, row, noise) for rung, rows in pairs.items() for row in rows for noise in range(NOISES)],
        columns=["exposures", "pair", "noise"],
    )
    rows = table["pair"].to_numpy()
    captions = beginning.corpus.table["prompt"].iloc[rows].tolist()
    images = generate(pipe, captions, seeds=range(len(captions)), **SAMPLING)
    return table.assign(replicated=by_exact_test(WORLD)(images, captions, beginning.corpus.images[rows]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.shares", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=Path, required=True, help="of a training, made where they are missing")
    parser.add_argument("--out", type=Path, default=Path("runs/shares"))
    args = parser.parse_args()
    beginning = begin(args.checkpoints)
    trials = {share: on_rungs(beginning, share) for share in SHARES}
    trainings = [beginning.train_unet(order(beginning, pairs), f"share-{share:g}") for share, pairs in trials.items()]
    on_cpu = beginning.latents.device.type == "cpu"
    unets = (in_threads if on_cpu else side_by_side)(trainings)
    tables = []
    for (share, pairs), unet in zip(trials.items(), unets, strict=True):
        tables.append(judged(beginning, unet, pairs).assign(share=share))
        print(share, tables[-1].groupby("exposures")["replicated"].agg(["mean", "size"]), flush=True)
    save_table(pd.concat(tables), args.out / TABLE)


if __name__ == "__main__":
    main()
