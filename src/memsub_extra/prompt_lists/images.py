"""Matches training images in a folder with the captions of a list.

    matched = match_images(rows, "gt_images")   # place of a caption to its files, not decoded
    read = read_matched(matched, side=512)     # to its images, uint8 (k, 512, 512, 3), without placeholders
    for sentence in read.notes: print(sentence)

Layouts, which may be mixed:

    3/0.png, 3/1.jpg                            a folder for each index of the list (or number from 1, if it has none)
    3.png                                       flat, by index
    metadata.jsonl, a.png                       flat, with a table: columns caption and file (or file_name, index)
    list.jsonl, gt_images/3/0.png               a pack with its own list (Wen et al.); indices may be of another list
    prompt_to_ref.csv, 00003.jpg                prompt_idx, the row of the list from 0, and ref_file

If the folder has captions, they decide; files that a table assigns to another caption are not used. Notes list captions
with two images that do not look alike, invalid images, missing files of a table, and images without a caption. A list
without indices is numbered from 1; then a folder 0 is an error.
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
"""Smallest side in pixels of a training image."""
PLAIN = 2.0
"""An image is plain if the standard deviation of every channel is below this value."""
NEARLY_PLAIN = 0.97
"""An image with at least this share of one colour is noted: it may say "image unavailable"."""
SAME = 3
"""A file that belongs to this many captions or more is a placeholder that a host sends instead of images."""


@dataclass
class Matched:
    """The files of captions.

    Attributes:
        folder: folder of the files.
        files: place of a caption in the list to its files; only captions with files.
        notes: sentences on contradictions.
        tally: counts of the folder's files, of files named in tables, and of files that belong to a caption.
    """

    folder: Path
    files: dict[int, list[Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


@dataclass
class TrainingImages:
    """Images of captions: place of a caption in the list to uint8 (k, side, side, 3); and sentences on images that were
    omitted or look unusual. `broken`: unreadable files, each with a sentence."""

    images: dict[int, np.ndarray]
    notes: list[str]
    broken: dict[Path, str]


def match_images(rows: pd.DataFrame, folder: str | Path, *, one_image_each: bool = True) -> Matched:
    """The image files of each caption.

    Args:
        rows: the whole list in order; columns prompt, and index and url if it has them. (If rows were omitted, column
            `row` has the places.)
        one_image_each: captions with the same index must share an address; otherwise this is only noted.

    Raises:
        ValueError: an index is no plain name, or two captions share one; a table of the folder cannot be read, names a
            file outside of the folder, or numbers more prompts than the list has; or the list has no indices, and the
            folder begins with 0.
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
        names = {}  # the folder numbers from 0, and its tables assign the images
    matched.notes += pack.notes + _joined(matched, rows["prompt"].tolist(), names, by_caption, by_number, pack)
    matched.tally.matched = len(matched.files)
    matched.tally.tables, matched.tally.named = pack.tables, pack.named
    matched.tally.take_stock({file for files in matched.files.values() for file in files})
    if matched.files and (matched.tally.missing or matched.tally.unused or matched.tally.unread):
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
    """Adds the files of each caption to `matched`: by caption, else by index, else by number; returns notes."""
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
    """The error for a folder that begins with 0, while captions are numbered from 1."""
    return ValueError(
        f"{pack.folder} holds {pack.indexed('0')[0].relative_to(pack.folder).as_posix()!r}, and the list has no "
        f"indices: its captions are numbered from 1 ({spaced(rows['prompt'].iloc[0])[:60]!r} is 1), and each would get "
        "its neighbour's image. Number the images from 1, or give the list a column 'index' that begins with 0."
    )


def read_matched(matched: Matched, side: int) -> TrainingImages:
    """Reads the files of captions, resized to `side`. Placeholders and unreadable files are omitted.

    Omitted, with a note: images smaller than `MIN_SIDE`, of one colour, or the same file for at least `SAME` captions.
    Kept, with a note: the same file for two captions, and images that are almost entirely of one colour.
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
    """Whether a list has indices; otherwise its captions are numbered."""
    return "index" in rows and not rows["index"].isna().all()


def _names(rows: pd.DataFrame, one_image_each: bool) -> tuple[dict[int, str], list[str]]:
    """Place of a caption to its index, or to its number from 1 if the list has no indices; and the captions that have
    the index of another caption without a common address."""
    if not has_indices(rows):
        # A caption keeps its number if earlier rows were omitted.
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
        # A common address: two captions of one image. Otherwise the images cannot be assigned.
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
    """Files that are no training images, by size and content, each with the reason; and notes on repeated files."""
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
    """A function: place of a caption to the first place with the same files, so captions of one image count once."""
    first: dict[tuple[Path, ...], int] = {}
    return lambda place: first.setdefault(tuple(matched.files[place]), place)


def _size(file: Path) -> Sequence[int] | None:
    """Width and height from the file's header; None if it cannot be read (noted on decoding)."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            return image.size
    except Exception:  # for broken files Pillow raises errors of many classes
        return None


def _share_of_one_colour(image: np.ndarray) -> float:
    """Share of pixels with the most frequent of 512 colours."""
    levels = (image >> 5).astype(np.int64)
    _, counts = np.unique(levels @ np.array([64, 8, 1]), return_counts=True)
    return float(counts.max() / counts.sum())


def _alike(one: Path, other: Path) -> bool:
    """Whether two files look the same: 8 x 8 gray values that differ by at most 8 of 255 on average."""
    try:
        gray = [rgb(file).convert("L").resize((8, 8), Image.Resampling.BOX) for file in (one, other)]
    except ValueError:
        return False
    return bool(np.abs(np.asarray(gray[0], float) - np.asarray(gray[1], float)).mean() <= 8)
