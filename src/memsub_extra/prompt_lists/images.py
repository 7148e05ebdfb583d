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

A caption decides, where the folder says captions. An index that the folder's own list gives to another caption is not
used. Two answers that do not look alike, and images that are none, are noted.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from memsub.io.images import FORMATS, SUFFIXES, image_files, read_images, rgb
from memsub.io.lists import LONGEST_NAME, Row, plain_name, read_rows, text_of

from .kinds import one_line, shortened

NUMBERED = "prompt_to_ref.csv"
PACK = "gt_images"
"""The folder of images in a pack that has its own list beside it."""
LISTS = (".jsonl", ".csv", ".tsv", ".parquet")
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
    """

    folder: Path
    files: dict[int, list[Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


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
        one_image_each: an index that two captions have needs an address that they share.

    Raises:
        ValueError: an index is no plain name, or two captions share one; a table of the folder cannot be read, names a
            file outside of it, or numbers more prompts than the list has.
    """
    folder = Path(folder)
    names = _names(rows, one_image_each)
    matched = Matched(folder)
    if not folder.is_dir():
        return matched
    root = folder / PACK if (folder / PACK).is_dir() else folder
    pack = _Pack(folder, root)
    matched.notes += pack.notes
    strange, differ = [], []
    for place, caption in enumerate(map(one_line, rows["prompt"])):
        by_caption, name = pack.files(caption), names.get(place)
        owner = pack.caption_of.get(name) if name else None
        by_index = _indexed(root, pack.flat, name) if name else []
        if owner is not None and owner != caption:
            if by_index and not by_caption:
                strange.append(f"index {name} is {owner[:60]!r} there, and {caption[:60]!r} in the list")
            by_index = []
        if by_caption and by_index and set(by_caption) != set(by_index) and not _alike(by_caption[0], by_index[0]):
            differ.append(f"{by_caption[0].relative_to(folder)} by caption, {by_index[0].relative_to(folder)} by index")
            by_index = []
        if files := list(dict.fromkeys([*by_caption, *by_index])):
            matched.files[place] = files
    for place, files in _numbered(rows, folder, pack).items():
        matched.files.setdefault(place, files)
    if strange:
        matched.notes.append(
            f"{folder}: the indices of {len(strange)} captions are those of others there, and are not used: "
            f"{shortened(strange)}"
        )
    if differ:
        matched.notes.append(
            f"{folder}: {len(differ)} captions have two images; by caption counts: {shortened(differ)}"
        )
    return matched


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


# --- what an index and a caption name ---------------------------------------------------------------------------------


def _names(rows: pd.DataFrame, one_image_each: bool) -> dict[int, str]:
    """Place of a caption to the name of its index; to its number in the whole list from 1 if that has no indices."""
    if "index" not in rows or rows["index"].isna().all():
        numbers = rows["row"] if "row" in rows else range(len(rows))
        return {place: str(int(number) + 1) for place, number in enumerate(numbers)}
    names: dict[int, str] = {}
    first: dict[str, int] = {}
    urls = rows["url"].tolist() if "url" in rows else [None] * len(rows)
    for place, index in enumerate(rows["index"]):
        if pd.isna(index):
            continue
        try:
            names[place] = plain_name(index)
        except ValueError as error:
            raise ValueError(f"memorized caption {place + 1} has the {error}") from None
        earlier = first.setdefault(names[place], place)
        # One address: two captions of one image. Else nobody can tell whose image is whose in the folder.
        shared = urls[place] is not None and str(urls[earlier]) == str(urls[place])
        if one_image_each and earlier != place and not shared:
            raise ValueError(
                f"memorized captions {earlier + 1} and {place + 1} have one index, {names[place]!r}, and no common "
                "url: which of the images in its folder is whose? Give each caption another index."
            )
    return names


def _flat(root: Path) -> dict[str, list[Path]]:
    """Image files right in a folder, by their names without the suffix."""
    files: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
            files.setdefault(path.stem, []).append(path)
    return files


def _indexed(root: Path, flat: dict[str, list[Path]], name: str) -> list[Path]:
    return image_files(root / name) or flat.get(name, [])


