"""Packs of training images that are tables: parquet files with an image in each row, as data sets on the hub are.

unpack_parquet(["data/train-0.parquet", ...], "gt_images")      # <index>/0.png, and list.jsonl with the captions
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pyarrow import ArrowException, parquet, types

from memsub.io.files import save_text
from memsub.io.images import rgb, save_image
from memsub.io.lists import plain_name

CAPTIONS = ("caption", "prompt", "text", "raw_prompt")
BATCH = 16
"""Rows in memory at a time."""


def unpack_parquet(files: Sequence[str | Path], folder: str | Path, image: str = "ground_truth") -> str:
    """Writes the images of a pack into the layout that `images.match_images` reads; returns how many, as a sentence.

    What is in the folder already is kept. Of the tables only the captions, indices and this one image column are read.

    Args:
        image: the column of training images. (Others of a pack may hold generated ones.)

    Raises:
        ValueError: a file is no parquet file, or lacks the column of images, indices or captions; nothing was written.
    """
    folder, columns = Path(folder), [_columns(Path(file), image) for file in files]
    rows: list[dict[str, str]] = []
    broken = 0
    for file, (index, caption) in zip(files, columns, strict=True):
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(BATCH, columns=[index, caption, f"{image}.bytes"]):
                for row in batch.to_pylist():
                    name, data = plain_name(row[index]), (row[image] or {}).get("bytes")
                    rows.append({"caption": row[caption], "index": name})
                    try:
                        if not (folder / name / "0.png").is_file():
                            save_image(np.asarray(rgb(data or b"")), folder / name / "0.png")
                    except ValueError:
                        broken += 1
    save_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), folder / "list.jsonl")
    return f"{folder}: {len(rows) - broken} training images of {len(rows)} rows" + f", {broken} broken" * bool(broken)


def _columns(file: Path, image: str) -> tuple[str, str]:
    """The columns of indices and captions; raises ValueError as `unpack_parquet`."""
    try:
        schema = parquet.read_schema(file)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{file} is no parquet file: {error}.") from None
    names = {name.lower(): name for name in schema.names}
    caption = next((names[name] for name in CAPTIONS if name in names), None)
    if (
        image not in schema.names
        or not types.is_struct(schema.field(image).type)
        or "index" not in names
        or not caption
    ):
        raise ValueError(
            f"{file} has the columns {', '.join(schema.names)}; expected index, one of {', '.join(CAPTIONS)}, and "
            f"{image!r} with images: name the column of training images."
        )
    return names["index"], caption
