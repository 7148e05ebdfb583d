"""Unpacks training images from parquet files with an image in each row, as in data sets on the hub.

unpack_parquet(["data/train-0.parquet", ...], "gt_images")      # <index>/0.png, and list.jsonl with the captions
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import ArrowException, parquet, types

from memsub.io.files import save_text
from memsub.io.images import rgb, save_image
from memsub.io.lists import plain_name

from .joining import folded
from .tally import shortened

CAPTIONS = ("caption", "prompt", "text", "raw_prompt")
BATCH = 16
"""Rows in memory at a time."""


@dataclass
class _Plan:
    """The destination of each row's image, planned before any is written.

    Attributes:
        rows: rows of the tables in order: file, number of the row, caption, and name of the folder or None.
        moved: folder names of captions whose index belongs to an earlier caption.
        without: rows without an index.
    """

    rows: list[tuple[Path, int, str, str | None]] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)


def unpack_parquet(files: Sequence[str | Path] | str | Path, folder: str | Path, image: str = "ground_truth") -> str:
    """Writes the images of a pack in the layout that `images.match_images` reads; returns a sentence with their number.

    Existing files of the folder are kept. Only captions, indices and one image column are read. All images of an index
    are written: 0.png, 1.png, ... If an index belongs to another caption as well (because tables restart counting), its
    folder is <index>-2, which list.jsonl names. A warning lists rows without an image.

    Args:
        image: the column of training images. (Other columns may contain generated images.)

    Raises:
        ValueError: no files or no rows; a file is not parquet, or lacks the column of images, indices or captions; or
            an index is no plain name. Nothing was written.
    """
    paths = [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]
    if not paths:
        raise ValueError("no parquet file was given: does the pattern of glob match any file? Nothing was written.")
    folder, columns = Path(folder), {path: _columns(path, image) for path in paths}
    plan = _planned(columns)
    if not plan.rows:
        raise ValueError(f"{shortened(paths)}: no rows, so there is nothing to unpack. Nothing was written.")
    seen: dict[str, dict[str, str]] = {}  # by folder: checksum of an image's bytes to its file name
    before, repeated, broken = 0, 0, list[str]()
    images = (data for path in paths for data in _images(path, image))
    for (path, number, _, name), data in zip(plan.rows, images, strict=True):
        if name is None:
            continue
        there, digest = seen.setdefault(name, {}), hashlib.sha256(data or b"").hexdigest()
        target = folder / name / f"{len(there)}.png"
        if data and digest in there:
            repeated += 1
            continue
        try:
            if target.is_file():
                before += 1
            else:
                save_image(np.asarray(rgb(data or b"")), target)
            there[digest] = target.name
        except ValueError as error:
            broken.append(f"{path.name}, row {number}: {'no image' if not data else error}")
    listed = [{"caption": caption, "index": name} for _, _, caption, name in plan.rows if caption and name]
    save_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed), folder / "list.jsonl")
    if broken or plan.without:
        warnings.warn(f"{folder}: rows without an image: {shortened(plan.without + broken)}.", stacklevel=2)
    counts = {
        "there before": before,
        "the same again": repeated,
        "without an index": len(plan.without),
        "without a caption": sum(not caption for _, _, caption, _ in plan.rows),
        "broken": len(broken),
        f"of an index of another caption ({shortened(plan.moved)})": len(plan.moved),
    }
    written = sum(map(len, seen.values()))
    said = "".join(f", {count} {what}" for what, count in counts.items() if count)
    return f"{folder}: {written} training images of {len(plan.rows)} rows{said}"


def _planned(columns: dict[Path, tuple[str, str]]) -> _Plan:
    """Plans the destinations of all rows; raises ValueError for an index that is no plain name."""
    plan, owners = _Plan(), dict[str, str]()
    for path, (index, caption) in columns.items():
        table = parquet.read_table(path, columns=[index, caption])
        pairs = zip(table[index].to_pylist(), table[caption].to_pylist(), strict=True)
        for number, (value, text) in enumerate(pairs, 1):
            text = str(text or "").strip()
            if value is None or value != value:  # NaN, as tables write a missing index
                plan.without.append(f"{path.name}, row {number}: no index")
                plan.rows.append((path, number, text, None))
                continue
            try:
                name, turn = (first := plain_name(value)), 1
            except ValueError as error:
                raise ValueError(f"{path}, row {number}, has the {error}") from None
            while owners.setdefault(name, folded(text)) != folded(text):
                name, turn = f"{first}-{turn + 1}", turn + 1
            if turn > 1 and name not in plan.moved:
                plan.moved.append(name)
            plan.rows.append((path, number, text, name))
    return plan


def _images(path: Path, image: str) -> Iterator[bytes | None]:
    """The bytes of each row's image."""
    with parquet.ParquetFile(path) as table:
        nested = types.is_struct(table.schema_arrow.field(image).type)
        for batch in table.iter_batches(BATCH, columns=[f"{image}.bytes" if nested else image]):
            for row in batch.to_pylist():
                yield (row[image] or {}).get("bytes") if nested else row[image]


def _columns(file: Path, image: str) -> tuple[str, str]:
    """The columns of indices and captions; raises ValueError as `unpack_parquet`."""
    try:
        schema = parquet.read_schema(file)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{file} is no parquet file: {error}.") from None
    names = {name.lower(): name for name in schema.names}
    caption = next((names[name] for name in CAPTIONS if name in names), None)
    of_images = [name for name in schema.names if _holds_images(schema.field(name).type)]
    if image not in of_images or "index" not in names or not caption:
        raise ValueError(
            f"{file} has the columns {', '.join(schema.names)}; expected index, one of {', '.join(CAPTIONS)}, and "
            f"{image!r} with images: name the column of training images (image=...; columns with images: "
            f"{', '.join(of_images) or 'none'})."
        )
    return names["index"], caption


def _holds_images(kind: pyarrow.DataType) -> bool:
    """Whether a column has bytes of images, directly or in a struct with their path, as data sets on the hub do."""
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)
