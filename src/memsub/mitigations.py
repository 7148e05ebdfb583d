"""The rivals of pruning: they change the prompt, its embedding, or what is active, and leave the weights alone.

    generate(pipe, optimized_embeddings(pipe, prompts, target=...))      # Wen et al., ICLR 2024
    generate(pipe, add_random_tokens(pipe.tokenizer, prompts, k=2))      # Somepalli et al., NeurIPS 2023
    neurons = find_value_neurons(pipe, prompts, value_statistics(pipe, ordinary))
    with deactivated(pipe, neurons): generate(pipe, prompts)             # NeMo, Hintersdorf et al., NeurIPS 2024

Each costs something for every prompt, and none survives somebody who holds the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from transformers import PreTrainedTokenizerBase

from .attacks import first_step_scores
from .distributed import gathered, processes, shard
from .evaluation import Draw
from .generation import initial_noise

# --- prompt-embedding optimization -----------------------------------------------------------------------------


def optimized_embeddings(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    *,
    target: float,
    seeds: int | Sequence[int] = 0,
    steps: int = 50,
    lr: float = 0.05,
    iterations: int = 10,
    batch_size: int = 16,
) -> torch.Tensor:
    """Moves each prompt's embedding until the text hardly matters at the first step (Wen et al., ICLR 2024, section 4.2).

    AdamW on ||eps(x_T, prompt) - eps(x_T, empty)|| at the first step, for the noise that the image will start from; a prompt
    whose length falls to `target` or below is left where it is. Under `accelerate launch` each process takes a share of the prompts.

    Args:
        target: length to fall to. Smaller is stronger.
        seeds: as for `generate`.
        batch_size: prompts at a time.

    Returns:
        Embeddings for `generate`, (prompts, tokens, width).

    Raises:
        ValueError: no prompts, or another number of seeds.
    """
    if not len(prompts):
        raise ValueError("no prompts to optimize: the list is empty.")
    seeds = [seeds] * len(prompts) if isinstance(seeds, (int, np.integer)) else list(seeds)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one seed, or one a prompt.")
    pipe.scheduler.set_timesteps(steps)
    mine = shard(range(len(prompts)))
    found: dict[int, torch.Tensor] = {}
    for i in range(0, len(mine), batch_size):
        part = mine[i : i + batch_size]
        noise = initial_noise(pipe, [seeds[j] for j in part])
        moved = _optimize(pipe, [prompts[j] for j in part], noise, target, lr, iterations)
        found |= dict(zip(part, moved.cpu(), strict=True))
    found = gathered(found)
    return torch.stack([found[i] for i in range(len(prompts))]).to(pipe.device, pipe.unet.dtype)


def _optimize(pipe, prompts: list[str], noise: torch.Tensor, target: float, lr: float, iterations: int) -> torch.Tensor:
    t = pipe.scheduler.timesteps[0]
    x = pipe.scheduler.scale_model_input(noise * pipe.scheduler.init_noise_sigma, t)
    with torch.no_grad():
        embedding = pipe.encode_prompt(prompts, pipe.device, 1, False)[0].float()
        empty = pipe.encode_prompt("", pipe.device, 1, False)[0].expand_as(embedding)
        uncond = pipe.unet(x, t, encoder_hidden_states=empty.to(x.dtype), return_dict=False)[0]
    embedding.requires_grad_(True)
    optimizer = torch.optim.AdamW([embedding], lr=lr)
    for _ in range(iterations):
        text = pipe.unet(x, t, encoder_hidden_states=embedding.to(x.dtype), return_dict=False)[0]
        length = (text - uncond).float().flatten(1).norm(dim=1)
        unfinished = length.detach() > target
        if not unfinished.any():
            break
        (gradient,) = torch.autograd.grad(length.sum(), [embedding])
        before = embedding.detach().clone()
        embedding.grad = gradient
        optimizer.step()
        with torch.no_grad():
            embedding[~unfinished] = before[~unfinished]  # AdamW moves on by momentum: these are done
    return embedding.detach()


# --- random token addition ---------------------------------------------------------------------------------------


def add_random_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], k: int, seed: int = 0) -> list[str]:
    """Inserts `k` random words of the tokenizer at random places of each prompt (Somepalli et al. 2023, "RT").

    Raises:
        ValueError: k is negative.
    """
    if k < 0:
        raise ValueError(f"k must not be negative; got {k}.")
    words = sorted(w.removesuffix("</w>") for w in tokenizer.get_vocab() if w.endswith("</w>") and w[:-4].isalpha())
    words = [w for w in words if len(w) > 1]
    rng = np.random.default_rng(seed)
    changed = []
    for prompt in prompts:
        pieces = prompt.split(" ")
        for _ in range(k):
            pieces.insert(int(rng.integers(len(pieces) + 1)), str(rng.choice(words)))
        changed.append(" ".join(pieces))
    return changed


# --- cross-attention value neurons (NeMo) ------------------------------------------------------------------------

Neurons = dict[str, torch.Tensor]
"""Layer name to a mask of its neurons for each prompt: bool, (prompts, neurons)."""


def value_layers(pipe: StableDiffusionPipeline) -> dict[str, torch.nn.Linear]:
    """Value projections of the cross-attention in the down and middle blocks, by module name.

    Raises:
        ValueError: there are none.
    """
    found = {
        name: module
        for name, module in pipe.unet.named_modules()
        if name.endswith("attn2.to_v") and name.startswith(("down_blocks", "mid_block"))
    }
    if not found:
        raise ValueError(f"this {type(pipe.unet).__name__} has no cross-attention in its down and middle blocks.")
    return found


@contextmanager
def deactivated(pipe: StableDiffusionPipeline, neurons: Neurons) -> Iterator[None]:
    """While open, each prompt's value neurons output zero.

    The UNet must be called with those prompts in their order, once or, as under guidance, several times over.
    """
    layers = value_layers(pipe)

    def silence(mask: torch.Tensor):
        def hook(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            if len(output) % len(mask):
                raise ValueError(f"neurons of {len(mask)} prompts do not fit a UNet call on {len(output)} rows.")
            return output.masked_fill(mask.repeat(len(output) // len(mask), 1)[:, None], 0)

        return hook

    handles = [layers[name].register_forward_hook(silence(mask)) for name, mask in neurons.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class ValueStatistics:
    """What the value neurons, and the memorization score, are on prompts that are not memorized.

    Attributes:
        mean, std: activation, layer name to (neurons,).
        score_mean, score_std: memorization score.
    """

    mean: dict[str, torch.Tensor]
    std: dict[str, torch.Tensor]
    score_mean: float
    score_std: float


def _activations(pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Mean absolute activation over the prompt's tokens, layer to (prompts, neurons). It depends on the text alone."""
    with torch.no_grad():
        context = pipe.encode_prompt(list(prompts), pipe.device, 1, False)[0]
        return {name: layer(context).float().abs().mean(1) for name, layer in value_layers(pipe).items()}


