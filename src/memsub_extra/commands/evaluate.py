"""The command `memsub evaluate`: a model before and after an edit, with intervals and a page of images.

Both models sample each caption with the same seeds. The unit of every interval is the caption with all its images: the
images of one caption are not independent. A killed evaluation resumes: its images are stored in the folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import (
    MOST_SEED,
    add_model,
    add_sampling,
    captions_of,
    check_model,
    file,
    folder,
    load,
    loaded,
    number,
    without,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from memsub.measure.metrics import Metrics
    from memsub_extra.prompt_lists.images import Matched
    from memsub_extra.run.model import Model

RECORD, SAMPLES = "evaluation.json", "samples"
CHUNK = 16
"""Number of captions whose images are written to disk together."""
UNSEEN = 50
"""Number of held-out captions that are taken from a world."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the others."""
    judge = commands.add_parser("evaluate", help="what an edit does: before and after, and a page of images")
    add_model(judge)
    judge.add_argument("--edit", type=file, required=True, help="what `locate` wrote")
    judge.add_argument("--prompts", type=file, required=True, help="memorized captions, a list as for `locate`")
    layout = "training images: FOLDER/INDEX/*.png, INDEX being the list's, or 1 for the first caption, 2 for the next;"
    judge.add_argument("--images", type=folder, metavar="FOLDER", help=f"{layout} other layouts: docs/images.md")
    judge.add_argument("--types", type=file, help="types of the captions (verbatim, template), if the list has none")
    others = "a list with other wordings (column rephrased) or of wordings (MemBench's): does the edit hold for them?"
    judge.add_argument("--wordings", type=file, help=others)
    unseen = "captions that are not memorized: can the model still follow them?"
    judge.add_argument("--unseen", type=file, help=unseen)
    judge.add_argument("--seeds", type=number(int, 1, 1000), default=4, help="images a caption (4)")
    judge.add_argument("--seed", type=number(int, 0, MOST_SEED - 1000), default=0, help="the first of them (0)")
    judge.add_argument("--copy", help="copy descriptor: an SSCD by name, or its file (default: that of the model)")
    judge.add_argument("--clip", help="image-text model: a CLIP by name, hub id or folder (default: that of the model)")
    add_sampling(judge)
    page = "folder of the page, index.html, and of images.csv, summary.csv and evaluation.json (evaluation)"
    judge.add_argument("--out", type=folder, default=Path("evaluation"), help=page)
    judge.set_defaults(function=_evaluate)


@dataclass
class Listed:
    """The distinct captions of a list.

    Attributes:
        captions: the captions in the order of sampling.
        kinds: the kind of each caption.
        places: for each caption, the rows of the list that contain it.
        matched: files of training images by row of the list.
        notes: sentences on the kinds of the list.
    """

    captions: list[str]
    kinds: list[str]
    places: list[list[int]]
    matched: Matched
    notes: list[str]


