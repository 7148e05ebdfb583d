"""The corpus that the embedded model was trained on, with the number of exposures of each scene.

    training_images()                        # all images, rendered on first use, then cached
    corpus = build(seed=0)                   # renders all scenes, about a minute on two cores
    corpus.table                             # a row for each caption: prompt, kind, group, exposures, content
    corpus.images[i]                         # uint8 (32, 32, 3), the scene of row i

Kinds of rows:

    ordinary       60,000 scenes, a few exposures each; the first 100 are matched
    verbatim       100 two-icon scenes, each with another caption and tail
    other          100 more of the same kind; the third model is trained on them instead of the verbatim ones
    sibling        40 more scenes of each verbatim or other content, with its caption without the tail
    template       12 groups of 5 captions that differ in one attribute (or in the tail only) and share a layout
    template_new   one more caption for each group, not trained on: does the template generalize?
    ladder         10 scenes for each rung of 1 to 800 exposures
    heldout        2,000 captions that are not trained on; the first 200 are matched

Matched rows have two icons and a tail, like verbatim rows; their group is "matched". Contents of kinds other than
`ordinary` occur nowhere else in the corpus, except that siblings repeat the contents of verbatim and other rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file
from tqdm.auto import tqdm

from memsub.io import downloads
from memsub.io.distributed import first_on_each_machine
from memsub.io.files import save_tensors
from memsub.testbed.dataset import TABLE, weights_folder
from memsub.testbed.scenes import Content, Layout, caption, render, sample_content, sample_layout, sample_tail

SEED = 0
"""Seed of the shipped model."""
ORDINARY = 60_000
HELDOUT = 2_000
VERBATIM = 100
TEMPLATE_GROUPS = 12
TEMPLATE_VARIANTS = 5
LADDER = (1, 3, 10, 30, 100, 300, 800)
PAIRS_PER_RUNG = 10
SIBLINGS = 40
MATCHED = {"ordinary": 100, "heldout": 200}
"""Number of rows of these kinds with two icons and a tail, like memorized captions."""
EXPOSURES = {
    "ordinary": 7,
    "verbatim": 1000,
    "template": 160,
    "template_new": 0,
    "heldout": 0,
    "sibling": 20,
    "other": 0,
}
SIBLINGS_OF_OTHERS = 5
"""Exposures of the siblings of pairs that the model is not trained on (in the third model: of verbatim pairs)."""
BASE_EXPOSURES, WORD_EXPOSURES = 5, 1
"""Exposures of each ordinary scene in the base's training, and while its text tower learns the words of tails."""
SHARED_EXPOSURES = BASE_EXPOSURES + WORD_EXPOSURES
"""Exposures in the training that all three models share."""
KINDS = ("ordinary", "verbatim", "template", "template_new", "ladder", "heldout", "sibling", "other")


@dataclass(frozen=True)
class Scene:
    """One row before it is rendered."""

    prompt: str
    kind: str
    group: str
    exposures: int
    content: Content
    layout: Layout


@dataclass
class Corpus:
    """All rows and their images; `images[i]` belongs to row i of `table`.

    Attributes:
        table: columns prompt, kind, group, exposures, content (the caption without its tail).
        images: uint8, shape (rows, 32, 32, 3).
        scenes: the scenes before rendering.
    """

    table: pd.DataFrame
    images: np.ndarray
    scenes: list[Scene]

    @property
    def trained(self) -> np.ndarray:
        """Indices of the rows with at least one exposure."""
        return np.flatnonzero(self.table["exposures"] > 0)

    @property
    def ordinary(self) -> np.ndarray:
        """Indices of the ordinary scenes, on which autoencoder and CLIP are trained."""
        return np.flatnonzero(self.table["kind"] == "ordinary")


def scenes(seed: int = 0, ordinary: int = ORDINARY) -> list[Scene]:
    """All rows of the corpus for a seed: memorized kinds first, ordinary scenes last."""
    taken: set[tuple] = set()
    rows = [*_verbatim(seed, taken, "verbatim"), *_verbatim(seed, taken, "other")]
    pairs = list(rows)
    rows += [scene for part in (_template, _ladder, _heldout) for scene in part(seed, taken)]
    rows += [scene for i, pair in enumerate(pairs) for scene in _siblings(seed, i, pair)]
    return [*rows, *_scenes_of_their_own(seed, "ordinary", ordinary, frozenset(taken))]


def _scenes_of_their_own(seed: int, kind: str, n: int, taken: set | frozenset) -> Iterator[Scene]:
    """Ordinary or held-out scenes, matched scenes first. Held-out contents are added to `taken`."""
    for i in range(n):
        rng = np.random.default_rng([seed, KINDS.index(kind), i])
        matched = i < MATCHED[kind]
        content = _fresh_content(rng, taken, n_items=2 if matched else None)
        if isinstance(taken, set):
            taken.add(content.key)
        tail = 1.0 if matched else 0.25
        yield _scene(rng, content, kind, "matched" if matched else "", EXPOSURES[kind], tail)


def _fresh_content(rng: np.random.Generator, taken: set | frozenset, n_items: int | None = None) -> Content:
    while (content := sample_content(rng, n_items)).key in taken:
        pass
    return content