def memorization_score(pipe: StableDiffusionPipeline, prompts: Sequence[str], batch_size: int = 16) -> torch.Tensor:
    """Length of the text's share of the noise predicted first, mean over two seeds, shape (prompts,).

    NeMo compares the first step's change between seeds by SSIM, whose windows do not fit small latents, and a cosine in its
    place tells memorized captions of the embedded model from others less well (AUC 0.83) than this score of Wen et al. (0.95).
    """
    return torch.from_numpy(first_step_scores(pipe, prompts, seeds=2, batch_size=2 * batch_size)["text magnitude"])


def value_statistics(pipe: StableDiffusionPipeline, prompts: Sequence[str], batch_size: int = 16) -> ValueStatistics:
    """What the value neurons do on prompts that are not memorized.

    Raises:
        ValueError: fewer than two prompts.
    """
    if len(prompts) < 2:
        raise ValueError(f"statistics need two prompts or more; got {len(prompts)}.")
    activations = _activations(pipe, prompts)
    scores = memorization_score(pipe, prompts, batch_size)
    return ValueStatistics(
        {name: a.mean(0) for name, a in activations.items()},
        {name: a.std(0).clamp_min(1e-8) for name, a in activations.items()},
        float(scores.mean()),
        float(scores.std()),
    )