def _evaluate(args: argparse.Namespace) -> None:
    listed = _checked(args)
    unseen = _unseen(args, listed.captions) if args.unseen else []
    check_model(args)
    import pandas as pd

    from memsub.io.files import printable, save_json, save_text
    from memsub.measure.metrics import load_metrics
    from memsub.measure.verdict import judges_single_images
    from memsub.models import as_denoiser, find_model, world_of
    from memsub.pruning import Edit, pruned
    from memsub_extra.files import check_writable
    from memsub_extra.run.model import Model
    from memsub_extra.store import Store

    from .page import page
    from .wordings import save_by_wording

    edit = Edit.load(args.edit)
    metrics = loaded("the metrics", partial(load_metrics, args.model, args.device, args.copy, args.clip))
    info = find_model(args.model)
    world = None if args.images else world_of(info)
    pipe = load(args)
    with pruned(pipe, edit):
        pass  # an edit of another model raises an error before sampling
    side = as_denoiser(pipe).image_shape[0]
    references = of_world(world, listed.captions) if world else _read(listed, side)
    unseen = unseen or (world.prompts().of("heldout")[:UNSEEN] if world else [])
    count = 2 * (len(listed.captions) + len(unseen)) * args.seeds
    check_writable(args.out / SAMPLES / "x", count * side * side * 3)

    metrics.prompt.text_features([*listed.captions, *unseen])  # a world's metric raises an error for foreign captions

    store, models = Store(args.out / SAMPLES), (Model("before", pipe), Model("after", pipe, edit))
    images = {model.name: sampled(store, model, listed.captions, args) for model in models}
    others = {model.name: sampled(store, model, unseen, args) for model in models} if unseen else {}
    scored = {name: _scored(images[name], listed.captions, metrics, args, references, world) for name in images}
    rows = measures(scored["before"], scored["after"])
    rows += measures_by_kind(scored["before"], scored["after"], dict(zip(listed.captions, listed.kinds, strict=True)))
    if others:
        before, after = (_scored(others[name], unseen, metrics, args) for name in others)
        rows += [row | {"measure": f"{row['measure']}, unseen captions"} for row in measures(before, after)]
    exactly = world and judges_single_images(world)
    judged = "the exact test" if exactly else f"a copy similarity above {metrics.copy.threshold:g}"
    lines = (
        report_lines(pd.DataFrame(rows), [len(trained) for trained in references], judged, bool(others)) + listed.notes
    )
    lines += save_by_wording(args, models, store, metrics, world) if args.wordings else []
    about = {"model": args.model, "edit": str(args.edit), "density": edit.density, "prompts": str(args.prompts)}
    about |= {name: getattr(args, name) for name in ("seed", "seeds", "steps", "guidance_scale")}
    each = pd.concat([table.assign(model=name) for name, table in scored.items()])
    save_text(pd.DataFrame(rows).to_csv(index=False), args.out / "summary.csv")
    save_text(each.to_csv(index=False), args.out / "images.csv")
    save_text(page(about, lines, listed.captions, references, images, scored), args.out / "index.html")
    save_json(about | {"measures": rows}, args.out / RECORD)
    print("\n".join(map(printable, [*lines, f"{args.out / 'index.html'}: the images"])))


# --- what is given ----------------------------------------------------------------------------------------------------


def _checked(args: argparse.Namespace) -> Listed:
    """The list, after all checks that require no model; raises ValueError or OSError."""
    from memsub.io.files import check_artifact
    from memsub.prompts import read_prompts
    from memsub_extra.files import check_writable
    from memsub_extra.prompt_lists.images import Matched, match_images
    from memsub_extra.prompt_lists.kinds import kinds_in, notes, read_types, with_types

    from .wordings import check_wordings

    check_artifact(args.edit, "Edit")
    if args.out.is_dir() and any(args.out.iterdir()) and not {RECORD, SAMPLES} & {p.name for p in args.out.iterdir()}:
        raise ValueError(f"--out {args.out} holds other files: name a new folder, or that of an earlier evaluation.")
    check_writable(args.out / RECORD)
    table = read_prompts(args.prompts)
    if args.types:
        table = with_types(table, read_types(args.types), str(args.types))
    matched = match_images(table, args.images, one_image_each=False) if args.images else Matched(Path())
    if args.images and not matched.files:
        raise ValueError(matched.tally.nothing_matched())
    places: dict[str, list[int]] = {}
    for place, caption in enumerate(table["prompt"]):
        places.setdefault(caption, []).append(place)
    if len(places) < 2:
        raise ValueError(
            f"{args.prompts} holds one caption: alignment is measured against the caption of another. Add a second one."
        )
    if args.wordings:
        check_wordings(args)
    kinds = [table["kind"].tolist()[of_caption[0]] for of_caption in places.values()]
    said = notes(table, "replication") if args.images and kinds_in(kinds) else []
    return Listed(list(places), kinds, list(places.values()), matched, said)


def _unseen(args: argparse.Namespace, captions: Sequence[str]) -> list[str]:
    """The distinct captions of --unseen without those of --prompts; raises ValueError for fewer than two."""
    unseen = list(dict.fromkeys(captions_of(args.unseen, "ordinary")))
    if len(unseen) == 1:
        raise ValueError(f"{args.unseen} holds one caption: alignment needs two or more.")
    unseen = without(unseen, captions, f"--unseen {args.unseen}")
    if len(unseen) < 2:
        raise ValueError(
            f"{args.unseen} holds {len(unseen)} captions that are not in --prompts: alignment needs two or more."
        )
    return unseen