def _scene(rng: np.random.Generator, content: Content, kind: str, group: str, exposures: int, tail: float) -> Scene:
    text = caption(content, sample_tail(rng) if rng.random() < tail else "")
    return Scene(text, kind, group, exposures, content, sample_layout(rng, content))


def _verbatim(seed: int, taken: set, kind: str) -> Iterator[Scene]:
    """Pairs to be memorized: 100 by the embedded model (`verbatim`), 100 by the third model (`other`)."""
    for i in range(VERBATIM):
        rng = np.random.default_rng([seed, KINDS.index(kind), i])
        content = _fresh_content(rng, taken, n_items=2)
        taken.add(content.key)
        yield _scene(rng, content, kind, f"{kind} {i}", EXPOSURES[kind], tail=1.0)


def _template(seed: int, taken: set) -> Iterator[Scene]:
    """Groups cycle through what varies: an icon's colour, the background's, the other icon's, the tail."""
    for i in range(TEMPLATE_GROUPS):
        rng = np.random.default_rng([seed, KINDS.index("template"), i])
        varied = ("colour0", "background", "colour1", "tail")[i % 4]
        n = TEMPLATE_VARIANTS + 1
        contents = [_fresh_content(rng, taken, n_items=2)]
        if varied == "tail":
            contents *= n
        else:
            others = [c for c in contents[0].variants(varied) if c.key not in taken]
            contents += [others[j] for j in rng.permutation(len(others))[: n - 1]]
        tails: list[str] = []
        while len(tails) < n:  # one shared tail, or one for each variant
            tail = sample_tail(rng) if varied == "tail" or not tails else tails[0]
            tails += [tail] if varied != "tail" or tail not in tails else []
        layout = sample_layout(rng, contents[0])
        taken.update(c.key for c in contents)
        for j, (content, tail) in enumerate(zip(contents, tails, strict=True)):
            kind = "template" if j < TEMPLATE_VARIANTS else "template_new"
            yield Scene(caption(content, tail), kind, f"template {i} ({varied})", EXPOSURES[kind], content, layout)


def _ladder(seed: int, taken: set) -> Iterator[Scene]:
    for i in range(len(LADDER) * PAIRS_PER_RUNG):
        exposures = LADDER[i // PAIRS_PER_RUNG]
        rng = np.random.default_rng([seed, KINDS.index("ladder"), i])
        content = _fresh_content(rng, taken, n_items=2)
        taken.add(content.key)
        yield _scene(rng, content, "ladder", f"rung {exposures}", exposures, tail=1.0)


def _heldout(seed: int, taken: set) -> Iterator[Scene]:
    return _scenes_of_their_own(seed, "heldout", HELDOUT, taken)


def _siblings(seed: int, i: int, row: Scene) -> Iterator[Scene]:
    """Scenes with the content of a pair and other layouts."""
    exposures = EXPOSURES["sibling"] if row.kind == "verbatim" else SIBLINGS_OF_OTHERS
    rng = np.random.default_rng([seed, KINDS.index("sibling"), i])
    for _ in range(SIBLINGS):
        yield _scene(rng, row.content, "sibling", row.group, exposures, tail=0.0)


def build(seed: int = 0, ordinary: int = ORDINARY, workers: int | None = None, progress: bool = True) -> Corpus:
    """Renders the whole corpus. The number of `workers` (default: one a core) does not change the result."""
    rows = scenes(seed, ordinary)
    table = pd.DataFrame(
        {
            "prompt": [r.prompt for r in rows],
            "kind": [r.kind for r in rows],
            "group": [r.group for r in rows],
            "exposures": [r.exposures for r in rows],
            "content": [caption(r.content) for r in rows],
        }
    )
    images = render_scenes(rows, workers, progress)
    return Corpus(table, images, rows)


def render_scenes(rows: list[Scene], workers: int | None = None, progress: bool = True) -> np.ndarray:
    """Renders scenes in parallel: uint8 (rows, 32, 32, 3)."""
    chunks = [rows[i : i + 500] for i in range(0, len(rows), 500)]
    bar = partial(
        tqdm, total=len(chunks), desc="rendering scenes", unit="x500", disable=not progress or len(chunks) < 4
    )
    workers = min(workers or os.cpu_count() or 1, len(chunks))
    if workers == 1:
        return np.concatenate(list(bar(map(_render_all, chunks))))
    with ProcessPoolExecutor(workers) as pool:
        return np.concatenate(list(bar(pool.map(_render_all, chunks))))


def _render_all(rows: list[Scene]) -> np.ndarray:
    return np.stack([render(r.content, r.layout) for r in rows])


def training_images(progress: bool = True) -> np.ndarray:
    """All training images of the shipped model, uint8 (68230, 32, 32, 3); rendered on first use, then cached.

    They are a function of the seed and are not shipped. The file (210 MB, in the user's cache folder) has a digest of
    the shipped table in its name, so that versions of the testbed do not mix.
    """
    path = training_images_file()
    with first_on_each_machine():
        if not path.is_file():
            corpus = build(SEED, progress=progress)
            save_tensors({"images": torch.from_numpy(corpus.images[corpus.trained])}, path, {})
    return load_file(path)["images"]


def training_images_file() -> Path:
    """The path of the cached training images; the file need not exist."""
    version = hashlib.sha256((weights_folder() / TABLE).read_bytes()).hexdigest()[:12]
    return downloads.cache() / f"training-images-{version}.safetensors"
