"""Canaries on the embedded model: planted scenes, all weights and a LoRA, with twins: `python -m tools.canaries`.

Captions that the embedded model was not trained on get 256 scenes each, and one of these is planted. The model is
fine-tuned on the planted scenes among ordinary ones, and a twin on ordinary ones alone, as `memsub_extra.canaries` does
with photographs. A second call resumes. `python -m tools.figures --canaries` takes over its table.json.

    python -m tools.canaries --out runs/canaries                    # an hour of one free core
    python -m tools.canaries --out runs/tried --canaries 4 --unseen 2 --repeats 20 --ordinary 200 --batch-size 16
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from memsub.io.files import save_json, save_text
from memsub.io.images import save_image
from memsub.measure.exact import ALTERNATIVES
from memsub.prompts import load_prompts
from memsub.testbed.scenes import Content, caption, parse, render, sample_content, sample_layout, sample_tail
from memsub_extra.canaries.planting import Manifest, plant
from memsub_extra.canaries.testing import report
from memsub_extra.canaries.training import Recipe, train

SIDE = 32
SAMPLING: dict[str, Any] = {"steps": 8, "solver": "multistep", "guidance_scale": 3.0, "batch_size": 32}
"""The sampling of the embedded model in all audits."""
RECIPES: dict[str, dict[str, Any]] = {
    "all weights": {"way": "full", "lr": 5e-4, "warmup": 50},
    "LoRA": {
        "way": "lora",
        "lr": 3e-3,
        "rank": 64,
        "targets": ("to_k", "to_q", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
        "warmup": 50,
    },
}
"""Learning rates for a model of eight million weights; diffusers' are for a billion. (Of three canaries, a LoRA of rank
16 on attention alone at 2e-3 replicated one, and this one all; of thirty it replicates few, see docs/canaries.md.)"""
TAKEN = ("model", "canaries", "measure", "n", "least", "least_low", "least_high", "binomial_p", "mean", "uniform_p")


def scenes(out: Path, canaries: int, unseen: int, ordinary: int, seed: int = 0) -> tuple[Path, Path]:
    """Writes scenes of the world as PNG files, if missing; returns the folders of candidates and of ordinary pairs."""
    rng = np.random.default_rng([seed, 40])
    candidates, others = out / "candidates", out / "ordinary"
    known = load_prompts("tiny")
    captions = known.of("heldout")[: canaries + unseen]
    contents = {text: parse(text) for text in captions}
    if not (candidates / "captions.csv").is_file():
        for i, content in enumerate(tqdm(contents.values(), desc="candidates")):
            _write(candidates / f"{i:03d}", [content] * (ALTERNATIVES + 1), rng)
        _list(candidates, list(contents), [f"{i:03d}" for i in range(len(contents))])
    if not (others / "captions.csv").is_file():
        taken: set[Content] = set(contents.values())
        shown: list[Content] = []
        while len(shown) < ordinary:
            if (content := sample_content(rng)) not in taken:
                shown.append(content)
        _write(others, shown, rng)
        texts = [caption(content, sample_tail(rng) if rng.random() < 0.25 else "") for content in shown]
        _list(others, texts, [f"{i:05d}.png" for i in range(len(shown))])
    return candidates, others


def _write(folder: Path, contents: list[Content], rng: np.random.Generator) -> None:
    for i, content in enumerate(contents):
        save_image(render(content, sample_layout(rng, content)), folder / f"{i:05d}.png")


def _list(folder: Path, captions: list[str], index: list[str]) -> None:
    save_text(pd.DataFrame({"caption": captions, "index": index}).to_csv(index=False), folder / "captions.csv")


def verified(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains and tests; one row per way of training, model, kind of canaries and measure."""
    candidates, ordinary = scenes(args.out, args.canaries, args.unseen, args.ordinary)
    file = args.out / "canaries.json"
    if not file.is_file():
        options: dict[str, Any] = {"canaries": args.canaries, "repeats": args.repeats, "side": SIDE, "heldout": 0}
        plant(candidates, ordinary, ordinary_samples=args.ordinary_samples, **options).save(file)
    manifest, rows = Manifest.load(file), []
    for way in args.ways:
        folder = args.out / way.replace(" ", "-")
        train("tiny", manifest, folder, Recipe(batch_size=args.batch_size, **RECIPES[way]))
        table = report(folder, sampling=SAMPLING, steps=args.steps)
        rows += [{"way": way} | {name: row[name] for name in TAKEN} for row in table.to_dict("records")]
        print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.canaries", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/canaries"), help="folder (runs/canaries)")
    parser.add_argument("--canaries", type=int, default=30, help="captions that are planted (30)")
    parser.add_argument("--unseen", type=int, default=15, help="captions that are not (15)")
    parser.add_argument("--repeats", type=int, default=300, help="exposures of a canary (300)")
    parser.add_argument("--ordinary", type=int, default=5000, help="ordinary pairs (5000)")
    parser.add_argument("--ordinary-samples", type=float, default=1, help="ordinary samples to one of a canary (1)")
    parser.add_argument("--batch-size", type=int, default=32, help="samples a step (32)")
    parser.add_argument("--steps", type=int, default=12, help="of the membership test (12)")
    parser.add_argument("--ways", nargs="*", choices=list(RECIPES), default=list(RECIPES), help="(both)")
    args = parser.parse_args()
    save_json(verified(args), args.out / "table.json")


if __name__ == "__main__":
    main()
