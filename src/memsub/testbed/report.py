"""Measures the embedded model: `python -m memsub.testbed.report`.

Prints a table of figures, what is aimed at, and whether it is reached, and writes it to `--out` (Markdown and CSV).
The pieces are functions, which notebook 00 calls too:

    reproduction(pipe, judges, prompts, "verbatim", seeds=range(4))     # similarity of each draw to the training image
    nearest_training_image(images, judges)                              # ... to any training image
    attribute_rank(images, contents, judges)                            # is the true caption first among 16?
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from matplotlib.figure import Figure

from .. import plots
from ..evaluation import seed_similarity
from ..generation import generate
from ..metrics import Judges, load_judges
from ..models import load_pipeline
from ..prompts import Prompts, load_prompts
from . import dataset
from .judges import copy_roc, judge_scenes, round_trip
from .scenes import Content, caption, parse
from .towers import SceneEncoder

GUIDANCE = 3.0
ALTERNATIVES = 16
FRESH_SCENES = 3
"""Seed of scenes for the copy judge; training took the two before."""


def reproduction(
    pipe: StableDiffusionPipeline,
    judges: Judges,
    prompts: Prompts,
    kind: str,
    seeds: Sequence[int],
    limit: int | None = None,
    guidance_scale: float = GUIDANCE,
    steps: int = 50,
) -> pd.DataFrame:
    """Draws each caption of a kind with each seed, and compares with its training image.

    Returns:
        One row a draw: prompt, kind, group, exposures, seed, similarity, copied (above the judge's threshold).
    """
    table = prompts.rows(kind).drop(columns=["image", "content"])[:limit]
    references = prompts.images(kind)[:limit]
    rows = table.loc[np.repeat(table.index, len(seeds))].assign(seed=np.tile(seeds, len(table))).reset_index(drop=True)
    images = generate(pipe, rows["prompt"], seeds=rows["seed"], guidance_scale=guidance_scale, steps=steps)
    rows["similarity"] = judges.copy.similarity(images, np.repeat(references, len(seeds), axis=0))
    return rows.assign(copied=rows["similarity"] > judges.copy.threshold)


def nearest_training_image(
    images: np.ndarray, judges: Judges, training: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Highest copy similarity of each image with any training image, and that image's row in `training`."""
    training = dataset.training_images() if training is None else training
    return judges.copy.nearest(images, judges.copy.features(training))


def attribute_rank(images: np.ndarray, contents: Sequence[Content], judges: Judges, seed: int = 0) -> np.ndarray:
    """Rank of the true caption among 16 of which the others differ from it in one attribute each; 0 is first, shape (n,)."""
    rng = np.random.default_rng(seed)
    captions = []
    for content in contents:
        others: dict[tuple, Content] = {}
        while len(others) < ALTERNATIVES - 1:
            other = content.random_variant(rng)
            others[other.key] = other
        captions += [caption(content), *map(caption, others.values())]
    text = judges.prompt.text_features(captions).reshape(len(images), ALTERNATIVES, -1)
    scores = np.einsum("nd,nkd->nk", judges.prompt.image_features(images), text)
    return (scores[:, 1:] >= scores[:, :1]).sum(1)


def autoencoder_psnr(pipe: StableDiffusionPipeline, images: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of the autoencoder's round trip in dB, shape (n,)."""
    error = (images.astype(np.float64) - round_trip(pipe.vae, images)) / 255
    return -10 * np.log10((error**2).mean((1, 2, 3)))


def copy_pairs(pipe: StableDiffusionPipeline, judges: Judges, folder: Path, contents: int) -> pd.DataFrame:
    """Pairs as `judges.copy_roc` makes them, of scenes that neither trained the judge nor chose its threshold; `above` it or not."""
    model = SceneEncoder.from_pretrained(folder / "judges" / "copy", dtype=torch.float32, use_safetensors=True).eval()
    _, pairs, _ = copy_roc(model.to(pipe.device), judge_scenes(FRESH_SCENES, contents), pipe.vae)
    return pairs.assign(above=pairs["similarity"] > judges.copy.threshold)


def folder_size(folder: Path) -> int:
    """Bytes on disk of the pipeline and its judges, without the ground truth."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.suffix != ".parquet")


def measure(
    pipe: StableDiffusionPipeline, judges: Judges, prompts: Prompts, folder: Path, sample: float = 1.0
) -> pd.DataFrame:
    """All figures of the table; `sample` < 1 takes that share of the prompts.

    Returns:
        Columns figure, aim, measured, value (a number), reached (None where nothing is aimed at).
    """
    n = lambda full: max(2, round(full * sample))  # noqa: E731
    rows: list[dict] = []

    def add(figure: str, aim: str, measured: str, value: float, reached: bool | None) -> None:
        rows.append({"figure": figure, "aim": aim, "measured": measured, "value": float(value), "reached": reached})
        print(f"{figure}: {measured}", flush=True)

    pairs = copy_pairs(pipe, judges, folder, n(2000))
    copies, hard = pairs["is_copy"], pairs["pair"] == "distinct, same caption"
    true, false = pairs["above"][copies].mean(), pairs["above"][hard].mean()
    add(
        "copy judge on fresh scenes: copies above the threshold, distinct scenes of the same caption above it",
        "≥ 98 %, ≤ 0.5 %",
        f"{true:.2%}, {false:.2%} at {judges.copy.threshold:.3f} ({copies.sum()} copies, {hard.sum()} pairs)",
        true,
        bool(true >= 0.98 and false <= 0.005),
    )
    verbatim = reproduction(pipe, judges, prompts, "verbatim", range(4), n(100))
    rate = verbatim["copied"].mean()
    add(
        f"verbatim pairs reproduced, {len(verbatim)} draws",
        "≥ 90 %",
        f"{rate:.1%} (mean similarity {verbatim['similarity'].mean():.2f})",
        rate,
        rate >= 0.9,
    )

    held = prompts.rows("heldout")[: n(500)]
    contents = [parse(c) for c in held["content"]]
    real = prompts.images("heldout")[: len(held)]
    drawn = generate(pipe, held["prompt"], seeds=range(len(held)), guidance_scale=GUIDANCE)
    nearest, _ = nearest_training_image(drawn, judges)
    rate = (nearest > judges.copy.threshold).mean()
    add(
        f"never-seen captions: copies of any training image, {len(held)} draws",
        "≤ 2 %",
        f"{rate:.1%} (median nearest similarity {np.median(nearest):.2f})",
        rate,
        rate <= 0.02,
    )
    real_nearest, _ = nearest_training_image(real, judges)
    add(
        "the same for the real held-out scenes (the judge's floor)",
        "",
        f"{(real_nearest > judges.copy.threshold).mean():.1%}",
        (real_nearest > judges.copy.threshold).mean(),
        None,
    )

    rungs = reproduction(pipe, judges, prompts, "ladder", range(4)).groupby("exposures")["copied"].mean()
    noise = np.sqrt(0.25 / dataset.PAIRS_PER_RUNG)  # one standard error of a proportion among ten pairs
    monotone = all(later >= earlier - noise for earlier, later in pairwise(rungs))
    add(
        "ladder: reproduced at " + ", ".join(map(str, rungs.index)) + " exposures",
        "monotone within noise, < 10 % at 1, > 90 % at 1000",
        ", ".join(f"{r:.0%}" for r in rungs),
        rungs.iloc[-1],
        bool(monotone and rungs.iloc[0] < 0.1 and rungs.iloc[-1] > 0.9),
    )
    for kind, what in (
        ("template", "template captions: their training image reproduced"),
        ("template_new", "template captions never shown: the scene the template implies"),
    ):
        frame = reproduction(pipe, judges, prompts, kind, range(2), None if sample == 1 else n(100))
        add(f"{what}, {len(frame)} draws", "", f"{frame['copied'].mean():.1%}", frame["copied"].mean(), None)

    on_real, on_drawn = ((attribute_rank(x, contents, judges) == 0).mean() for x in (real, drawn))
    add(
        f"never-seen captions: true caption first among {ALTERNATIVES} that differ in one attribute (real scenes)",
        "≥ 60 % of real",
        f"{on_drawn:.1%} (real {on_real:.1%}, ratio {on_drawn / on_real:.2f})",
        on_drawn / on_real,
        on_drawn >= 0.6 * on_real,
    )
    psnr = autoencoder_psnr(pipe, real)
    add("autoencoder on held-out scenes, mean PSNR", "≥ 27 dB", f"{psnr.mean():.1f} dB", psnr.mean(), psnr.mean() >= 27)
    draw = partial(generate, pipe, guidance_scale=GUIDANCE)
    across = np.median(seed_similarity(draw, judges, prompts.ordinary[: n(100)]))
    add(
        "ordinary captions: median copy similarity between seeds",
        f"clearly below {judges.copy.threshold:.2f}",
        f"{across:.2f}",
        across,
        across < judges.copy.threshold - 0.15,
    )
    began = time.perf_counter()
    generate(pipe, prompts.ordinary[:100], seeds=range(100), guidance_scale=GUIDANCE, progress=False)
    seconds = time.perf_counter() - began
    add(
        f"100 images, 50 DDIM steps, guidance {GUIDANCE}, {torch.get_num_threads()} threads",
        "≤ 40 s",
        f"{seconds:.1f} s",
        seconds,
        seconds <= 40,
    )
    size = folder_size(folder) / 1e6
    add("pipeline and judges on disk", "≤ 30 MB", f"{size:.1f} MB", size, size <= 30)
    return pd.DataFrame(rows)


def picture(pipe: StableDiffusionPipeline, prompts: Prompts, columns: int = 5) -> Figure:
    """Memorized captions on the left, never-seen ones on the right: the scene that was drawn for them, then four seeds."""
    kinds = ("verbatim", "heldout")
    captions = [text for kind in kinds for text in prompts.of(kind)[:columns]]
    rows = {"training image; never-seen scene": np.concatenate([prompts.images(kind)[:columns] for kind in kinds])}
    for seed in range(4):
        rows[f"model, seed {seed}"] = generate(pipe, captions, seeds=seed, guidance_scale=GUIDANCE, progress=False)
    return plots.image_grid(rows, captions)


def to_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown."""
    mark = {True: "yes", False: "**no**", None: ""}
    lines = [f"| {r.figure} | {r.aim} | {r.measured} | {mark[r.reached]} |" for r in table.itertuples()]
    return "\n".join(["| figure | aim | measured | reached |", "| --- | --- | --- | --- |", *lines]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m memsub.testbed.report", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="'tiny', or a folder that memsub.testbed.train wrote")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/testbed-report"), help="folder for report.md, report.csv and picture.png"
    )
    parser.add_argument("--sample", type=float, default=1.0, help="share of the prompts to take, for a quick look")
    args = parser.parse_args()
    if not 0 < args.sample <= 1:
        parser.error(f"--sample must lie in (0, 1]; got {args.sample}")
    folder = dataset.weights_folder() if args.model == "tiny" else Path(args.model)
    prompts = (
        load_prompts("tiny") if args.model == "tiny" else Prompts(pd.read_parquet(folder / "ground_truth.parquet"))
    )
    pipe = load_pipeline(args.model)
    table = measure(pipe, load_judges(args.model), prompts, folder, args.sample)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "report.md").write_text(to_markdown(table))
    table.to_csv(args.out / "report.csv", index=False)
    picture(pipe, prompts).savefig(args.out / "picture.png", dpi=110)
    print("\n" + to_markdown(table))


if __name__ == "__main__":
    main()