class _Pack:
    """What the tables of a folder say: files and indices by caption, and whose caption an index is.

    Raises:
        ValueError: a table names a file outside of the folder.
    """

    def __init__(self, folder: Path, root: Path):
        self.folder, self.root, self.flat = folder, root, _flat(root)
        beside = sorted(folder.parent.glob("*.jsonl")) if folder.name == PACK else []
        inside = [path for path in sorted({*folder.iterdir(), *root.iterdir()}) if path.suffix.lower() in LISTS]
        self.rows_of: dict[str, list[Row]] = {}
        self.caption_of: dict[str, str] = {}
        self.captions: list[list[str]] = []
        self.notes: list[str] = []
        for path in [*inside, *beside]:
            if path.name == NUMBERED:
                continue
            try:
                listed = read_rows(path)
            except ValueError:
                self.notes.append(f"{path} is no list of captions: it is passed over.")
                continue
            self.captions.append([one_line(row["prompt"]) for row in listed])
            for row in listed:
                self.rows_of.setdefault(one_line(row["prompt"]), []).append(row)
                if row.get("index") is not None:
                    self.caption_of.setdefault(plain_name(row["index"]), one_line(row["prompt"]))

    def files(self, caption: str) -> list[Path]:
        """The files that the tables give a caption."""
        files: list[Path] = []
        for row in self.rows_of.get(caption, []):
            if row.get("file"):
                files += _existing(self.folder, self.root, str(row["file"]))
            elif row.get("index") is not None:
                files += _indexed(self.root, self.flat, plain_name(row["index"]))
        return files


def _existing(folder: Path, root: Path, name: str) -> list[Path]:
    """The file that a table of a stranger names, if it is there.

    Raises:
        ValueError: it would lie outside of the folder.
    """
    if "\0" in name or len(name.encode("utf-8", "replace")) > 10 * LONGEST_NAME:
        raise ValueError(f"a table in {folder} names a file {name[:60]!r}, which is no name of a file.")
    for base in dict.fromkeys((root, folder)):
        if not (base / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"a table in {folder} names {name[:60]!r}, which leads out of the folder.")
        if (base / name).is_file() and Path(name).suffix.lower() in SUFFIXES:
            return [base / name]
    return []


def _numbered(rows: pd.DataFrame, folder: Path, pack: _Pack) -> dict[int, list[Path]]:
    """What `prompt_to_ref.csv` says: place of a caption to its file.

    Its numbers are rows of the list that lies beside it, if there is one, else of the prompt list; from 0.
    """
    path = folder / NUMBERED
    if not path.is_file():
        return {}
    table = list(csv.DictReader(text_of(path).splitlines()))
    if not table or not {"prompt_idx", "ref_file"} <= set(table[0]):
        raise ValueError(f"{path} has no columns prompt_idx and ref_file.")
    texts = [text_of(p).splitlines() for p in sorted(folder.glob("*.txt"))]
    listed = next(iter([*pack.captions, *([one_line(line) for line in text if line.strip()] for text in texts)]), None)
    places: dict[object, list[int]] = {}
    if listed is None:
        numbers = rows["row"] if "row" in rows else range(len(rows))
        places = {int(number): [place] for place, number in enumerate(numbers)}
        most = int(max(numbers)) + 1
    else:
        for place, caption in enumerate(map(one_line, rows["prompt"])):
            places.setdefault(caption, []).append(place)
        most = len(listed)
    files: dict[int, list[Path]] = {}
    for number, row in enumerate(table, start=2):
        at = _number(row["prompt_idx"], most, f"{path}, line {number},")
        name = (row["ref_file"] or "").strip()
        if name and name != "MISSING" and (existing := _existing(folder, pack.root, name)):
            for place in places.get(at if listed is None else listed[at], []):
                files.setdefault(place, []).extend(existing)
    return files


def _number(text: str | None, most: int, where: str) -> int:
    """Raises ValueError for what is no row of a list of `most`."""
    if not (text or "").strip().isdecimal() or int(str(text)) >= most:
        raise ValueError(
            f"{where} has the prompt_idx {str(text)[:20]!r}; the list has the rows 0 to {most - 1}: give the list that "
            "the folder was made for, or put it beside the table as a .jsonl or .txt file."
        )
    return int(str(text))


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
