"""How often intervals hold the truth, simulated: `python -m tools.coverage --out runs/coverage.json`.

    python -m tools.coverage --out runs/coverage.json       # two minutes of one core
    python -m tools.figures --coverage runs/coverage.json   # into docs/benchmarks.md

Outcomes follow a probit-normal model: an image replicates if h + c_i + e_ij > 0, with normal effects of caption i and
of its image j (each image has its own noise). Their variances are fitted to the shipped audits. Alignments are
resampled from the shipped ones. P-values of membership have a shape like the measured ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import beta, multivariate_normal, norm
from tqdm.auto import tqdm

from memsub.io.files import save_json
from memsub.measure.exact import LEVEL
from memsub.measure.intervals import interval
from memsub.measure.membership import MEMBERSHIP_ALTERNATIVES
from memsub_extra.notebooks.intervals import difference_interval, mean_interval, ratio_interval
from memsub_extra.unlearning import shipped
from memsub_extra.unlearning.pairs import FORGET_SET, UNSEEN

RUNS = 1000
"""Simulations per row: the standard error of the share of intervals that contain the truth is 0.7 points."""
IMAGES = 4
"""Images per caption."""
BETWEEN = (0.2, 0.8)
"""Variances are fitted to models with rates in this range; rates near 0 and 1 do not determine them."""
Interval = tuple[float, float]
Draw = Callable[[np.random.Generator], tuple[np.ndarray, ...]]
"""Draws a data set: one array (captions, images) for each model, of which there are one or two."""


# --- the model -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effects:
    """Parameters of the model of outcomes.

    Attributes:
        caption: share of the variance that is due to the caption; the rest is due to the image.
        captions_agree, images_agree: correlation between two models of the caption's effect, and of the image's effect.
    """

    caption: float
    captions_agree: float
    images_agree: float


def components(x: np.ndarray) -> tuple[float, float]:
    """Variance components of values (captions, images) by the analysis of variance: between captions, and within."""
    left = float(x.var(1, ddof=1).mean())
    return float(x.mean(1).var(ddof=1)) - left / x.shape[1], left


def latent(p: float, q: float, covariance: float) -> float:
    """Correlation of two standard normals that exceed thresholds at rates p and q, from the outcomes' covariance."""
    at = norm.ppf([p, q])

    def beyond(r: float) -> float:
        return float(multivariate_normal.cdf(at, cov=[[1, r], [r, 1]])) - p * q - covariance

    ends = beyond(-0.99), beyond(0.99)
    return -0.99 if ends[0] > 0 else 0.99 if ends[1] < 0 else float(brentq(beyond, -0.99, 0.99, xtol=1e-3))


def fitted(replication: pd.DataFrame) -> Effects:
    """Fits the effects by moments: means over the models with rates in `BETWEEN`, and over pairs of these models.

    Args:
        replication: the shipped table: columns model, pairs, target, seed, p.
    """
    table = replication[replication["pairs"] == FORGET_SET]
    table = table.assign(hit=(table["p"] <= LEVEL).astype(float))
    by_model = [part.pivot(index="target", columns="seed", values="hit") for _, part in table.groupby("model")]
    outcomes = [x for x in map(np.asarray, by_model) if BETWEEN[0] <= x.mean() <= BETWEEN[1]]
    caption = float(np.mean([latent(x.mean(), x.mean(), components(x)[0]) for x in outcomes]))
    captions, images = [], []
    for a, b in combinations(outcomes, 2):
        of_caption, of_image = (
            (plus - minus) / 4 for plus, minus in zip(components(a + b), components(a - b), strict=True)
        )
        captions.append(latent(a.mean(), b.mean(), of_caption))
        images.append(latent(a.mean(), b.mean(), of_caption + of_image))
    across, same = float(np.mean(captions)), float(np.mean(images))
    return Effects(caption, min(across / caption, 1.0), min((same - across) / (1 - caption), 1.0))


def outcomes(rates: tuple[float, ...], captions: int, images: int, effects: Effects) -> Draw:
    """Draws outcomes of one model for each rate; all models have the same captions and noises."""

    def correlated(rng: np.random.Generator, agree: float, *shape: int) -> np.ndarray:
        common = rng.standard_normal(shape)
        apart = rng.standard_normal((len(rates), *shape))
        return np.sqrt(agree) * common + np.sqrt(1 - agree) * apart

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        of_caption = correlated(rng, effects.captions_agree, captions, 1)
        of_image = correlated(rng, effects.images_agree, captions, images)
        latents = np.sqrt(effects.caption) * of_caption + np.sqrt(1 - effects.caption) * of_image
        return tuple(x + norm.ppf(rate) > 0 for x, rate in zip(latents, rates, strict=True))

    return draw


# --- what is compared ------------------------------------------------------------------------------------------------


def covered(
    draw: Draw, truth: float, intervals: dict[str, Callable[..., Interval]], runs: int, seed: int = 0
) -> dict[str, float]:
    """Share of intervals that contain the truth, for each kind, and the mean width of the first kind."""
    rng, held, width = np.random.default_rng(seed), dict.fromkeys(intervals, 0), 0.0
    for _ in range(runs):
        data = draw(rng)
        for place, (name, make) in enumerate(intervals.items()):
            low, high = make(*data)
            held[name] += low <= truth <= high
            width += 0.0 if place else high - low
    return {name: count / runs for name, count in held.items()} | {"width": width / runs}


