"""Attacks: can training images still be had from the model, and can memorized captions be told from others?

draw(pipe, captions, folder, images=30)                     # many images a caption, streamed to disk
found = extract(folder)                                     # near-duplicate cliques (Carlini et al. 2023)
checked = check_extraction(found, folder, judges, corpus)   # ... which are training images?
first_step_scores(pipe, captions)                           # detection before drawing (Wen 2024, Webster 2023)
embeddings = embedding_attack(pipe, images, start)          # Finding Dori (Kowalczuk et al. 2025)
generate(pipe, embeddings)                                  # is the training image back?
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve
from tqdm.auto import tqdm

from .distributed import gathered, is_main, processes, shard, wait
from .files import save_image, save_json
from .generation import generate, initial_noise
from .metrics import CopyJudge
from .models import fingerprint

# --- extraction (Carlini et al. 2023, "Extracting Training Data from Diffusion Models", section 4) -----------------


def draw(
    pipe: StableDiffusionPipeline,
    captions: Sequence[str],
    folder: str | Path,
    *,
    images: int = 30,
    steps: int = 50,
    guidance_scale: float = 7.5,
    batch_size: int = 64,
    progress: bool = True,
) -> None:
    """Draws every caption with seeds 0 to `images` - 1 into `folder/<caption>/<seed>.png`; goes on where it was stopped.

    Raises:
        ValueError: no captions, or the folder holds the images of other captions, of another model or other options.
    """
    folder = Path(folder)
    if not captions:
        raise ValueError("no captions to draw: the list is empty.")
    about = {
        "model": fingerprint(pipe.unet),
        "captions": list(captions),
        "images": images,
        "steps": steps,
        "guidance_scale": guidance_scale,
    }
    manifest = folder / "manifest.json"
    if manifest.is_file():
        found = json.loads(manifest.read_text())
        if differing := [key for key in about if found.get(key) != about[key]]:
            raise ValueError(f"{folder} holds an extraction with other {', '.join(differing)}: name another folder.")
    wanted = [(i, seed) for i in range(len(captions)) for seed in range(images)]
    missing = [pair for pair in wanted if not _path(folder, *pair).is_file()]
    wait()  # until every process has looked, before the first writes
    if is_main():
        save_json(about, manifest)
    show = progress and is_main()
    with tqdm(
        total=len(wanted), initial=len(wanted) - len(missing), desc="drawing", unit="image", disable=not show
    ) as bar:
        for part in _batches(missing, batch_size * processes()):
            drawn = generate(
                pipe,
                [captions[i] for i, _ in part],
                seeds=[seed for _, seed in part],
                steps=steps,
                guidance_scale=guidance_scale,
                batch_size=batch_size,
                progress=False,
            )
            if is_main():
                for pair, image in zip(part, drawn, strict=True):
                    save_image(image, _path(folder, *pair))
            bar.update(len(part))
    wait()


def _batches(items: Sequence, size: int) -> Iterator[Sequence]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _path(folder: Path, caption: int, seed: int) -> Path:
    return folder / f"{caption:05d}" / f"{seed:04d}.png"


def tiled_distance(images: np.ndarray, others: np.ndarray | None = None, tiles: int = 4) -> np.ndarray:
    """Root mean square difference of the most different of `tiles` x `tiles` tiles, pixels in [0, 1], for all pairs.

    The maximum keeps two pictures with a large plain background from passing for duplicates.

    Args:
        images, others: uint8 (n, height, width, 3) and (m, height, width, 3); `others` defaults to `images`.

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
    graph = nx.Graph()
    graph.add_nodes_from(range(len(distances)))
    graph.add_edges_from(np.argwhere(np.triu(distances < threshold, 1)).tolist())
    return sorted(max(nx.find_cliques(graph), key=len)) if len(graph) else []


