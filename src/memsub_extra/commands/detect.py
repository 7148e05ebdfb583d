"""The command `memsub detect`: which captions of a list look memorized, without their training images.

The scores are those of `mitigations.detection` at the first network calls, averaged over several noises. A score means
nothing by itself: it is compared with the scores of ordinary captions in the same model. With m ordinary captions, the
p-value of a caption is (1 + number of ordinary captions that score at least as high) / (m + 1). If the caption was
drawn like the ordinary ones, P(p <= a) <= a for any score: of n such captions, at most n a are expected to have p <= a.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from .arguments import add_model, add_sampling, captions_of, check_model, check_output, file, load, number, without

SHOWN = 20
"""Number of rows in the terminal; the file has all rows."""
LISTED = 500
"""Largest number of ordinary captions from a model's own list."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the others."""
    find = commands.add_parser("detect", help="score captions: which of them look memorized?")
    add_model(find)
    find.add_argument("--prompts", type=file, required=True, help="a list: .txt, .jsonl, .csv or .parquet")
    ordinary = "a list of captions that are not memorized, of the same kind (default: the model's, if it has one)"
    find.add_argument("--ordinary", "--contrast", type=file, help=ordinary)
    find.add_argument("--score", default="text magnitude", help="the one that decides (text magnitude)")
    shares = number(float, 0, 1, above=True)
    cut = "share of ordinary captions that may be suspected (0.01)"
    find.add_argument("--false-positives", type=shares, default=0.01, metavar="SHARE", help=cut)
    find.add_argument("--seeds", type=number(int, 1, 1000), default=4, help="noises a caption (4)")
    find.add_argument("--calls", type=number(int, 1, 1000), default=1, help="the first CALLS network calls (1)")
    add_sampling(find, batch_size=64)
    find.add_argument("--out", type=file, help="a .csv file of all scores")
    find.set_defaults(function=_detect)


def _detect(args: argparse.Namespace) -> None:
    if args.calls > args.steps:
        raise ValueError(f"--calls {args.calls} are more than the network calls of --steps {args.steps}.")
    if args.out:
        check_output(args.out, args.prompts, args.ordinary)
    captions = captions_of(args.prompts, "any")
    ordinary = captions_of(args.ordinary, "ordinary") if args.ordinary else []
    if not ordinary and ("/" in args.model or Path(args.model).exists()):
        raise ValueError(_NO_LIST.format(model=args.model))
    check_model(args)
    from memsub.io.files import printable, save_text
    from memsub_extra.mitigations.detection import SCORES, first_step_scores

    SCORES.find(args.score)
    if args.ordinary:
        ordinary = without(ordinary, captions, f"--ordinary {args.ordinary}")
    else:
        ordinary = [caption for caption in _listed(args.model) if caption not in set(captions)]
    least = math.ceil(1 / args.false_positives - 1e-9) - 1
    if len(ordinary) < least:
        raise ValueError(
            f"{len(ordinary)} ordinary captions that are not in --prompts cannot tell a share of "
            f"{args.false_positives:g}: give {least} or more by --ordinary, or a larger --false-positives."
        )
    distinct = list(dict.fromkeys([*captions, *ordinary]))
    options = {name: getattr(args, name) for name in ("seeds", "steps", "calls", "guidance_scale", "batch_size")}
    pipe = load(args)
    scores = first_step_scores(pipe, distinct, scores=_defined(pipe, args.score), **options)
    table = compared(
        {name: dict(zip(distinct, each, strict=True)) for name, each in scores.items()}, captions, ordinary
    )
    table["suspected"] = table[f"{args.score}: p"] <= args.false_positives
    if args.out:  # first, because the reader of the terminal's output may stop early
        save_text(table.to_csv(index=False), args.out)
    lines = report_lines(table, args.score, args.false_positives, len(ordinary))
    print("\n".join(map(printable, lines)))
    if args.out:
        print(f"{printable(args.out)}: the scores of all {len(table)} captions")


_NO_LIST = (
    "no ordinary captions are known of {model}, with whose scores others are compared: give a list of captions of the "
    "kind that it was trained on and did not memorize, by --ordinary FILE."
)


def _listed(model: str) -> list[str]:
    """The ordinary captions that belong to a model."""
    from memsub.models import find_model
    from memsub.prompts import load_prompts

    try:
        return load_prompts(find_model(model).prompts).ordinary[:LISTED]
    except ValueError:
        raise ValueError(_NO_LIST.format(model=model)) from None


def _defined(pipe: Any, wanted: str) -> list[str]:
    """The scores that are defined for the network's prediction type, and the wanted one, which may raise an error."""
    from memsub.models import noise_schedule
    from memsub_extra.mitigations.detection import SCORES

    kind = noise_schedule(pipe).kind
    return [name for name in SCORES if name == wanted or kind in getattr(SCORES[name], "kinds", (kind,))]


def compared(scores: dict[str, dict[str, float]], captions: list[str], ordinary: list[str]) -> Any:
    """A data frame with a row for each caption, in order: prompt, and for each score its value, its percentile among
    ordinary captions (percent that score lower) and its p-value.

    Args:
        scores: name of a score to its value for each caption, including ordinary ones.
    """
    import numpy as np
    import pandas as pd

    columns: dict[str, Any] = {"prompt": captions}
    for name, of_caption in scores.items():
        here = np.array([of_caption[caption] for caption in captions])
        others = np.sort([of_caption[caption] for caption in ordinary])
        lower = np.searchsorted(others, here, side="left")
        columns |= {
            name: here,
            f"{name}: percentile": 100 * lower / len(others),
            f"{name}: p": (1 + len(others) - lower) / (len(others) + 1),
        }
    return pd.DataFrame(columns)


def report_lines(table: Any, score: str, share: float, ordinary: int) -> list[str]:
    """Lines of text: the highest scores, the number of suspected captions, and the number expected by chance."""
    from memsub.measure.intervals import interval

    n, suspected = len(table), int(table["suspected"].sum())
    first = table.sort_values(score, ascending=False, kind="stable").head(SHOWN)
    lines = [f"{score:>16}  percentile  suspected  caption"]
    for value, percentile, hit, caption in first[[score, f"{score}: percentile", "suspected", "prompt"]].to_numpy():
        lines.append(f"{value:16.4g}  {percentile:10.1f}  {'yes' if hit else '':9}  {caption}")
    if n > SHOWN:
        lines.append(f"... and {n - SHOWN} that score lower")
    reached = math.floor(share * (ordinary + 1) + 1e-9) / (ordinary + 1)  # p-values are multiples of 1 / (m + 1)
    low, high = interval(suspected, n)
    return [
        *lines,
        f"{suspected} of {n} captions are suspected ({suspected / n:.0%}, 95 % interval {low:.0%} to {high:.0%}): "
        f"their {score} is among the highest {reached:.2%} of {ordinary} ordinary captions.",
        f"If none of the {n} were memorized, {reached * n:.2g} would be expected to be suspected.",
    ]