def _read(listed: Listed, side: int) -> list[np.ndarray]:
    """Training images of each caption, uint8 (k, side, side, 3); unreadable files and placeholders are noted."""
    images = read_with_notes(listed.matched, side)
    return [joined([images[place] for place in places if place in images], side) for places in listed.places]


def of_world(world: Any, captions: Sequence[str]) -> list[np.ndarray]:
    """Training images of each caption from the list of a world; none for captions that are not in it."""
    import numpy as np

    from memsub.io.images import decode_png

    rows = world.prompts().memorized_rows
    png = dict(zip(rows["prompt"], rows["image"], strict=True))
    none = np.empty((0, *decode_png(rows["image"][0]).shape), np.uint8)
    return [decode_png(png[caption])[None].copy() if caption in png else none for caption in captions]


# --- what is measured -------------------------------------------------------------------------------------------------


def sampled(store: Any, model: Model, captions: list[str], args: argparse.Namespace) -> np.ndarray:
    """Images of captions with every seed, each from its own noise: uint8 (captions * seeds, height, width, 3)."""
    import numpy as np
    from tqdm.auto import tqdm

    from memsub.measure.noise import noise_seeds
    from memsub.models import generate
    from memsub_extra.store import Kind

    how = {"steps": args.steps, "guidance_scale": args.guidance_scale}
    seeds, parts = range(args.seed, args.seed + args.seeds), []
    for start in tqdm(range(0, len(captions), CHUNK), desc=model.name, unit=f"{CHUNK} captions"):
        part = captions[start : start + CHUNK]
        prompts = np.repeat(part, args.seeds).tolist()
        each = noise_seeds(prompts, list(seeds) * len(part))

        def make(prompts: list[str] = prompts, each: list[int] = each) -> dict[str, np.ndarray]:
            with model.applied() as pipe:
                options = how | {"batch_size": args.batch_size, "progress": False}
                return {"images": generate(pipe, prompts, seeds=each, **options)}

        parts.append(store.arrays(Kind("images"), make, model=model, prompts=prompts, seeds=each, **how)["images"])
    return np.concatenate(parts)


def read_with_notes(matched: Matched, side: int) -> dict[int, np.ndarray]:
    """Training images by row of a list, uint8 (k, side, side, 3); unreadable files and placeholders are noted."""
    import warnings

    from memsub_extra.prompt_lists.images import read_matched

    read = read_matched(matched, side)
    for sentence in (*(f"{broken} It is passed over." for broken in read.broken.values()), *read.notes):
        warnings.warn(sentence, stacklevel=3)
    return read.images