def extract(folder: str | Path, *, threshold: float = 0.1, clique: int = 10) -> pd.DataFrame:
    """Captions whose images are near-duplicates of one another: what an attacker would claim to be training images.

    Args:
        folder: what `draw` wrote.
        threshold: tiled distance under which two images are near-duplicates.
        clique: images that must be so to one another.

    Returns:
        One row a caption: caption, size (of its largest clique), claimed (size >= clique), seed (of the image that stands
        for the clique, the one nearest to the others).

    Raises:
        FileNotFoundError: images are missing: `draw` was stopped.
    """
    folder = Path(folder)
    about = json.loads((folder / "manifest.json").read_text())
    rows = []
    for i, caption in enumerate(tqdm(about["captions"], desc="cliques", mininterval=2)):
        images = np.stack([_read(_path(folder, i, seed)) for seed in range(about["images"])])
        distances = tiled_distance(images)
        members = largest_clique(distances, threshold)
        centre = members[int(distances[np.ix_(members, members)].sum(0).argmin())]
        rows.append({"caption": caption, "size": len(members), "claimed": len(members) >= clique, "seed": centre})
    return pd.DataFrame(rows)


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: call `draw` again, it goes on where it was stopped.")
    return np.asarray(Image.open(path).convert("RGB"))


def check_extraction(found: pd.DataFrame, folder: str | Path, judge: CopyJudge, corpus: np.ndarray) -> pd.DataFrame:
    """Adds `similarity` with the nearest image of the training set and `extracted`: claimed, and indeed a training image.

    Args:
        corpus: descriptors of all training images, (n, dim), as `judge.features` gives them.
    """
    folder = Path(folder)
    images = np.stack([_read(_path(folder, i, seed)) for i, seed in enumerate(found["seed"])])
    similarity, nearest = judge.nearest(images, corpus)
    return found.assign(
        similarity=similarity, nearest=nearest, extracted=found["claimed"] & (similarity > judge.threshold)
    )


# --- one-step detection ------------------------------------------------------------------------------------------


