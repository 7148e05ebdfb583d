"""Measures the embedded model: `python -m tools.testbed_report`.

It prints a table of figures, their aims, and whether these are reached. It writes to `--out`: report.json (numbers, and
the time of each training stage), report.md, and images.png. The model card takes its tables from report.json (`python
-m tools.figures`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from memsub.io.files import load_json, save_json, save_text
from memsub.measure.evaluation import score
from memsub.measure.exact import LEVEL, uniformity
from memsub.measure.intervals import clustered
from memsub.measure.metrics import Metrics, load_metrics
from memsub.measure.noise import noise_seeds
from memsub.measure.verdict import exact_in
from memsub.models import Sample, as_denoiser, generate, load_pipeline
from memsub.prompts import Prompts, load_prompts
from memsub.testbed.dataset import TABLE, weights_folder
from memsub.testbed.scenes import CHOICES, COLOURS, ICONS, Content, alternatives, caption, parse, sample_content
from memsub.testbed.towers import SceneEncoder
from memsub.testbed.world import exact_p
from memsub_extra.notebooks import plots
from memsub_extra.notebooks.equivalence import holm
from memsub_extra.notebooks.findings import percent
from memsub_extra.notebooks.notebook04 import seed_similarity
from memsub_extra.training import dataset
from memsub_extra.training.corpus import MODELS
from memsub_extra.training.scorers import copy_pairs, round_trip, scorer_scenes
from memsub_extra.unlearning.pairs import SAMPLING

ALTERNATIVES = 16
FRESH_SCENES = 3
"""Seed of the scenes for the copy metric; training used seeds 1 and 2."""
NEVER_SEEN = ("verbatim", "template", "ladder")
"""Kinds of pairs that the model was trained on, and its controls were not."""
LARGEST_SHARE, MOST_GFLOP, MOST_MEGABYTES = 0.20, 0.25, 65
"""Limits of the embedded model: share of memorized pairs in training, a row of the network, and its size on disk."""


class Report:
    """Measures a model, with one method for each figure. Figures are dicts that can be written as JSON."""

    def __init__(
        self,
        pipe: Any,
        controls: Mapping[str, Any],
        metrics: Metrics,
        prompts: Prompts,
        folder: Path,
        sample: float = 1.0,
    ):
        """`sample` < 1 takes that share of the prompts. `controls`: pipelines by name ("twin", "other"), if any."""
        self.pipe, self.metrics, self.prompts, self.folder, self.share = pipe, metrics, prompts, folder, sample
        self.controls = controls
        self.uniform: dict[str, float] = {}
        """P-values of tests of uniformity, for all exact tests on pairs that the sampled model never saw."""
        self.metrics.more = {"exact_p": exact_p}
        self.sample: Callable[..., np.ndarray] = partial(generate, pipe, **SAMPLING)
        self.held = prompts.rows("heldout")[: self._n(500)]
        self.real = prompts.images("heldout")[: len(self.held)]

    def _n(self, full: int) -> int:
        return max(2, round(full * self.share))

    def figures(self) -> Iterator[dict]:
        """Yields dicts: figure, aim, measured (text), value, low, high, n, reached (None if there is no aim)."""
        self.sampled = self.sample(self.held["prompt"], seeds=noise_seeds(self.held["prompt"]))
        captions = self.held["prompt"].tolist()
        yield self._calibration("never-trained pairs", self.sampled, captions, self.real)
        for name in self.controls:
            yield from self._control_calibration(name)
        if "other" in self.controls:
            yield self._model_on_other_pairs()
        if self.controls:
            yield self._calibrated()
        yield from self._shares()
        yield from self._memorized("verbatim", 4, 0.95)
        if "other" in self.controls:
            yield self._other_on_its_pairs()
        yield self._without_tails()
        for kind in ("template", "template_new"):
            yield from self._memorized(kind, 2, None)
        yield self._ladder()
        yield from self._nearest()
        yield from self._alternatives()
        yield self._icons(1, 0.95)
        yield self._icons(2, 0.85)
        yield self._autoencoder()
        yield self._seeds()
        yield self._copy_metric()
        yield self._work()
        yield self._size()

    def _copy_metric(self) -> dict:
        options = {"dtype": torch.float32, "use_safetensors": True}
        model = SceneEncoder.from_pretrained(self.folder / "scorers" / "copy", **options).eval()
        pairs = copy_pairs(model.to(self.pipe.device), scorer_scenes(FRESH_SCENES, self._n(2000)), self.pipe.vae)
        above = pairs["similarity"] > self.metrics.copy.threshold
        copies, hard = pairs["is_copy"], pairs["pair"] == "distinct, same caption"
        true, false = above[copies].mean(), above[hard].mean()
        measured = f"{true:.2%}, {false:.2%} at {self.metrics.copy.threshold:.3f} ({copies.sum()}, {hard.sum()} pairs)"
        figure = "copy metric on fresh scenes: copies above the threshold, distinct scenes of one caption above it"
        return _row(figure, "reported", measured, true)

    def _score(self, kind: str, seeds: int) -> pd.DataFrame:
        rows, images = self.prompts.rows(kind), self.prompts.images(kind)
        n = len(rows) if self.share == 1 or kind == "ladder" else self._n(100)
        scored = score(self.sample, self.metrics, rows["prompt"][:n], images[:n], seeds=range(seeds))
        more = {column: np.repeat(rows[column][:n].to_numpy(), seeds) for column in ("exposures", "group")}
        return scored.assign(**more)

    def _memorized(self, kind: str, seeds: int, aim: float | None) -> Iterator[dict]:
        scored = self._score(kind, seeds)
        what = {"template_new": "template captions not trained on:"}.get(kind, kind)
        # Captions of a template share a training image, so they are one unit.
        units = scored["group"] if kind.startswith("template") else scored["prompt"]
        for name, hits in (("copy metric", scored["replicated"]), ("exact test", exact_in(scored))):
            bound = aim if name == "exact test" else None
            aim_text = f"≥ {bound:.0%}" if bound else ""
            yield _rate(f"{what} pairs replicated, by the {name}", aim_text, hits, bound, units=units)

    def _without_tails(self) -> dict:
        rows = self.prompts.rows("verbatim")[: self._n(100)]
        images = self.prompts.images("verbatim")[: len(rows)]
        scored = score(self.sample, self.metrics, rows["content"], images, seeds=range(4))
        hits = exact_in(scored)
        figure = "verbatim pairs, captions without their tail, by the exact test"
        return _rate(figure, "≤ 3 %", hits, 0.03, at_most=True, units=scored["prompt"])

    def _ladder(self) -> dict:
        scored = self._score("ladder", 4 if self.share == 1 else 1)
        rungs = (exact_in(scored)).groupby(scored["exposures"]).mean()
        noise = np.sqrt(0.25 / dataset.PAIRS_PER_RUNG)  # one standard error of a proportion among ten pairs
        monotone = all(later >= earlier - noise for earlier, later in pairwise(rungs))
        figure = "ladder, by the exact test: replicated at " + ", ".join(map(str, rungs.index)) + " exposures"
        reached, aim = monotone and rungs.iloc[0] < 0.1, "monotone within noise, < 10 % at 1"
        measured = f"{', '.join(map(percent, rungs))} ({dataset.PAIRS_PER_RUNG} pairs each)"
        return _row(figure, aim, measured, rungs.iloc[-1], reached=reached)

    def _calibration(self, what: str, images: np.ndarray, captions: list[str], references: np.ndarray) -> dict:
        p = exact_p(images, captions, references)
        ks, figure = uniformity(p), f"exact test on {what}: p ≤ 1/256, and uniformity"
        self.uniform[what] = ks
        row = _rate(figure, "≤ 1 %, KS p > 0.05", p <= LEVEL, 0.01, at_most=True)
        return row | {"measured": f"{row['measured']}, KS p = {ks:.2f}", "reached": row["reached"] and bool(ks > 0.05)}

    def _control_calibration(self, name: str) -> Iterator[dict]:
        """Tests one seed per caption and one caption per layout, because p-values that share either are dependent. Then
        tests three other seeds."""
        rows = pd.concat([self.prompts.rows(kind) for kind in NEVER_SEEN])
        distinct = ((rows["kind"] != "template") | ~rows.duplicated(["kind", "group"])).to_numpy()
        captions = rows["prompt"][distinct].tolist()
        references = np.concatenate([self.prompts.images(kind) for kind in NEVER_SEEN])[distinct]
        step = max(1, round(1 / self.share))  # a sample has equal shares of all kinds
        captions, references = captions[::step], references[::step]
        sample: Sample = partial(generate, self.controls[name], **SAMPLING)
        first, *others = (sample(captions, seeds=noise_seeds(captions, k)) for k in range(4))
        yield self._calibration(f"{name} with the model's memorized captions", first, captions, references)
        p_values = [exact_p(images, captions, references) for images in others]
        row = _rate(
            f"... {name}, with three other seeds each: p ≤ 1/256, and uniformity",
            "",
            np.concatenate(p_values) <= LEVEL,
            None,
            units=np.tile(captions, len(p_values)),
        )
        of_seeds = {f"{name}, seed {seed}": uniformity(p) for seed, p in enumerate(p_values, 1)}
        self.uniform |= of_seeds
        ks = ", ".join(f"{p:.2f}" for p in of_seeds.values())
        yield row | {"measured": f"{row['measured']}, KS p = {ks}"}

    def _other_pairs(self) -> tuple[list[str], np.ndarray]:
        """Captions and images that *other* was trained on, and the model was not."""
        n = self._n(100)
        return self.prompts.of("other")[:n], self.prompts.images("other")[:n]

    def _model_on_other_pairs(self) -> dict:
        captions, references = self._other_pairs()
        images = self.sample(captions, seeds=noise_seeds(captions))
        return self._calibration("the model with the captions that *other* memorized", images, captions, references)

    def _other_on_its_pairs(self) -> dict:
        """Checks the control *other*: it must have memorized its own pairs, as the model has."""
        captions, references = self._other_pairs()
        sample: Sample = partial(generate, self.controls["other"], **SAMPLING)
        hits = [
            exact_p(sample(captions, seeds=noise_seeds(captions, k)), captions, references) <= LEVEL for k in range(4)
        ]
        figure = "*other*: its own pairs replicated, by the exact test"
        return _rate(figure, "≥ 95%", np.concatenate(hits), 0.95, units=np.tile(captions, len(hits)))

    def _calibrated(self) -> dict:
        """All tests of uniformity together, adjusted by Holm."""
        together = holm(self.uniform)
        least = min(together, key=together.__getitem__)
        figure = f"uniformity of all {len(together)} exact tests on pairs never seen, by Holm: least p"
        return _row(
            figure, "> 0.05", f"{together[least]:.2f} ({least})", together[least], reached=together[least] > 0.05
        )

    def _nearest(self) -> Iterator[dict]:
        corpus = self.metrics.copy.features(dataset.training_images())
        names = {"unseen captions": self.sampled, "real held-out scenes (the floor)": self.real}
        for name, images in names.items():
            hits = self.metrics.copy.nearest(images, corpus)[0] > self.metrics.copy.threshold
            aim = ("≤ 2 %", 0.02) if name == "unseen captions" else ("", None)
            yield _rate(f"{name}: copies of any training image, by the copy metric", aim[0], hits, aim[1], at_most=True)

    def _alternatives(self) -> Iterator[dict]:
        candidates = alternatives([parse(c) for c in self.held["content"]], ALTERNATIVES)
        for what, images, aim in (("real", self.real, 0.9), ("generated", self.sampled, 0.85)):
            first = self.metrics.prompt.rank(images, candidates) == 0
            figure = (
                f"unseen captions, {what} scenes: true caption first of {ALTERNATIVES} that differ in one attribute"
            )
            yield _rate(figure, f"≥ {aim:.0%}", first, aim)

    def _icons(self, items: int, aim: float) -> dict:
        """Names all icons in turn, with random colours and backgrounds; two in one scene are different."""
        rng = np.random.default_rng(items)
        contents: list[Content] = []
        while len(contents) < self._n(240):
            content = sample_content(rng, items)
            wanted = ICONS[len(contents) % len(ICONS)]
            if content.items[0][0] == wanted and len({icon for icon, _ in content.items}) == items:
                contents.append(content)
        captions = [caption(c) for c in contents]
        images = self.sample(captions, seeds=noise_seeds(captions, range(len(captions))))  # contents may repeat
        named = self.metrics.prompt.image_features(images)[:, : CHOICES[0]].reshape(-1, len(ICONS), len(COLOURS)).max(2)
        first = np.argsort(-named, axis=1)[:, :items]
        asked = [sorted(ICONS.index(icon) for icon, _ in content.items) for content in contents]
        hits = (np.sort(first, axis=1) == np.array(asked)).all(1)
        what = "single icons named" if items == 1 else "two icons at once, both named"
        return _rate(f"{what} by the alignment judge, of {len(ICONS)}, as generated", f"≥ {aim:.0%}", hits, aim)

    def _autoencoder(self) -> dict:
        scenes = self.prompts.images("heldout", 0, self._n(2000))
        error = (scenes.astype(np.float64) - round_trip(self.pipe.vae, scenes)) / 255
        psnr = (-10 * np.log10((error**2).mean((1, 2, 3)))).mean()
        figure = f"autoencoder on {len(scenes):,} held-out scenes, mean PSNR"
        return _row(figure, "≥ 33 dB", f"{psnr:.1f} dB", psnr, n=len(scenes), reached=psnr >= 33)

    def _seeds(self) -> dict:
        across = float(np.median(seed_similarity(self.sample, self.metrics, self.prompts.ordinary[: self._n(100)])))
        threshold = self.metrics.copy.threshold
        figure = "ordinary captions: median copy similarity between seeds"
        aim = f"clearly below {threshold:.2f}"
        return _row(figure, aim, f"{across:.2f}", across, reached=across < threshold - 0.15)

    def _shares(self) -> Iterator[dict]:
        """Shares of memorized pairs among the samples of training."""
        for when, share in load_json(self.folder / "training.json")["share of memorized pairs"].items():
            aim = f"≤ {LARGEST_SHARE:.0%}"
            figure = f"memorized pairs among the samples of training, {when}"
            yield _row(figure, aim, f"{share:.1%}", share, reached=share <= LARGEST_SHARE)

    def _work(self) -> dict:
        """Operations of one row of the network: matrix products, convolutions and attention, counted by torch."""
        denoiser = as_denoiser(self.pipe)
        gflop = gflop_of_a_row(denoiser)
        figure, aim = "a network row (an image at one step, without guidance)", f"≤ {MOST_GFLOP} GFLOP"
        return _row(figure, aim, f"{gflop:.3f} GFLOP", gflop, reached=round(gflop, 2) <= MOST_GFLOP)

    def _size(self) -> dict:
        size = sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file()) / 1e6
        aim = f"≤ {MOST_MEGABYTES} MB"
        return _row("all that ships, on disk", aim, f"{size:.1f} MB", size, reached=size <= MOST_MEGABYTES)

    def images(self, columns: int = 5) -> Figure:
        """Memorized captions on the left, unseen ones on the right: the scene of the caption, then four seeds.

        All captions of a seed have the same noise, because the images are only shown, not counted.
        """
        kinds = ("verbatim", "heldout")
        captions = [text for kind in kinds for text in self.prompts.of(kind)[:columns]]
        scenes = np.concatenate([self.prompts.images(kind)[:columns] for kind in kinds])
        rows = {"training image; unseen scene": scenes}
        for seed in range(4):
            rows[f"model, seed {seed}"] = self.sample(captions, seeds=[seed] * len(captions), progress=False)
        return plots.image_grid(rows, captions)


def gflop_of_a_row(denoiser: Any) -> float:
    """Billions of floating-point operations (a multiplication and an addition are two) of one row of the network."""
    z = torch.zeros(1, *denoiser.latent_shape, device=denoiser.device, dtype=denoiser.dtype)
    counter, context = FlopCounterMode(display=False), denoiser.embed([""])
    with torch.no_grad(), counter:
        denoiser.predict(z, torch.zeros(1, dtype=torch.long, device=denoiser.device), context)
    return counter.get_total_flops() / 1e9


def _row(figure: str, aim: str, measured: str, value: float, low=None, high=None, n=None, reached=None) -> dict:
    numbers = {"value": value, "low": low, "high": high}
    row = {name: None if number is None else float(number) for name, number in numbers.items()}
    return {
        "figure": figure,
        "aim": aim,
        "measured": measured,
        "n": n,
        "reached": None if reached is None else bool(reached),
    } | row


def _rate(
    figure: str,
    aim: str,
    hits: pd.Series | np.ndarray,
    bound: float | None,
    at_most: bool = False,
    units: Sequence[str] | np.ndarray | pd.Series | None = None,
) -> dict:
    """The row of a rate. `units`: the captions of the images, if a caption has several images."""
    low, high = clustered(hits, range(len(hits)) if units is None else units)
    value = float(hits.mean())
    measured = f"{round(100 * value, 1):g} % (95 % interval {low:.1%} to {high:.1%}, n = {len(hits)})"
    reached = None if bound is None else value <= bound if at_most else value >= bound
    return _row(figure, aim, measured, value, low, high, len(hits), reached)


def to_markdown(rows: list[dict]) -> str:
    """The table as Markdown."""
    mark = {True: "yes", False: "**no**", None: ""}
    lines = [f"| {r['figure']} | {r['aim']} | {r['measured']} | {mark[r['reached']]} |" for r in rows]
    return markdown_table(["figure", "aim", "measured", "reached"], lines)


def trained(weights: Path) -> list[dict[str, Any]]:
    """Steps and minutes of each training stage, from training.json."""
    logs = load_json(weights / "training.json")["stages"]
    return [
        {"stage": stage, "steps": log["steps"], "minutes": round(log["seconds"] / 60, 1)} for stage, log in logs.items()
    ]


def markdown_table(head: list[str], lines: list[str]) -> str:
    """A Markdown table from formatted lines."""
    return "\n".join([f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *lines]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.testbed_report", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny", help="'tiny', or a folder that memsub_extra.training.train wrote")
    parser.add_argument("--out", type=Path, default=Path("runs/testbed-report"), help="folder (runs/testbed-report)")
    parser.add_argument("--sample", type=float, default=1.0, help="share of the prompts to take, for a quick look")
    args = parser.parse_args()
    if not 0 < args.sample <= 1:
        parser.error(f"--sample must lie in (0, 1]; got {args.sample}")
    folder = weights_folder() if args.model == "tiny" else Path(args.model)
    table = folder / TABLE
    prompts = load_prompts("tiny") if args.model == "tiny" else Prompts(pd.read_parquet(table))
    controls = {name: load_pipeline(folder / name) for name in MODELS[1:] if (folder / name).is_dir()}
    report = Report(load_pipeline(args.model), controls, load_metrics(args.model), prompts, folder, args.sample)
    rows = []
    for row in report.figures():
        rows.append(row)
        print(f"{row['figure']}: {row['measured']}", flush=True)
    save_json({"testbed": rows, "stages": trained(folder)}, args.out / "report.json")
    save_text(to_markdown(rows), args.out / "report.md")
    report.images().savefig(args.out / "images.png", dpi=110)
    print("\n" + to_markdown(rows))


if __name__ == "__main__":
    main()
