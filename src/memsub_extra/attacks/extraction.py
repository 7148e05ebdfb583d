"""Training-data extraction (Carlini et al. 2023, "Extracting Training Data from Diffusion Models", section 4).

sample_to_folder(pipe, captions, folder, images=30)             # many images a caption, streamed to disk
claims = extract(folder)                                        # cliques of near-duplicates
checked = check_extraction(claims, folder, metrics.copy, corpus) # which of them are training images?
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from memsub.io.distributed import is_main, processes, wait
from memsub.io.files import load_json, save_json
from memsub.io.images import rgb, save_image
from memsub.measure.metric import CopyMetric
from memsub.measure.noise import noise_seeds
from memsub.models import (
    Pipeline,
    Solver,
    as_captions,
    as_denoiser,
    check_request,
    draws_noise,
    generate,
    sampler_fingerprint,
)

_MANIFEST = "manifest.json"
"""File that records model, captions and options of a folder's images."""
TILES = 4


def sample_to_folder(
    pipe: Pipeline,
    captions: Sequence[str],
    folder: str | Path,
    *,
    images: int = 30,
    steps: int = 50,
    guidance_scale: float = 7.5,
    solver: Solver = "own",
    batch_size: int = 64,
    progress: bool = True,
) -> None:
    """Samples every caption with seeds 0 to `images` - 1 into `folder/<caption>/<seed>.png`; resumes where it stopped.

    Raises:
        ValueError: no captions, captions that are not text, numbers below 1, a sampler whose noise no seed fixes, or a
            folder with images of other captions, of another model, or made with other options.
    """
    folder = Path(folder)
    captions = as_captions(captions)
    check_request(captions, steps, batch_size, guidance_scale, images=images)
    draws_noise(as_denoiser(pipe), solver)  # raises ValueError, before anything is written, for noise without a seed
    options = {"steps": steps, "guidance_scale": guidance_scale, "solver": solver}
    about = {"model": sampler_fingerprint(pipe), "captions": captions, "images": int(images)} | options
    _check_manifest(folder, about)
    wanted = [(i, seed) for i in range(len(captions)) for seed in range(images)]
    missing = [pair for pair in wanted if not image_path(folder, *pair).is_file()]
    wait()  # until every process has looked, before the first writes
    if is_main():
        save_json(about, folder / _MANIFEST)
    size, done = batch_size * processes(), len(wanted) - len(missing)
    hidden = not (progress and is_main())
    with tqdm(total=len(wanted), initial=done, desc="sampling", unit="image", disable=hidden) as bar:
        for part in (missing[i : i + size] for i in range(0, len(missing), size)):
            prompts, seeds = [captions[i] for i, _ in part], [seed for _, seed in part]
            sampled = generate(
                pipe,
                prompts,
                seeds=noise_seeds(prompts, seeds),
                steps=steps,
                guidance_scale=guidance_scale,
                solver=solver,
                batch_size=batch_size,
                progress=False,
            )
            if is_main():
                for pair, image in zip(part, sampled, strict=True):
                    save_image(image, image_path(folder, *pair))
            bar.update(len(part))
    wait()


def _check_manifest(folder: Path, about: dict) -> None:
    """Raises ValueError if a folder holds the images of something else."""
    manifest = folder / _MANIFEST
    if manifest.is_file():
        before = load_json(manifest)
        if differing := [key for key in about if before.get(key) != about[key]]:
            raise ValueError(f"{folder} holds an extraction with other {', '.join(differing)}: name another folder.")


def image_path(folder: Path, caption: int, seed: int) -> Path:
    """Path at which `sample_to_folder` writes the image of a caption (its index in the list) and a seed."""
    return folder / f"{caption:05d}" / f"{seed:04d}.png"


