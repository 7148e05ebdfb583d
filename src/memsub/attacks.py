"""Attacks: can training images still be had from the model?

sample_to_folder(pipe, captions, folder, images=30)             # many images a caption, streamed to disk
found = extract(folder)                                         # near-duplicate cliques (Carlini et al. 2023)
checked = check_extraction(found, folder, metrics.copy, corpus) # ... which are training images?
embeddings = embedding_attack(pipe, images, start)              # Finding Dori (Kowalczuk et al. 2025)
generate(pipe, embeddings)                                      # is the training image back?

Detection of memorized captions is in `memsub.detection`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from .denoiser import Pipeline, Solver, as_denoiser, noised, sampler_fingerprint
from .distributed import gathered, is_main, processes, shard, wait
from .files import load_json, save_image, save_json
from .generation import generate
from .metrics import CopyMetric

# --- extraction (Carlini et al. 2023, "Extracting Training Data from Diffusion Models", section 4) -----------------


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
    """Samples every caption with seeds 0 to `images` - 1 into `folder/<caption>/<seed>.png`; goes on where it stopped.

    Raises:
        ValueError: no captions, or the folder holds the images of other captions, of another model or other options.
    """
    folder = Path(folder)
    if not captions:
        raise ValueError("no captions to sample: the list is empty.")
    about = {
        "model": sampler_fingerprint(pipe),
        "captions": list(captions),
        "images": images,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "solver": solver,
    }
    manifest = folder / "manifest.json"
    if manifest.is_file():
        found = load_json(manifest)
        if differing := [key for key in about if found.get(key) != about[key]]:
            raise ValueError(f"{folder} holds an extraction with other {', '.join(differing)}: name another folder.")
    wanted = [(i, seed) for i in range(len(captions)) for seed in range(images)]
    missing = [pair for pair in wanted if not image_path(folder, *pair).is_file()]
    wait()  # until every process has looked, before the first writes
    if is_main():
        save_json(about, manifest)
    show = progress and is_main()
    with tqdm(
        total=len(wanted), initial=len(wanted) - len(missing), desc="sampling", unit="image", disable=not show
    ) as bar:
        for part in _batches(missing, batch_size * processes()):
            sampled = generate(
                pipe,
                [captions[i] for i, _ in part],
                seeds=[seed for _, seed in part],
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


def _batches(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[i : i + size] for i in range(0, len(items), size))


def image_path(folder: Path, caption: int, seed: int) -> Path:
    return folder / f"{caption:05d}" / f"{seed:04d}.png"


def tiled_distance(images: np.ndarray, others: np.ndarray | None = None, tiles: int = 4) -> np.ndarray:
    """Root mean square difference of the most different of `tiles` x `tiles` tiles, pixels in [0, 1], for all pairs.

    The maximum keeps two pictures with a large plain background from passing for duplicates.

    Args:
        images: uint8 (n, height, width, 3).
        others: uint8 (m, height, width, 3); default `images`.

    Returns:
        float32, shape (n, m).

    Raises:
        ValueError: the sides are no multiple of `tiles`.
    """
    a = _tiles(images, tiles)
    b = a if others is None else _tiles(others, tiles)
    return (torch.cdist(a, b).amax(0) / a.shape[-1] ** 0.5).numpy()


def _tiles(images: np.ndarray, tiles: int) -> torch.Tensor:
    n, height, width, _ = images.shape
    if height % tiles or width % tiles:
        raise ValueError(f"images of {height} x {width} pixels cannot be cut into {tiles} x {tiles} tiles.")
    x = torch.from_numpy(images).float() / 255
    x = x.reshape(n, tiles, height // tiles, tiles, width // tiles, 3)
    return x.permute(1, 3, 0, 2, 4, 5).reshape(tiles * tiles, n, -1)


def largest_clique(distances: np.ndarray, threshold: float) -> list[int]:
    """The largest set of images of which every two are nearer than `threshold`, ascending; distances (n, n)."""
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from(range(len(distances)))
    graph.add_edges_from(np.argwhere(np.triu(distances < threshold, 1)).tolist())
    cliques: list[list[int]] = list(nx.find_cliques(graph))
    largest: list[int] = max(cliques, key=len, default=[])
    return sorted(largest)


def extract(folder: str | Path, *, threshold: float = 0.1, clique: int = 10) -> pd.DataFrame:
    """Captions whose images are near-duplicates of one another: what an attacker would claim to be training images.

    Args:
        folder: what `sample_to_folder` wrote.
        threshold: tiled distance under which two images are near-duplicates.
        clique: images that must be so to one another.

    Returns:
        One row a caption: caption, size (of its largest clique), claimed (size >= clique), seed (of the image that
            stands for the clique, the one nearest to the others).

    Raises:
        FileNotFoundError: images are missing: `sample_to_folder` was stopped.
    """
    folder = Path(folder)
    about = load_json(folder / "manifest.json")
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
        raise FileNotFoundError(f"{path} is missing: call `sample_to_folder` again, it goes on where it was stopped.")
    return np.asarray(Image.open(path).convert("RGB"))


def check_extraction(found: pd.DataFrame, folder: str | Path, metric: CopyMetric, corpus: np.ndarray) -> pd.DataFrame:
    """Adds `similarity` with the nearest training image, and `extracted`: claimed, and indeed a training image.

    Args:
        corpus: descriptors of all training images, (n, dim), as `metric.features` gives them.
    """
    folder = Path(folder)
    images = np.stack([_read(image_path(folder, i, seed)) for i, seed in enumerate(found["seed"])])
    similarity, nearest = metric.nearest(images, corpus)
    return found.assign(
        similarity=similarity, nearest=nearest, extracted=found["claimed"] & (similarity > metric.threshold)
    )


# --- embedding attack ----------------------------------------------------------------------------------------------


class EmbeddingAttack:
    """Optimizes a text embedding for each image until the model draws it, from a given start.

    Adam on the denoising loss of the image, E ||eps - eps(z_t, t, embedding)||^2 over random steps and noises
    (Kowalczuk, Hintersdorf et al. 2025, "Finding Dori"). An embedding has many numbers and might carry any picture: a
    model that never saw the images tells how much the attack injects by itself. Each image is attacked by itself, with
    noise and optimizer of its own, whatever the batch.

    Args:
        images: uint8 (n, height, width, 3).
        start: embeddings to begin with, (n, tokens, width).
        noises: steps and noises an image and iteration.
        batch_size: rows of a network call, `noises` an image.

    Raises:
        ValueError: another number of starts than of images.
    """

    def __init__(
        self,
        pipe: Pipeline,
        images: np.ndarray,
        start: torch.Tensor,
        *,
        lr: float = 0.1,
        noises: int = 8,
        seed: int = 0,
        batch_size: int = 64,
    ):
        if len(images) != len(start):
            raise ValueError(f"{len(start)} embeddings to start from for {len(images)} images: give one an image.")
        self.denoiser = as_denoiser(pipe)
        self.noises, self.together = noises, max(1, batch_size // noises)
        self.latents = self.denoiser.encode(images).to(self.denoiser.dtype)
        self._embeddings = [e.detach().clone().to(self.denoiser.device).float().requires_grad_(True) for e in start]
        self._optimizers = [torch.optim.Adam([e], lr=lr) for e in self._embeddings]
        self._rngs = [torch.Generator().manual_seed(seed + i) for i in range(len(images))]

    def advance(self, iterations: int, which: Sequence[int], bar: tqdm | None = None) -> None:
        """Attacks some of the images further."""
        for part in _batches(list(which), self.together):
            for _ in range(iterations):
                self._step(part)
                if bar is not None:
                    bar.update(len(part))

    def embeddings(self, which: Sequence[int]) -> torch.Tensor:
        """As far as they were attacked, for `generate`."""
        return torch.stack([self._embeddings[i].detach() for i in which]).to(self.denoiser.dtype)

    def _step(self, part: Sequence[int]) -> None:
        denoiser, rngs = self.denoiser, [self._rngs[i] for i in part]
        z = self.latents[list(part)].repeat_interleave(self.noises, 0)
        times = len(denoiser.scheduler.alphas_cumprod)
        t = torch.cat([torch.randint(times, (self.noises,), generator=rng) for rng in rngs]).to(denoiser.device)
        eps = torch.cat([torch.randn(self.noises, *z.shape[1:], generator=rng) for rng in rngs]).to(z)
        attacked = [self._embeddings[i] for i in part]
        x, target = noised(denoiser, z, t, eps)
        predicted = denoiser.predict(x, t, torch.stack(attacked).repeat_interleave(self.noises, 0))
        # A sum over images: they do not share an embedding, so one must not slow the other.
        loss = (predicted - target).float().square().mean((1, 2, 3)).view(len(part), -1).mean(1).sum()
        for embedding, gradient in zip(attacked, torch.autograd.grad(loss, attacked), strict=True):
            embedding.grad = gradient
        for i in part:
            self._optimizers[i].step()


def embedding_attack(
    pipe: Pipeline,
    images: np.ndarray,
    start: torch.Tensor,
    *,
    iterations: int = 50,
    progress: bool = True,
    **options: Any,
) -> torch.Tensor:
    """`EmbeddingAttack`, with its options, of all images; under `accelerate launch` each process takes a share of them.

    Returns:
        Embeddings for `generate`, shape of `start`.
    """
    attack = EmbeddingAttack(pipe, images, start, **options)
    mine = shard(range(len(images)))
    with tqdm(total=len(mine) * iterations, desc="embedding attack", disable=not progress, mininterval=2) as bar:
        attack.advance(iterations, mine, bar)
    found = gathered({i: attack.embeddings([i])[0].cpu() for i in mine})
    return torch.stack([found[i] for i in range(len(images))]).to(attack.denoiser.device, attack.denoiser.dtype)