def counted_images(*hits: np.ndarray) -> Interval:
    """Intervals that treat all images as independent, which an earlier version of this project used."""
    if len(hits) == 1:
        return interval(int(hits[0].sum()), hits[0].size)
    return difference_interval(hits[0].ravel(), hits[1].ravel(), paired=True)


def bootstrapped(*hits: np.ndarray) -> Interval:
    """Bootstrap intervals over captions, with outcomes treated as numbers."""
    if len(hits) == 1:
        return mean_interval(hits[0].astype(float))
    return difference_interval(hits[0].astype(float), hits[1].astype(float), paired=True)


def used(*hits: np.ndarray) -> Interval:
    """The intervals that this project uses."""
    return mean_interval(hits[0]) if len(hits) == 1 else difference_interval(*hits, paired=True)


def of_outcomes(effects: Effects, runs: int) -> Iterator[dict[str, Any]]:
    """Rows of rates and of paired differences of two rates, four images a caption."""
    settings: list[tuple[tuple[float, ...], int]] = [((rate,), 67) for rate in (0.002, 0.01, 0.1, 0.5, 0.9)]
    settings += [((rate,), 33) for rate in (0.1, 0.5)]
    settings += [((0.5, 0.5), 67), ((0.5, 0.4), 67), ((0.5, 0.4), 33), ((0.05, 0.01), 67)]
    kinds = {"used": used, "images": counted_images, "captions resampled": bootstrapped}
    for rates, captions in tqdm(settings, desc="outcomes"):
        truth = rates[0] - rates[1] if len(rates) == 2 else rates[0]
        shares = covered(outcomes(rates, captions, IMAGES, effects), truth, kinds, runs)
        yield {
            "of": "rate" if len(rates) == 1 else "difference of rates",
            "truth": " and ".join(f"{100 * rate:g} %" for rate in rates),
            "n": captions,
            "images each": IMAGES,
        } | shares


def of_numbers(runs: int) -> Iterator[dict[str, Any]]:
    """Rows of ratios of alignment and of paired differences of mean p, one value a caption."""
    quality = (shipped.audits()[name]["quality"] for name in ("pruning", "twin"))
    ours, theirs = (table.loc[table["pairs"] == UNSEEN, "alignment"].to_numpy() for table in quality)

    def alignments(n: int) -> Draw:
        def draw(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
            chosen = rng.integers(0, len(ours), n)
            return ours[chosen], theirs[chosen]

        return draw

    ratio: dict[str, Callable[..., Interval]] = {"used": lambda a, b: ratio_interval(a, b, paired=True)}
    about = {"images each": 1}
    for n in tqdm((28, 100), desc="alignment"):
        truth = float(ours.mean() / theirs.mean())
        row = {"of": "ratio of alignments", "truth": f"{100 * truth:.0f} %", "n": n} | about
        yield row | covered(alignments(n), truth, ratio, runs)
    difference: dict[str, Callable[..., Interval]] = {"used": lambda a, b: difference_interval(a, b, paired=True)}
    for low, n in tqdm([(0.36, 100), (0.06, 100), (0.36, 50)], desc="membership"):
        row = {"of": "difference of mean p", "truth": f"{low:g} and 0.48", "n": n} | about
        draw = p_values((low, 0.48), n)
        yield row | covered(draw, low - 0.48, difference, runs)


def p_values(means: tuple[float, float], pairs: int, agree: float = 0.5) -> Draw:
    """Draws p-values of membership. Each is a binomial rank, whose chance has a beta distribution over the pairs.

    The mean of the chance gives the wanted mean p. The second parameter of the beta distribution is 1. At a mean chance
    of one half the distribution is uniform, as for exact tests on unseen pairs.
    """
    alternatives = MEMBERSHIP_ALTERNATIVES

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        common, samples = rng.standard_normal(pairs), []
        for mean in means:
            chance = (mean * (alternatives + 1) - 1) / alternatives
            ranks = norm.cdf(np.sqrt(agree) * common + np.sqrt(1 - agree) * rng.standard_normal(pairs))
            shape = chance / (1 - chance)
            samples.append((1 + rng.binomial(alternatives, beta.ppf(ranks, shape, 1))) / (alternatives + 1))
        return tuple(samples)

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/coverage.json"), help="file (runs/coverage.json)")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"simulations a row ({RUNS})")
    args = parser.parse_args()
    replication = pd.concat(tables["replication"] for tables in shipped.audits().values())
    effects = fitted(replication)
    print(effects)
    rows = [*of_outcomes(effects, args.runs), *of_numbers(args.runs)]
    print(pd.DataFrame(rows).to_string())
    save_json(
        {"effects": {name: float(value) for name, value in effects.__dict__.items()}, "rows": rows, "runs": args.runs},
        args.out,
    )


if __name__ == "__main__":
    main()