def tiled_distance(images: np.ndarray) -> np.ndarray:
    """Distance of every two images: the largest root mean square difference of `TILES` x `TILES` tiles, in [0, 1].

    Because of the maximum, two images with a large plain background do not count as duplicates.

    Args:
        images: uint8 (n, height, width, 3).

    Returns:
        float32, shape (n, n).

    Raises:
        ValueError: the sides are not multiples of `TILES`.
    """
    n, height, width, _ = images.shape
    if height % TILES or width % TILES:
        raise ValueError(f"images of {height} x {width} pixels cannot be cut into {TILES} x {TILES} tiles.")
    x = torch.from_numpy(images).float() / 255
    x = x.reshape(n, TILES, height // TILES, TILES, width // TILES, 3)
    x = x.permute(1, 3, 0, 2, 4, 5).reshape(TILES * TILES, n, -1)
    return (torch.cdist(x, x).amax(0) / x.shape[-1] ** 0.5).numpy()


def largest_clique(distances: np.ndarray, threshold: float) -> list[int]:
    """Ascending indices of the largest set of images that are pairwise nearer than `threshold`; distances: (n, n)."""
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from(range(len(distances)))
    graph.add_edges_from(np.argwhere(np.triu(distances < threshold, 1)).tolist())
    cliques: list[list[int]] = list(nx.find_cliques(graph))
    largest: list[int] = max(cliques, key=len, default=[])
    return sorted(largest)


def extract(folder: str | Path, *, threshold: float = 0.1, clique: int = 10) -> pd.DataFrame:
    """Captions whose images are near-duplicates of one another, so that an attacker would claim a training image.

    Args:
        folder: a folder that `sample_to_folder` wrote.
        threshold: tiled distance below which two images are near-duplicates.
        clique: number of images that must be near-duplicates of each other.

    Returns:
        One row a caption: caption, size (of its largest clique), claimed (size >= clique), seed (of the image of the
            clique that is nearest to the others).

    Raises:
        FileNotFoundError: images are missing: `sample_to_folder` was stopped.
        ValueError: a clique has more images than a caption, so nothing could be claimed.
    """
    folder = Path(folder)
    about = load_json(folder / _MANIFEST)
    if not 1 <= clique <= about["images"]:
        raise ValueError(
            f"a clique of {clique} images needs as many a caption; {folder} holds {about['images']} of each."
        )
    rows = []
    for i, caption in enumerate(tqdm(about["captions"], desc="cliques", mininterval=2)):
        images = np.stack([_read(image_path(folder, i, seed)) for seed in range(about["images"])])
        distances = tiled_distance(images)
        members = largest_clique(distances, threshold)
        centre = members[int(distances[np.ix_(members, members)].sum(0).argmin())]
        rows.append({"caption": caption, "size": len(members), "claimed": len(members) >= clique, "seed": centre})
    return pd.DataFrame(rows)


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: call `sample_to_folder` again, it resumes where it stopped.")
    return np.asarray(rgb(path))


def check_extraction(claims: pd.DataFrame, folder: str | Path, metric: CopyMetric, corpus: np.ndarray) -> pd.DataFrame:
    """Adds columns `similarity`, with the nearest training image, and `extracted`: claimed, and a training image.

    Args:
        claims: the result of `extract` for this folder, or some of its rows: the index says which captions they are.
        corpus: descriptors of all training images, (n, dim), by `metric.features`.

    Raises:
        ValueError: the claims are of other captions than the folder.
    """
    folder, captions = Path(folder), load_json(Path(folder) / _MANIFEST)["captions"]
    places = [i for i, caption in claims["caption"].items() if isinstance(i, int) and captions[i : i + 1] == [caption]]
    if len(places) < len(claims):
        raise ValueError(f"the index of these claims does not name the captions of {folder}: give rows of `extract`.")
    images = np.stack([_read(image_path(folder, i, claims.loc[i, "seed"])) for i in places])
    similarity, nearest = metric.nearest(images, corpus)
    return claims.assign(
        similarity=similarity, nearest=nearest, extracted=claims["claimed"] & (similarity > metric.threshold)
    )
