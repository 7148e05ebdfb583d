"""The page of `memsub evaluate`: images before and after an edit, in one HTML file that requires no network.

Captions, names and numbers are escaped. The page runs no script and loads nothing.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

SHOWN = 60
"""Number of captions on the page. First come those whose images are most similar to a training image or each other."""
SIDE = 256
"""Largest side of an image on the page in pixels."""


def page(
    about: Mapping[str, Any],
    lines: Sequence[str],
    captions: Sequence[str],
    references: Sequence[np.ndarray],
    images: Mapping[str, np.ndarray],
    scored: Mapping[str, pd.DataFrame],
) -> str:
    """The HTML of the page.

    Args:
        about: properties of the evaluation, name to value.
        lines: the results as text.
        references: training images of each caption, uint8 (k, height, width, 3).
        images: "before" and "after" to images, ordered by caption, with equal numbers for each.
        scored: "before" and "after" to a table with one row per image: copy_similarity, likeness and replicated.
    """
    seeds = len(images["before"]) // len(captions)
    first = scored["before"][["copy_similarity", "likeness"]].bfill(axis=1).iloc[:, 0].fillna(0).to_numpy()
    order = np.argsort(-first.reshape(len(captions), seeds).mean(1), kind="stable")
    rows = [_caption(i, captions[i], references[i], images, scored, seeds) for i in order[:SHOWN]]
    if len(captions) > SHOWN:
        rows.append(f"<p>{len(captions) - SHOWN} captions more: images.csv has their numbers.</p>")
    what = "; ".join(f"{name} {value}" for name, value in about.items())
    return _PAGE.format(about=html.escape(what), lines=html.escape("\n".join(lines)), rows="\n".join(rows))


def _caption(
    i: int,
    caption: str,
    trained: np.ndarray,
    images: Mapping[str, np.ndarray],
    scored: Mapping[str, pd.DataFrame],
    seeds: int,
) -> str:
    parts = [f"<h2>{html.escape(caption)}</h2>"]
    if len(trained):
        parts.append(f"<div><h3>training image</h3>{''.join(_figure(image, '', False) for image in trained[:4])}</div>")
    for name, of_model in images.items():
        figures = []
        for place in range(i * seeds, (i + 1) * seeds):
            row = scored[name].iloc[place]
            note = f"seed {int(row['seed'])}"
            if row["copy_similarity"] == row["copy_similarity"]:  # not NaN
                note += f", copy similarity {row['copy_similarity']:.2f}"
            figures.append(_figure(of_model[place], note, row["replicated"] == 1))
        parts.append(f"<div><h3>{html.escape(name)}</h3>{''.join(figures)}</div>")
    return f"<section>{''.join(parts)}</section>"


def _figure(image: np.ndarray, note: str, replicated: bool) -> str:
    """The HTML of an image; an image that replicates is marked."""
    small, buffer = Image.fromarray(image), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(buffer, "WEBP", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    mark = " class='replicated'" if replicated else ""
    note += "<br><b>replicates</b>" if replicated else ""
    return f"<figure{mark}><img src='data:image/webp;base64,{data}' alt=''><figcaption>{note}</figcaption></figure>"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>memsub: before and after</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2em; }}
pre {{ overflow-x: auto; }}
section {{ border-top: 1px solid #999; }}
section > div {{ display: inline-block; vertical-align: top; margin-right: 2em; }}
h2 {{ font-size: 1em; }} h3 {{ font-size: .9em; font-weight: normal; margin: 0; }}
figure {{ display: inline-block; margin: 2px; border: 3px solid transparent; font-size: .75em; }}
figure.replicated {{ border-color: #c00; }}
img {{ width: 128px; image-rendering: pixelated; display: block; }}
</style></head><body>
<h1>Before and after an edit</h1><p>{about}</p><pre>{lines}</pre>
{rows}
</body></html>
"""
