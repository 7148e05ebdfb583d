"""The rivals of pruning: they change the prompt, its embedding, or what is active, and leave the weights alone.

    generate(pipe, optimized_embeddings(pipe, prompts, target=...))      # Wen et al., ICLR 2024
    generate(pipe, add_random_tokens(pipe.tokenizer, prompts, k=2))      # Somepalli et al., NeurIPS 2023
    neurons = find_value_neurons(pipe, prompt, statistics)               # NeMo, Hintersdorf et al., NeurIPS 2024
    with deactivated(pipe, neurons): generate(pipe, [prompt])

Each costs something for every prompt, and none survives somebody who holds the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedTokenizerBase

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
) -> torch.Tensor:
    """Moves each prompt's embedding until the text hardly matters at the first step (Wen et al., ICLR 2024, section 4.2).

    AdamW on ||eps(x_T, prompt) - eps(x_T, empty)|| at the first step, for the noise that the image will start from; a prompt
    whose length falls to `target` or below is left where it is.

    Args:
        target: length to fall to. Smaller is stronger.
        seeds: as for `generate`.

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
    with torch.no_grad():
        embedding = pipe.encode_prompt(list(prompts), pipe.device, 1, False)[0].float()
        empty = pipe.encode_prompt("", pipe.device, 1, False)[0].expand_as(embedding)
    pipe.scheduler.set_timesteps(steps)
    t = pipe.scheduler.timesteps[0]
    x = pipe.scheduler.scale_model_input(initial_noise(pipe, seeds) * pipe.scheduler.init_noise_sigma, t)
    with torch.no_grad():
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
    return embedding.detach().to(pipe.unet.dtype)


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
"""Layer name to indices of its neurons."""


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
def deactivated(pipe: StableDiffusionPipeline, neurons: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """While open, these value neurons output zero."""
    layers = value_layers(pipe)

    def silence(indices: torch.Tensor):
        def hook(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[..., indices] = 0
            return output

        return hook

    handles = [layers[name].register_forward_hook(silence(i)) for name, i in neurons.items() if len(i)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class ValueStatistics:
    """Mean and deviation of each value neuron's activation over prompts that are not memorized.

    Attributes:
        mean, std: layer name to (neurons,).
        threshold: memorization score above which a prompt counts as memorized: mean plus one deviation of these prompts.
    """

    mean: dict[str, torch.Tensor]
    std: dict[str, torch.Tensor]
    threshold: float


def _activations(pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Mean absolute activation over the prompt's tokens, layer to (prompts, neurons). It depends on the text alone."""
    with torch.no_grad():
        context = pipe.encode_prompt(list(prompts), pipe.device, 1, False)[0]
        return {name: layer(context).float().abs().mean(1) for name, layer in value_layers(pipe).items()}


@torch.no_grad()
def memorization_score(
    pipe: StableDiffusionPipeline, prompts: Sequence[str], seeds: int = 4, steps: int = 50
) -> np.ndarray:
    """How alike the first step's changes to different noises are, shape (prompts,): near 1 if the model has its picture ready.

    Mean cosine between the eps(x_T) - x_T of every two seeds. NeMo takes SSIM, whose windows do not fit small latents.
    """
    context = pipe.encode_prompt(list(prompts), pipe.device, 1, False)[0].repeat_interleave(seeds, 0)
    x = initial_noise(pipe, list(range(seeds)) * len(prompts))
    pipe.scheduler.set_timesteps(steps)
    t = pipe.scheduler.timesteps[0]
    inputs = pipe.scheduler.scale_model_input(x * pipe.scheduler.init_noise_sigma, t)
    change = pipe.unet(inputs, t, encoder_hidden_states=context, return_dict=False)[0] - x
    change = change.float().view(len(prompts), seeds, -1)
    pairs = [cosine_similarity(change[:, i], change[:, j], dim=1) for i, j in combinations(range(seeds), 2)]
    return torch.stack(pairs).mean(0).cpu().numpy()


def value_statistics(pipe: StableDiffusionPipeline, prompts: Sequence[str]) -> ValueStatistics:
    """What the value neurons do on prompts that are not memorized.

    Raises:
        ValueError: fewer than two prompts.
    """
    if len(prompts) < 2:
        raise ValueError(f"statistics need two prompts or more; got {len(prompts)}.")
    activations = _activations(pipe, prompts)
    scores = memorization_score(pipe, prompts)
    return ValueStatistics(
        {name: a.mean(0) for name, a in activations.items()},
        {name: a.std(0).clamp_min(1e-8) for name, a in activations.items()},
        float(scores.mean() + scores.std()),
    )


def find_value_neurons(
    pipe: StableDiffusionPipeline,
    prompt: str,
    statistics: ValueStatistics,
    *,
    z: float = 5.0,
    z_step: float = 0.25,
    z_min: float = 1.0,
) -> Neurons:
    """The value neurons that carry one memorized prompt (NeMo, Hintersdorf et al., NeurIPS 2024, section 4).

    First selection: neurons whose activation is out of distribution by `z` deviations; z falls until deactivating them
    brings the memorization score under the threshold. Refinement: a layer, then a neuron, is left out if the score stays
    under the threshold without it.
    """
    activations = _activations(pipe, [prompt])
    deviation = {n: (a[0] - statistics.mean[n]).abs() / statistics.std[n] for n, a in activations.items()}

    def memorized_without(neurons: Neurons) -> bool:
        with deactivated(pipe, neurons):
            return bool(memorization_score(pipe, [prompt])[0] > statistics.threshold)

    if not memorized_without({}):
        return {}
    while True:
        found = {n: torch.nonzero(d > z)[:, 0] for n, d in deviation.items()}
        if z <= z_min or not memorized_without(found):
            break
        z -= z_step
    for name in list(found):  # whole layers first: most are not needed
        rest = {n: i for n, i in found.items() if n != name}
        if not memorized_without(rest):
            found = rest
    for name in list(found):
        for neuron in found[name].tolist():
            rest = found | {name: found[name][found[name] != neuron]}
            if not memorized_without(rest):
                found = rest
    return {n: i for n, i in found.items() if len(i)}


def draw_without_value_neurons(
    draw: Draw,
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    statistics: ValueStatistics,
    *,
    seeds: Sequence[int],
) -> np.ndarray:
    """Finds and silences each prompt's neurons before drawing it; prompts that don't count as memorized are drawn together.

    Returns:
        uint8, shape (prompts, height, width, 3).
    """
    images: dict[int, np.ndarray] = {}
    plain = []
    for i, prompt in enumerate(prompts):
        neurons = find_value_neurons(pipe, prompt, statistics)
        if not neurons:
            plain.append(i)
            continue
        with deactivated(pipe, neurons):
            images[i] = draw([prompt], seeds=[seeds[i]])[0]
    if plain:
        drawn = draw([prompts[i] for i in plain], seeds=[seeds[i] for i in plain])
        images |= dict(zip(plain, drawn, strict=True))
    return np.stack([images[i] for i in range(len(prompts))])