@torch.no_grad()
def first_step_scores(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    seeds: int = 4,
    steps: int = 50,
    calls: int = 1,
    guidance_scale: float = 7.5,
    batch_size: int = 64,
) -> dict[str, np.ndarray]:
    """Two scores that tell memorized captions from the first `calls` steps, mean over some seeds.

    Args:
        batch_size: noises at a time; a UNet call holds twice as many.

    Returns:
        text magnitude, (prompts,): length of the text's share of the predicted noise, ||eps(x_t, t, prompt) - eps(x_t, t,
            empty)||; large for memorized prompts (Wen et al., ICLR 2024, eq. 3).
        noise change, (prompts,): ||eps(x_t, t, prompt) - x_T||, after the denoising confidence score of Webster (2023): a
            model that remembers replaces the noise by its picture at once.

    Raises:
        ValueError: no prompts.
    """
    if not prompts:
        raise ValueError("no prompts to score: the list is empty.")
    scores: dict[str, list] = {"text magnitude": [], "noise change": []}
    empty = pipe.encode_prompt("", pipe.device, 1, False)[0]
    for part in _batches(prompts, max(1, batch_size // seeds)):
        cond = pipe.encode_prompt(list(part), pipe.device, 1, False)[0].repeat(seeds, 1, 1)
        context = torch.cat([empty.expand_as(cond), cond])
        start = initial_noise(pipe, np.repeat(range(seeds), len(part)).tolist())
        pipe.scheduler.set_timesteps(steps)
        x = start * pipe.scheduler.init_noise_sigma
        magnitude, change = 0, 0
        for t in pipe.scheduler.timesteps[:calls]:
            inputs = pipe.scheduler.scale_model_input(torch.cat([x, x]), t)
            uncond, text = pipe.unet(inputs, t, encoder_hidden_states=context, return_dict=False)[0].chunk(2)
            magnitude = magnitude + (text - uncond).float().flatten(1).norm(dim=1)
            change = change + (text - start).float().flatten(1).norm(dim=1)
            x = pipe.scheduler.step(uncond + guidance_scale * (text - uncond), t, x).prev_sample
        for name, value in (("text magnitude", magnitude), ("noise change", change)):
            scores[name].append((value / calls).view(seeds, len(part)).mean(0).cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in scores.items()}


def detection_roc(memorized: np.ndarray, never_seen: np.ndarray) -> tuple[float, pd.DataFrame]:
    """How well a score tells memorized captions from never-seen ones.

    Returns:
        Area under the ROC curve, and the curve: columns threshold, true_positives, false_positives (rates).
    """
    truth = np.repeat([1, 0], [len(memorized), len(never_seen)])
    scores = np.concatenate([memorized, never_seen])
    fpr, tpr, thresholds = roc_curve(truth, scores)
    curve = pd.DataFrame({"threshold": thresholds, "true_positives": tpr, "false_positives": fpr})
    return float(roc_auc_score(truth, scores)), curve


# --- embedding attack ----------------------------------------------------------------------------------------------


def embedding_attack(
    pipe: StableDiffusionPipeline,
    images: np.ndarray,
    start: torch.Tensor,
    *,
    iterations: int = 50,
    lr: float = 0.1,
    draws: int = 8,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> torch.Tensor:
    """Optimizes a text embedding for each image until the model draws it, from a given start.

    Adam on the denoising loss of the image, E ||eps - eps(z_t, t, embedding)||^2 over random steps and noises (Kowalczuk,
    Hintersdorf et al. 2025, "Finding Dori"). For images that the model was never trained on, the same attack tells how
    much it injects by itself. Each image is attacked by itself, whatever the batch; under `accelerate launch` each process takes a
    share of them.

    Args:
        images: uint8 (n, height, width, 3).
        start: embeddings to begin with, (n, tokens, width).
        draws: steps and noises an image and iteration.
        batch_size: rows of a UNet call, `draws` an image.

    Returns:
        Embeddings for `generate`, shape of `start`.

    Raises:
        ValueError: another number of starts than of images.
    """
    if len(images) != len(start):
        raise ValueError(f"{len(start)} embeddings to start from for {len(images)} images: give one an image.")
    mine = shard(range(len(images)))
    found: dict[int, torch.Tensor] = {}
    bar = tqdm(total=len(mine) * iterations, desc="embedding attack", disable=not progress, mininterval=2)
    with bar:
        for part in _batches(mine, max(1, batch_size // draws)):
            rngs = [torch.Generator().manual_seed(seed + i) for i in part]
            attacked = _attack(pipe, images[part], start[part], rngs, iterations, lr, draws, bar)
            found |= dict(zip(part, attacked.cpu(), strict=True))
    found = gathered(found)
    return torch.stack([found[i] for i in range(len(images))]).to(pipe.device, pipe.unet.dtype)


def _attack(pipe, images, start, rngs, iterations, lr, draws, bar) -> torch.Tensor:
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(pipe.device, pipe.vae.dtype) / 127.5 - 1
    with torch.no_grad():
        z = (pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor).repeat_interleave(draws, 0)
    embedding = start.detach().clone().to(pipe.device).float().requires_grad_(True)
    optimizer = torch.optim.Adam([embedding], lr=lr)
    alphas = pipe.scheduler.alphas_cumprod.to(pipe.device)
    for _ in range(iterations):
        t = torch.cat([torch.randint(len(alphas), (draws,), generator=rng) for rng in rngs]).to(pipe.device)
        eps = torch.cat([torch.randn(draws, *z.shape[1:], generator=rng) for rng in rngs]).to(z)
        signal, noise = (a.sqrt()[:, None, None, None].to(z) for a in (alphas[t], 1 - alphas[t]))
        target = eps if pipe.scheduler.config.prediction_type == "epsilon" else signal * eps - noise * z
        context = embedding.repeat_interleave(draws, 0).to(pipe.unet.dtype)
        predicted = pipe.unet(signal * z + noise * eps, t, encoder_hidden_states=context, return_dict=False)[0]
        # A sum over images: they do not share an embedding, so one must not slow the other.
        loss = (predicted - target).float().square().mean((1, 2, 3)).view(len(rngs), draws).mean(1).sum()
        (embedding.grad,) = torch.autograd.grad(loss, [embedding])
        optimizer.step()
        bar.update(len(rngs))
    return embedding.detach()