def joined(images: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Concatenates stacks of images to uint8 (k, side, side, 3); no stacks give k = 0."""
    import numpy as np

    return np.concatenate([np.empty((0, side, side, 3), np.uint8), *images])


def _scored(
    images: np.ndarray,
    captions: list[str],
    metrics: Metrics,
    args: argparse.Namespace,
    references: Sequence[np.ndarray] | None = None,
    world: Any = None,
) -> pd.DataFrame:
    """One row per image: prompt, seed, prompt_similarity, chance, sharpness, likeness (mean cosine with the caption's
    images of other seeds); with a training image also copy_similarity (of the most similar one) and replicated."""
    import numpy as np

    from memsub.measure.evaluation import score
    from memsub.measure.verdict import judge
    from memsub_extra.mitigations.sharpness import sharpness

    seeds = list(range(args.seed, args.seed + args.seeds))
    rows = score(lambda prompts, seeds: images, metrics, captions, seeds=seeds).drop(columns="image_features")
    descriptors = metrics.copy.features(images)
    of_caption = descriptors.reshape(len(captions), args.seeds, -1)
    others = np.einsum("csd,ctd->cs", of_caption, of_caption) - 1  # without itself
    rows["sharpness"] = sharpness(images)
    rows["likeness"] = others.reshape(-1) / (args.seeds - 1) if args.seeds > 1 else np.nan
    rows["copy_similarity"] = np.nan
    rows["replicated"] = np.nan
    for i, trained in enumerate(references or ()):
        if len(trained):
            mine = slice(i * args.seeds, (i + 1) * args.seeds)
            best = (descriptors[mine] @ metrics.copy.features(trained).T).max(1)
            hits = best > metrics.copy.threshold
            if world:
                again = np.repeat(trained[:1], args.seeds, 0)
                hits = judge(world, metrics.copy)(images[mine], [captions[i]] * args.seeds, again)
            rows.loc[rows.index[mine], "copy_similarity"] = best
            rows.loc[rows.index[mine], "replicated"] = hits.astype(float)
    return rows


def measures(before: pd.DataFrame, after: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each measure: means before and after, their difference, all with 95 % bounds, number of captions."""
    from memsub.measure.evaluation import alignment_each

    pair = [table.assign(alignment=alignment_each(table)) for table in (before, after)]
    by_caption = {
        name: [table.groupby("prompt", sort=False)[name].mean().dropna().to_numpy() for table in pair]
        for name in ("copy_similarity", "alignment", "sharpness", "likeness")
    }
    judged = [table.dropna(subset=["replicated"]).groupby(["prompt", "seed"])["replicated"] for table in pair]
    hits = [of_image.first().unstack().to_numpy(bool) for of_image in judged]  # (captions, seeds)
    rows = {"captions with a replicated image": [each.any(1) for each in hits], "replicated images": hits}
    rows |= {"copy similarity": by_caption["copy_similarity"], "alignment": by_caption["alignment"]}
    rows |= {"sharpness": by_caption["sharpness"], "likeness of a caption's images": by_caption["likeness"]}
    return [_row(name, *values) for name, values in rows.items() if len(values[0])]


def measures_by_kind(before: pd.DataFrame, after: pd.DataFrame, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of `measures` on replication for the captions of each kind, if there are several kinds."""
    from memsub_extra.prompt_lists.kinds import kinds_in

    rows = []
    for kind in kinds_in(kinds.values())[:-1]:
        pair = [table[table["prompt"].map(kinds) == kind] for table in (before, after)]
        wanted = ("captions with a replicated image", "replicated images", "copy similarity")
        rows += [row | {"measure": f"{row['measure']}, {kind}"} for row in measures(*pair) if row["measure"] in wanted]
    return rows


def _row(name: str, a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    from memsub_extra.notebooks.intervals import Span, difference_interval, mean_interval

    before, after = (Span(values.mean(), *mean_interval(values)) for values in (a, b))
    change = Span(b.mean() - a.mean(), *difference_interval(b, a, paired=True))
    spans = before.columns("before") | after.columns("after") | change.columns("change")
    return {"measure": name} | spans | {"captions": len(a)}


def report_lines(table: pd.DataFrame, trained: Sequence[int], judged: str, with_unseen: bool) -> list[str]:
    """Lines of text: the table of measures, and its limitations.

    Args:
        trained: number of training images of each caption.
        judged: description of the verdict on replication.
    """
    width = max(map(len, table["measure"]))
    lines = [f"{'mean over captions (95 % interval)':{width}}  {'before':>22}  {'after':>22}  {'change':>22}  captions"]
    for row in table.to_dict("records"):
        cells = [
            f"{row[c]:.3g} ({row[c + '_low']:.3g} to {row[c + '_high']:.3g})" for c in ("before", "after", "change")
        ]
        lines.append(f"{row['measure']:{width}}  " + "  ".join(f"{c:>22}" for c in cells) + f"  {row['captions']:8}")
    without = sum(not count for count in trained)
    if without == len(trained):
        lines.append(
            "Without training images (--images) replication cannot be judged. That all images of a caption are alike "
            "is a sign of it and no proof, and says nothing of what an edit removed."
        )
    else:
        lines.append(f"An image replicates a training image by {judged}.")
        if without:
            lines.append(f"{without} of {len(trained)} captions have no training image and are not judged.")
    if not with_unseen:
        lines.append("What the edit costs other captions was not measured: give some of them by --unseen.")
    lines.append(
        "If these captions located the edit, others may still leak. Who has the weights may get images back by attacks "
        "that these numbers do not see."
    )
    return lines
