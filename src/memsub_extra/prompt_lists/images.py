"""Training images in folders as people unpack them, matched with the captions of a list.

    matched = match_images(rows, "gt_images")   # place of a caption to its files; nothing is decoded
    read = read_matched(matched, side=512)     # ... to its images, uint8 (k, 512, 512, 3); placeholders are left out
    for sentence in read.notes: print(sentence)

Layouts, which may be mixed:

    3/0.png, 3/1.jpg                            a folder for each index of the list (or number from 1, if it has none)
    3.png                                       flat, by index
    metadata.jsonl, a.png                       flat, with a table: columns caption and file (or file_name, index)
    list.jsonl, gt_images/3/0.png               a pack with its own list (Wen et al.), whose indices may be of another
    prompt_to_ref.csv, 00003.jpg                prompt_idx, the row of the list from 0, and ref_file

A caption decides, where the folder says captions. What a table of the folder gives to another caption is not used.
Two answers that do not look alike, images that are none, files that a table names and that are not there, and images
that belong to no caption are noted. A list without indices is numbered from 1: a folder 0 beside it is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from memsub.io.images import FORMATS, read_images, rgb
from memsub.io.lists import plain_name

from .joining import ByCaption, folded, spaced
from .packs import PACK, Pack, numbered
from .tally import Tally, shortened

MIN_SIDE = 8
"""Pixels: what is smaller is no image of anything."""
PLAIN = 2.0
"""Standard deviation of the values of every channel, below which an image is of one colour."""
NEARLY_PLAIN = 0.97
"""Share of the pixels that have one colour, from which on an image is noted: it may say "image unavailable"."""
SAME = 3
"""So many captions of different images do not have one file: it is what a host shows instead of an image."""


@dataclass
class Matched:
    """Files of captions.

    Attributes:
        folder: where they lie.
        files: place of a caption in the list to its files, of those alone that have some.
        notes: sentences on what does not fit together.
        tally: what the folder holds and its tables name, and what of it belongs to a caption.
    """

    folder: Path
    files: dict[int, list[Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


@dataclass
class TrainingImages:
    """Images of captions: place of a caption in the list to uint8 (k, side, side, 3); and sentences on what was left
    out or looks strange. `broken` has the files that cannot be read, each with a sentence."""

    images: dict[int, np.ndarray]
    notes: list[str]
    broken: dict[Path, str]


def match_images(rows: pd.DataFrame, folder: str | Path, *, one_image_each: bool = True) -> Matched:
    """The image files of each caption.

    Args:
        rows: the whole list in its order; columns prompt, and index and url where it has them. (`row` instead of the
            order, where some rows were left out.)
        one_image_each: an index that two captions have needs an address that they share. Else that is noted.

    Raises:
        ValueError: an index is no plain name, or two captions share one; a table of the folder cannot be read, names a
            file outside of it, or numbers more prompts than the list has; or the list has no indices, and the folder
            begins with 0.
    """
    folder = Path(folder)
    names, shared = _names(rows, one_image_each)
    matched = Matched(folder, tally=Tally(folder, captions=len(rows), names=list(dict.fromkeys(names.values()))))
    if shared:
        matched.notes.append(f"{len(shared)} captions have the index of another, and its images: {shortened(shared)}")
    if not folder.is_dir():
        return matched
    here = ByCaption(rows["prompt"])
    pack = Pack(folder, folder / PACK if (folder / PACK).is_dir() else folder, here)
    by_number = numbered(rows, pack, here)
    by_caption = {place: files for place, caption in enumerate(rows["prompt"]) if (files := pack.files(caption))}
    if not has_indices(rows) and (by_number or pack.indexed("0")):
        if not by_caption and not by_number:
            raise _from_zero(rows, pack)
        names = {}  # the folder numbers its images from 0, and its tables say whose they are
    matched.notes += pack.notes + _joined(matched, rows["prompt"].tolist(), names, by_caption, by_number, pack)
    matched.tally.matched = len(matched.files)
    matched.tally.tables, matched.tally.named = pack.tables, pack.named
    matched.tally.take_stock({file for files in matched.files.values() for file in files})
    if matched.files and (matched.tally.missing or matched.tally.unused):
        matched.notes.append(matched.tally.summary())
    return matched


def _joined(
    matched: Matched,
    captions: Sequence[str],
    names: dict[int, str],
    by_caption: dict[int, list[Path]],
    by_number: dict[int, list[Path]],
    pack: Pack,
) -> list[str]:
    """Puts the files of each caption into `matched`: by caption, else by index, else by number; returns notes."""
    strange, differ, folder = list[str](), list[str](), matched.folder
    for place, caption in enumerate(captions):
        files = by_caption.get(place, [])
        by_index = pack.indexed(names[place]) if place in names else []
        if by_index and (owner := pack.owner(names[place], by_index)) and folded(owner) != folded(caption):
            if not files:
                strange.append(
                    f"index {names[place]} is {owner[:60]!r} there, and {spaced(caption)[:60]!r} in the list"
                )
            by_index = []
        for others, how, first in ((by_index, "index", "caption"), (by_number.get(place, []), "number", "the former")):
            if files and others and set(files) != set(others) and not _alike(files[0], others[0]):
                a, b = (file.relative_to(folder).as_posix() for file in (files[0], others[0]))
                differ.append(f"{a} by {first}, {b} by {how}")
            elif others and not (files and how == "number"):
                files = list(dict.fromkeys([*files, *others]))
        if files:
            matched.files[place] = files
    notes = []
    if strange:
        notes.append(
            f"{folder}: the indices of {len(strange)} captions are those of others there, and are not used: "
            f"{shortened(strange)}"
        )
    if differ:
        notes.append(f"{folder}: {len(differ)} captions have two images; by caption counts: {shortened(differ)}")
    return notes


def _from_zero(rows: pd.DataFrame, pack: Pack) -> ValueError:
    """A folder begins with 0, and the captions are numbered from 1."""
    return ValueError(
        f"{pack.folder} holds {pack.indexed('0')[0].relative_to(pack.folder).as_posix()!r}, and the list has no "
        f"indices: its captions are numbered from 1 ({spaced(rows['prompt'].iloc[0])[:60]!r} is 1), and each would get "
        "its neighbour's image. Number the images from 1, or give the list a column 'index' that begins with 0."
    )


def read_matched(matched: Matched, side: int) -> TrainingImages:
    """Reads the files of captions, resized to `side`, without placeholders; files that cannot be read are passed over.

    Left out, and noted: images smaller than `MIN_SIDE`, of one colour, or the same file under `SAME` captions or more.
    Told: the same file under two captions, and images almost all of whose pixels have one colour.
    """
    every = dict.fromkeys(file for files in matched.files.values() for file in files)
    out, notes = _placeholders(matched)
    images: dict[int, np.ndarray] = {}
    broken: dict[Path, str] = {}
    nearly: list[str] = []
    for place, files in matched.files.items():
        stack = []
        for file in files:
            if file in out or not len(image := read_images([file], side, broken)):
                continue
            if image[0].std((0, 1)).max() < PLAIN:
                out[file] = "of one colour"
                continue
            if _share_of_one_colour(image[0]) >= NEARLY_PLAIN:
                nearly.append(str(file.relative_to(matched.folder)))
            stack.append(image)
        if stack:
            images[place] = np.concatenate(stack)
    if out:
        reasons = [f"{file.relative_to(matched.folder)} ({why})" for file, why in out.items()]
        notes.append(f"{matched.folder}: {len(out)} of {len(every)} files are no training images: {shortened(reasons)}")
    if nearly:
        notes.append(
            f"{matched.folder}: {len(nearly)} images are almost of one colour, look at them: {shortened(nearly)}"
        )
    return TrainingImages(images, [*matched.notes, *notes], broken)


# --- what an index names ---------------------------------------------------------------------------------------------


def has_indices(rows: pd.DataFrame) -> bool:
    """Whether a list says indices; else its captions are numbered."""
    return "index" in rows and not rows["index"].isna().all()


def _names(rows: pd.DataFrame, one_image_each: bool) -> tuple[dict[int, str], list[str]]:
    """Place of a caption to the name of its index, or to its number from 1 if the list has no indices; and which
    captions have the index of another without an address in common."""
    if not has_indices(rows):
        # A caption keeps its number where earlier ones were left out of the list.
        order = rows["row"] if "row" in rows else range(len(rows))
        return {place: str(int(number) + 1) for place, number in enumerate(order)}, []
    names: dict[int, str] = {}
    first: dict[str, int] = {}
    same: list[str] = []
    captions, urls = rows["prompt"].tolist(), rows["url"].tolist() if "url" in rows else [None] * len(rows)
    for place, index in enumerate(rows["index"]):
        if pd.isna(index):
            continue
        try:
            names[place] = plain_name(index)
        except ValueError as error:
            raise ValueError(f"memorized caption {place + 1} has the {error}") from None
        earlier = first.setdefault(names[place], place)
        # One address: two captions of one image. Else nobody can tell whose image is whose in the folder.
        shared = not pd.isna(urls[place]) and str(urls[earlier]) == str(urls[place])
        if earlier == place or shared:
            continue
        if one_image_each:
            raise ValueError(
                f"memorized captions {earlier + 1} and {place + 1} have one index, {names[place]!r}, and no common "
                "url: which of the images in its folder is whose? Give each caption another index."
            )
        if folded(captions[earlier]) != folded(captions[place]):
            same.append(f"{names[place]} is of captions {earlier + 1} and {place + 1}")
    return names, same


# --- what is no training image ----------------------------------------------------------------------------------------


def _placeholders(matched: Matched) -> tuple[dict[Path, str], list[str]]:
    """Files that are no training images, each with why, by their sizes and bytes; and sentences on repeated ones."""
    out: dict[Path, str] = {}
    captions: dict[str, set[int]] = {}
    copies: dict[str, list[Path]] = {}
    sharing = _sharing(matched)
    for place, files in matched.files.items():
        for file in files:
            if (size := _size(file)) and min(size) < MIN_SIDE:
                out[file] = f"{size[0]} x {size[1]} pixels"
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            captions.setdefault(digest, set()).add(sharing(place))
            copies.setdefault(digest, []).append(file)
    twice = []
    for digest, places in captions.items():
        files = list(dict.fromkeys(copies[digest]))
        if len(places) >= SAME:
            out |= {file: f"the same file under {len(places)} captions" for file in files if file not in out}
        elif len(places) > 1 and files[0] not in out:
            twice.append(" and ".join(str(file.relative_to(matched.folder)) for file in files[:2]))
    notes = [f"{matched.folder}: {len(twice)} files are there under two captions: {shortened(twice)}"] if twice else []
    return out, notes


def _sharing(matched: Matched) -> Callable[[int], int]:
    """Place of a caption to the first that has the same files: captions of one image count as one."""
    first: dict[tuple[Path, ...], int] = {}
    return lambda place: first.setdefault(tuple(matched.files[place]), place)


def _size(file: Path) -> Sequence[int] | None:
    """Width and height by the file's header; None if it cannot be read, which is noted when it is decoded."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.size
    except Exception:  # what Pillow raises for broken files is no closed list
        return None


def _share_of_one_colour(image: np.ndarray) -> float:
    """Share of the pixels that have the most frequent colour, of 512 colours."""
    levels = (image >> 5).astype(np.int64)
    _, counts = np.unique(levels @ np.array([64, 8, 1]), return_counts=True)
    return float(counts.max() / counts.sum())


def _alike(one: Path, other: Path) -> bool:
    """Whether two files look the same: 8 x 8 gray values that differ by 8 of 255 on average at most."""
    try:
        gray = [rgb(file).convert("L").resize((8, 8), Image.Resampling.BOX) for file in (one, other)]
    except ValueError:
        return False
    return bool(np.abs(np.asarray(gray[0], float) - np.asarray(gray[1], float)).mean() <= 8)