def find_value_neurons(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    statistics: ValueStatistics,
    *,
    spread: float = 1.0,
    z: float = 5.0,
    z_step: float = 0.25,
    z_min: float = 1.0,
) -> Neurons:
    """The value neurons that carry each memorized prompt (NeMo, Hintersdorf et al., NeurIPS 2024, section 4).

    First selection: neurons whose activation is out of distribution by `z` deviations; z falls until silencing them brings the
    memorization score under a threshold. Refinement: a layer, then a neuron, is left out if the score stays under the threshold
    without it (here also parts of a layer, half as large at each round, which finds the same with fewer calls). All
    prompts are searched at once, each by itself; a prompt whose score is under the threshold has no neurons.

    Args:
        spread: the threshold in deviations of the score above its mean on prompts that are not memorized (NeMo: 1). Smaller
            silences more.
    """
    activations = _activations(pipe, prompts)
    deviation = {n: (a - statistics.mean[n]).abs() / statistics.std[n] for n, a in activations.items()}
    threshold = statistics.score_mean + spread * statistics.score_std
    found = {n: torch.zeros_like(d, dtype=torch.bool) for n, d in deviation.items()}

    def memorized(rows: torch.Tensor, neurons: Neurons) -> torch.Tensor:
        """Which of `rows` score over the threshold without `neurons`, (rows, neurons) a layer."""
        if not len(rows):
            return torch.zeros(0, dtype=torch.bool)
        with deactivated(pipe, neurons):
            return memorization_score(pipe, [prompts[i] for i in rows], len(rows)) > threshold

    def leave_out(name: str, rows: torch.Tensor, neurons: slice) -> None:
        """Takes these neurons of one layer back for prompts that do not need them silenced."""
        without = {n: m[rows] for n, m in found.items()}
        without[name][:, neurons] = False
        unneeded = ~memorized(rows, without)
        found[name][rows[unneeded]] = without[name][unneeded]

    everything = torch.arange(len(prompts))
    over = everything[memorized(everything, {})]
    first = over
    while len(over):
        for name, d in deviation.items():
            found[name][over] = d[over] > z
        over = over[memorized(over, {n: m[over] for n, m in found.items()})]
        if z <= z_min:
            break
        z -= z_step
    refined = first[~torch.isin(first, over)]  # of prompts that stay over the threshold every neuron is needed
    widest = max(mask.shape[1] for mask in found.values())
    for halvings in range((widest - 1).bit_length() + 1):  # whole layers, half layers, ..., neurons: few are needed
        for name, mask in found.items():
            size = -(-mask.shape[1] // 2**halvings)
            for start in range(0, mask.shape[1], size):
                rows = refined[mask[refined, start : start + size].any(1)]
                if len(rows):
                    leave_out(name, rows, slice(start, start + size))
    return found


def draw_without_value_neurons(
    draw: Draw,
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    statistics: ValueStatistics,
    *,
    seeds: Sequence[int],
    spread: float = 1.0,
    z_min: float = 1.0,
    batch_size: int = 16,
) -> np.ndarray:
    """Finds and silences each prompt's neurons before drawing it.

    Returns:
        uint8, shape (prompts, height, width, 3).
    """
    images = []
    size = batch_size if processes() == 1 else 1  # a share of a batch would not know which neurons are its own
    for i in range(0, len(prompts), size):
        part = prompts[i : i + size]
        with deactivated(pipe, find_value_neurons(pipe, part, statistics, spread=spread, z_min=z_min)):
            images.append(draw(part, seeds=seeds[i : i + size]))
    return np.concatenate(images)
