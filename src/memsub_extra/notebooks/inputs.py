"""Checks the files that a run's parameters name, before anything is loaded.

    data = data_of(parameters, Path("notebooks"))
    if not to_fetch(data):
        for sentence in problems(data, notebooks): print(sentence)

`memsub run` stops with the first problem; `memsub check` lists all. Otherwise notebooks would fail after hours: for
missing captions at their first use, for training images in notebook 04, for real images at the end of 05.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from memsub.io.downloads import SOURCES, cache
from memsub.io.images import image_files
from memsub_extra.prompt_lists.kinds import TYPES
from memsub_extra.run.data import Data, images_folder, matched_images
from memsub_extra.run.parameters import Parameters

CAPTURES = ("01_activation_capture", "02_memorized_neurons", "03_subspace_overlap")
"""Notebooks that sample nothing: they need neither unseen captions nor training images."""
ATTACKS, REMOVALS = "05_attack_evaluation", "06_deletion"
KINDS = ("memorized", "ordinary", "heldout")


def data_of(p: Parameters, folder: Path) -> Data:
    """The data of a run; relative paths in its parameters start at `folder`, the folder of the notebooks."""
    given, lists = p.data.model_dump(), p.data.prompts
    found: dict[str, Any] = {key: str(folder / given[key]) for key in ("types", "images", "real") if given[key]}
    if isinstance(lists, dict):
        found["prompts"] = {kind: str(folder / file) for kind, file in lists.items()}
    elif lists and (Path(lists).suffix or (folder / lists).exists()):  # else it is a list's name
        found["prompts"] = str(folder / lists)
    changed = {"data": p.data.model_copy(update=found), "folder": str(folder / p.folder)}
    return Data(p.model_copy(update=changed), image_side=_side)


def _side() -> int:
    raise AssertionError("images are counted, not read")


def is_world(data: Data) -> bool:
    """Whether prompts and images come from a world, and not from files."""
    return bool(data.world and not data.parameters.data.prompts)


def to_fetch(data: Data) -> bool:
    """Whether the run's prompts are published lists that are not on this machine yet."""
    given = data.parameters.data
    name = given.prompts or data.info.prompts
    if not isinstance(name, str) or name not in SOURCES:
        return False
    kinds = [*SOURCES[name], *(["types"] if name in TYPES and not (given.prompts or given.types) else [])]
    return not all(any(cache().glob(f"{name}-{kind}-*")) for kind in kinds)


def problems(data: Data, notebooks: Collection[str]) -> Iterator[str]:
    """Sentences on missing inputs of these notebooks; each says what was expected and what to do.

    Published lists that are missing are fetched. A world's own prompts and images are not checked.
    """
    p = data.parameters
    yield from _real(p, notebooks)
    if is_world(data):
        return
    try:
        prompts, _ = data.prompts, data.memorized.wordings  # notebook 06 would stop at unreadable wordings
    except (ValueError, OSError) as error:
        yield str(error)
        return
    have = prompts.table["kind"].value_counts().to_dict() | {"memorized": len(prompts.memorized)}
    lacking = [sentence for kind in KINDS if (sentence := _lacking(p, notebooks, kind, have.get(kind, 0)))]
    yield from lacking
    if not lacking and set(notebooks) - {*CAPTURES} and "image" not in prompts.table:
        yield from _training_images(data)


def _wanted(p: Parameters, notebooks: Collection[str]) -> Iterator[tuple[str, int, str]]:
    """Kind of captions, the number that a run takes, and the reason."""
    grid = f"grid.memorized is {p.grid.memorized}"
    yield "memorized", p.grid.memorized, grid
    yield "ordinary", p.grid.memorized, f"as many as memorized ones: {grid}"
    if ATTACKS in notebooks:
        yield "ordinary", p.extraction.captions, f"extraction.captions is {p.extraction.captions}"
    for name, n in _controls(p, notebooks).items():
        yield "heldout", n, f"{name} is {n}"
    if set(notebooks) - {*CAPTURES}:
        most = {"evaluation.captions": p.evaluation.captions, "baselines.never_seen": p.baselines.never_seen}
        name = max(most, key=lambda key: most[key])
        yield "heldout", 2 * most[name], f"{name} is {most[name]}: so many choose a setting, as many others report it"


def _controls(p: Parameters, notebooks: Collection[str]) -> dict[str, int]:
    """Parameter to the number of unseen captions, and of real images if given, that an experiment takes."""
    wanted = {"evaluation.real_images or fid_images": p.distance_images} if ATTACKS in notebooks else {}
    wanted |= {"embedding_attack.images": p.embedding_attack.images} if ATTACKS in notebooks else {}
    return wanted | ({"deletion.targets": p.deletion.targets} if REMOVALS in notebooks else {})


def _lacking(p: Parameters, notebooks: Collection[str], kind: str, have: int) -> str:
    """A sentence on missing captions of a kind; "" if there are enough."""
    wanted = [(n, why) for of, n, why in _wanted(p, notebooks) if of == kind]
    n, why = max(wanted, default=(0, ""))
    if have >= n:
        return ""
    what = "unseen captions (heldout)" if kind == "heldout" else f"{kind} captions"
    if not have:
        files = "{memorized: FILE, ordinary: FILE, heldout: FILE}"
        remedy = f"name a file of them by data.prompts, which takes one a kind: {files}"
    else:
        remedy = "give more of them by data.prompts, or lower that parameter"
    return f"data.prompts: the run takes {n:,} {what} ({why}), and its list has {have or 'none'}: {remedy}."


def _training_images(data: Data) -> Iterator[str]:
    p, rows = data.parameters, data.memorized.rows
    folder = images_folder(p)
    addresses = {"url", "index"} <= set(rows)
    if not folder.is_dir():
        if p.data.images:
            fetched = ", or leave data.images out: the run then fetches what can be found into its own" * addresses
            yield (
                f"data.images names {folder}, where no folder is: name the folder of training images (layouts: "
                f"docs/images.md){fetched}."
            )
        elif not addresses:
            yield (
                f"no training images: the list has no addresses to fetch them from (columns url and index), and there "
                f"is no {folder}: name a folder of them by data.images (layouts: docs/images.md)."
            )
        return
    try:
        files = matched_images(data).files
    except ValueError as error:
        yield f"data.images: {error}"
        return
    for part in ("choose", "report"):
        places = data.split[part]
        if (known := sum(place in files for place in places)) < 2:
            yield (
                f"data.images: {folder} has training images of {known} of the {len(places)} memorized captions that "
                f"{part}, and at least two are needed; of all {len(rows)} it has those of {len(files)}. Name a folder "
                "with more of them (docs/images.md says how they are matched), or take more captions (grid.memorized)."
            )


def _real(p: Parameters, notebooks: Collection[str]) -> Iterator[str]:
    if not p.data.real:
        return  # `Parameters.missing_images` says where they are needed
    folder = Path(p.data.real)
    if not folder.is_dir():
        yield (
            f"data.real names {folder}, where no folder is: name a folder of images that the model was not trained on, "
            "such as COCO's, or leave it out (then evaluation.real_images and evaluation.fid_images have to be 0)."
        )
        return
    wanted = _controls(p, notebooks)
    name = max(wanted, key=lambda key: wanted[key], default="")
    if name and (have := len(image_files(folder))) < wanted[name]:
        yield (
            f"data.real: {folder} has {have:,} images, and {name} asks for {wanted[name]:,}: add images, or lower that "
            "parameter."
        )
