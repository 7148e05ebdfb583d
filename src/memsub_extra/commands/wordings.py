"""`memsub evaluate --wordings`: does an edit also work for other wordings of the captions?

The list contains the wordings: in a column `rephrased`, or as prompts with the addresses of the images that they
replicate (`prompt` and `urls` of MemBench). The unit is the image: all wordings of one image are one observation.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from memsub.measure.metrics import Metrics
    from memsub_extra.run.model import Model

WORDINGS = "wordings.csv"


def check_wordings(args: argparse.Namespace) -> None:
    """Raises ValueError for a list without other wordings, or without training images that they may replicate."""
    from memsub.models import find_model
    from memsub.prompts import read_prompts
    from memsub_extra.prompt_lists.images import match_images
    from memsub_extra.prompt_lists.wordings import wordings_in

    rows = read_prompts(args.wordings)
    wordings_in(rows, args.wordings)
    if args.images:
        try:
            matched = match_images(rows, args.images, one_image_each=False)
        except ValueError as error:
            raise ValueError(f"--wordings {args.wordings}: {error}") from None
        if not matched.files:
            raise ValueError(f"--wordings {args.wordings}: {matched.tally.nothing_matched()}")
    elif not find_model(args.model).world:
        raise ValueError("--wordings needs --images: whether an image is replicated is judged by its training image.")


def save_by_wording(
    args: argparse.Namespace, models: Sequence[Model], store: Any, metrics: Metrics, world: Any
) -> list[str]:
    """Samples all wordings with every model, and saves replication by wording; returns it as lines."""
    from memsub.io.files import save_text
    from memsub.models import as_denoiser
    from memsub.prompts import read_prompts
    from memsub_extra.prompt_lists.images import match_images
    from memsub_extra.prompt_lists.wordings import by_wording, wordings_in

    from .evaluate import joined, of_world, read_with_notes, sampled

    rows = read_prompts(args.wordings)
    listed = wordings_in(rows, args.wordings)
    side = as_denoiser(models[0].pipe).image_shape[0]
    if world:
        references = dict(enumerate(of_world(world, rows["prompt"].tolist())))
    else:
        references = read_with_notes(match_images(rows, args.images, one_image_each=False), side)
    trained = [joined([references[row]] if row in references else [], side) for row in listed["row"]]
    captions = [rows["prompt"].tolist()[row] for row in listed["row"]]
    scored = {}
    for model in models:
        images = sampled(store, model, listed["prompt"].tolist(), args)
        scored[model.name] = _replicated(images, listed["prompt"].tolist(), captions, trained, metrics, world)
    table = by_wording(scored, listed)
    save_text(table.to_csv(index=False), args.out / WORDINGS)
    return report_lines(table, len(listed), sum(len(images) > 0 for images in trained))


def _replicated(
    images: np.ndarray,
    prompts: Sequence[str],
    captions: Sequence[str],
    trained: Sequence[np.ndarray],
    metrics: Metrics,
    world: Any,
) -> pd.DataFrame:
    """One row per image: prompt, and replicated: 1, 0, or NaN if the prompt has no training image.

    Args:
        images: the same number for each prompt, in the order of the prompts.
        captions: captions of the training images, as an exact test requires them.
    """
    import numpy as np
    import pandas as pd

    from memsub.measure.verdict import judge

    seeds, hits = len(images) // len(prompts), np.full(len(images), np.nan)
    decide = judge(world, metrics.copy)
    for i, of_image in enumerate(trained):
        if len(of_image):
            mine = slice(i * seeds, (i + 1) * seeds)
            hits[mine] = decide(images[mine], [captions[i]] * seeds, [of_image] * seeds)
    return pd.DataFrame({"prompt": np.repeat(list(prompts), seeds), "replicated": hits})


def report_lines(table: pd.DataFrame, wordings: int, known: int) -> list[str]:
    """The table of `by_wording` as lines.

    Args:
        wordings: prompts that were sampled; `known` of them have a training image.
    """
    if table.empty:
        return [f"none of the {wordings} wordings has a training image: none is judged."]
    width = max(map(len, table["wording"]))
    lines = [f"{'replicated (95 % interval)':{width}}  {'before':>26}  {'after':>26}  images  wordings"]
    for wording, of_models in table.groupby("wording", sort=False):
        rates = of_models.set_index("model")
        cells = [f"{100 * r.rate:.0f} % ({100 * r.low:.0f} to {100 * r.high:.0f} %)" for r in rates.itertuples()]
        counts = f"{rates['images'].iloc[0]:6}  {rates['wordings'].iloc[0]:8}"
        lines.append(f"{wording:{width}}  " + "  ".join(f"{cell:>26}" for cell in cells) + f"  {counts}")
    return [*lines, f"{known} of {wordings} wordings have a training image and are judged; an image is the unit."]
