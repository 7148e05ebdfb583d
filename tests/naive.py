"""A deliberately naive reference for capture and locate: float64 numpy, Python loops, nothing kept small."""

import numpy as np

from memsub.models import as_denoiser, initial_noise

GUIDANCE = 5.0


def naive_norms(pipe, prompts, cfg_half, steps):
    """a_j by layer, float64 (steps, neurons): keeps every activation, one prompt at a time."""
    squares = {}
    for prompt in prompts:
        kept = {name: [] for name in as_denoiser(pipe).layers()}
        handles = [
            linear.register_forward_hook(lambda m, args, out, store=kept[name]: store.append(args[0].double().numpy()))
            for name, linear in as_denoiser(pipe).layers().items()
        ]
        noise = initial_noise(pipe, [0])
        as_denoiser(pipe).sample([prompt], noise, steps, GUIDANCE)
        for handle in handles:
            handle.remove()
        for name, calls in kept.items():
            for step, hidden in enumerate(calls):
                for row in hidden if cfg_half == "both" else hidden[1:]:
                    for token in row:
                        length = np.linalg.norm(token)
                        unit = token / length if length > 0 else token
                        squares[name, step] = squares.get((name, step), 0) + unit**2
    return {name: np.sqrt([squares[name, step] for step in range(steps)]) for name in as_denoiser(pipe).layers()}


def naive_mask(weight, norms, null_norms, sparsity):
    """Boolean (d, f) of one step, by a full sort of each row."""
    mask = np.zeros(weight.shape, bool)
    k = max(1, int(np.floor(sparsity * weight.shape[1])))
    for i, row in enumerate(np.abs(weight)):
        for j in np.argsort(-row * norms, kind="stable")[:k]:
            mask[i, j] = row[j] * norms[j] > row[j] * null_norms[j]
    return mask


def is_tie(weight, norms, null_norms, sparsity, i, j):
    """Whether weight (i, j) lies on the edge of the top k, or prompts and contrast agree, to float32 accuracy."""
    importance = np.abs(weight[i]) * norms
    k = max(1, int(np.floor(sparsity * weight.shape[1])))
    edge = np.sort(importance)[::-1][k - 1 : k + 1]
    near_edge = np.abs(importance[j] - edge).min() < 1e-5 * importance[j]
    return near_edge or abs(norms[j] - null_norms[j]) < 1e-5 * norms[j]
