"""Column norms of the inputs of a network's second feed-forward maps (METHOD, steps 1 and 2).

    stats = capture(pipe, prompts)                                      # one group, "all"
    stats = capture(pipe, prompts, groups={"A": [0, 1], "B": [1, 2]})   # one pass, any number of groups
    stats.norms("A")["down_blocks.0.attentions.0..."]                   # a_j: (steps, neurons)

Let H be the input of `ff.net.2`, one row a token. Rows are scaled to unit length, and a_j is the norm of column j over
all tokens of all prompts: a_j = sqrt(sum_p sum_n h_nj^2). Only the sums of squares are kept: they add up over prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from tqdm.auto import tqdm

from .denoiser import Denoiser, Pipeline, as_denoiser, ended_after, fingerprint, to_host
from .distributed import is_main, rank, shard, summed, wait
from .files import load_tensors, save_artifact
from .generation import check_request, chosen, initial_noise

TINY = torch.finfo(torch.float32).tiny
PART = 2**22
"""Activations that are squared at a time on a CPU: bounds what capture needs besides sampling to tens of megabytes."""


@dataclass
class ActivationStats:
    """Sums of squares of unit-row activations for groups of prompts.

    Attributes:
        sums: layer name to float32 (groups, steps, neurons), layers in execution order.
        counts: group name to its number of prompts; the order is that of the first axis of `sums`.
        provenance: model fingerprint, steps, first, guidance scale, seed, sampler, cfg_half. Equal in stats that add.
        prompts: sha256 of the prompts of each part that was added up.
    """

    sums: dict[str, torch.Tensor]
    counts: dict[str, int]
    provenance: dict
    prompts: list[str]

    def norms(self, group: str | None = None) -> dict[str, torch.Tensor]:
        """Root mean square over the group's prompts, layer to (steps, neurons): a_j / sqrt(m).

        So sets of any size compare. Raises KeyError if there is no such group, or several and none is named.
        """
        row = self._row(group)
        return {layer: (s[row] / list(self.counts.values())[row]).sqrt() for layer, s in self.sums.items()}

    def only(self, group: str | None = None, steps: int | None = None) -> ActivationStats:
        """The statistics of one group, at the first steps; raises KeyError as `norms`."""
        row = self._row(group)
        sums = {layer: s[row : row + 1, :steps] for layer, s in self.sums.items()}
        name, made = list(self.counts)[row], self.provenance | ({"first": steps} if steps else {})
        return ActivationStats(sums, {name: self.counts[name]}, made, [*self.prompts, name])

    def _row(self, group: str | None) -> int:
        name = next(iter(self.counts)) if group is None and len(self.counts) == 1 else group
        if name not in self.counts:
            raise KeyError(f"no group {group!r} in these statistics; they hold: {', '.join(self.counts)}.")
        return list(self.counts).index(name)

    def __add__(self, other: ActivationStats) -> ActivationStats:
        """Statistics of both, made the same way: groups of one name add up, others stand side by side."""
        self.check_made_like(other)
        names = list(dict.fromkeys([*self.counts, *other.counts]))
        sums = {}
        for layer, mine in self.sums.items():
            sums[layer] = mine.new_zeros(len(names), *mine.shape[1:])
            for part in (self, other):
                sums[layer][[names.index(n) for n in part.counts]] += part.sums[layer]
        counts = {n: self.counts.get(n, 0) + other.counts.get(n, 0) for n in names}
        return ActivationStats(sums, counts, self.provenance, self.prompts + other.prompts)

    def check_made_like(self, other: ActivationStats) -> None:
        """Raises ValueError naming what differs if the two were made from different models or in different ways."""
        pairs = {k: (self.provenance.get(k), other.provenance.get(k)) for k in self.provenance | other.provenance}
        if told := [f"{k}: {ours!r} and {theirs!r}" for k, (ours, theirs) in pairs.items() if ours != theirs]:
            raise ValueError(f"these statistics were made differently: {'; '.join(told)}.")

    def check(self) -> None:
        """Raises FloatingPointError naming the first step and layer at which a sum is NaN or infinite."""
        bad = {layer: (~torch.isfinite(s)).any(2).any(0) for layer, s in self.sums.items()}  # (steps,)
        for step in range(len(next(iter(bad.values())))):
            if layers := [layer for layer, steps in bad.items() if steps[step]]:
                told = f"activations of layer {layers[0]} are not finite at step {step}"
                raise FloatingPointError(f"{told}; try another dtype, such as bfloat16 or float32.")

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file with everything in it, atomically."""
        about = {"counts": self.counts, "provenance": self.provenance, "prompts": self.prompts}
        save_artifact(self.sums, path, "ActivationStats", about)

    @classmethod
    def load(cls, path: str | Path) -> ActivationStats:
        """Reads what `save` wrote; raises FileNotFoundError or ValueError for another file."""
        tensors, about = load_tensors(path, "ActivationStats")
        sums = {name: tensors[name] for name in about["provenance"]["layers"]}
        return cls(sums, about["counts"], about["provenance"], about["prompts"])


def unit_squares(hidden: torch.Tensor) -> torch.Tensor:
    """Squares of rows scaled to unit length, summed over tokens: (rows, tokens, neurons) to float32 (rows, neurons)."""
    if hidden.device.type != "cpu":
        return _unit_squares_there(hidden)
    found = []
    for part in hidden.split(max(1, PART // hidden[0].numel())):
        squares = part.float().square()
        inverse = squares.sum(-1).clamp_min_(TINY).reciprocal_()  # a zero row stays zero
        found.append(torch.bmm(inverse[:, None], squares)[:, 0])
    return torch.cat(found)


def _unit_squares_there(hidden: torch.Tensor) -> torch.Tensor:
    """The same on a GPU, where memory takes the time: two passes in the model's own dtype, whose sums are float32."""
    unit = torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=TINY)
    return torch.linalg.vector_norm(unit, dim=1, dtype=torch.float32).square() / hidden.shape[-1]


@contextmanager
def _hooked(denoiser: Denoiser, weights: torch.Tensor, sums: dict[str, torch.Tensor]) -> Iterator[None]:
    """While open, the activations of one batch's network calls are added to `sums`, which lie on the CPU.

    Only one call's (rows, neurons) are kept on the device, and copied once a call, while the next one is computed.
    `weights` says how often each row of a call counts for each group: (groups, rows).
    """
    step, widths = -1, [s.shape[2] for s in sums.values()]
    pending: dict[str, torch.Tensor] = {}
    sent: list[tuple[int, Callable[[], torch.Tensor]]] = []  # one call's, or none

    def flush() -> None:
        for call, received in sent:
            for s, part in zip(sums.values(), (weights @ received()).split(widths, 1), strict=True):
                s[:, call] += part
        sent[:] = [(step, to_host(torch.cat([pending.pop(layer) for layer in sums], 1)))] if pending else []

    def next_step(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal step
        flush()
        step += 1
        if step >= (calls := next(iter(sums.values())).shape[1]):
            raise RuntimeError(f"the sampler made more than the {calls} calls that were expected.")

    def add(layer: str, hidden: torch.Tensor) -> None:
        pending[layer] = unit_squares(hidden.detach().flatten(1, -2))  # (rows, tokens, neurons)

    handles = [denoiser.network.register_forward_pre_hook(next_step, with_kwargs=True)]
    handles += [m.register_forward_pre_hook(lambda _, x, n=n: add(n, x[0])) for n, m in denoiser.layers().items()]
    try:
        yield
        flush()
        flush()  # the last call's
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def capture(
    pipe: Pipeline,
    prompts: Sequence[str] | torch.Tensor,
    *,
    groups: Mapping[str, Sequence[int]] | None = None,
    steps: int = 50,
    first: int | None = None,
    guidance_scale: float = 7.5,
    seed: int = 0,
    cfg_half: Literal["both", "cond"] = "both",
    batch_size: int = 16,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> ActivationStats:
    """Samples each prompt once, all from the noise of `seed`, and sums its activations into every group that holds it.

    Under `accelerate launch` the processes share out the prompts.

    Args:
        prompts: captions, or their embeddings (prompts, tokens, width).
        groups: name to indices of prompts; default one group "all". A prompt may be in any number of groups.
        first: sampling ends after so many of the steps: all that an edit needs which unites as many.
        cfg_half: sum both halves of a guided call (as the paper's code does), or the conditional one alone.
        checkpoint: a file written after every batch (and the process' number), from which a killed capture goes on.

    Raises:
        ValueError: no prompts, a group that is empty or names others, an option out of bounds, another's checkpoint.
        FloatingPointError: activations that are not finite; names layer and step.
    """
    prompts = prompts if isinstance(prompts, torch.Tensor) else list(prompts)
    members = {name: list(indices) for name, indices in (groups or {"all": range(len(prompts))}).items()}
    _check(prompts, members, cfg_half, steps, batch_size, first)
    denoiser = as_denoiser(pipe)
    membership = torch.stack([torch.bincount(torch.tensor(m), minlength=len(prompts)) for m in members.values()])
    stats = _empty(denoiser, prompts, members, steps, first, guidance_scale, seed, cfg_half)
    mine = shard(range(len(prompts)))  # one process: all of them
    checkpoint = Path(f"{checkpoint}.{rank()}") if checkpoint else None
    done = _resume(stats, checkpoint)
    bar = tqdm(total=len(mine), initial=done, desc="capturing", unit="prompt", disable=not (progress and is_main()))
    with bar:
        for start in range(done, len(mine), batch_size):
            part = list(mine[start : start + batch_size])
            prompt, conditional = denoiser.call_rows(len(part), guidance_scale)
            weights = membership[:, part][:, prompt] * (conditional | (cfg_half == "both"))
            noise = initial_noise(denoiser, [seed] * len(part))
            with _hooked(denoiser, weights.float(), stats.sums), ended_after(denoiser, first):
                denoiser.sample(chosen(prompts, part), noise, steps, guidance_scale)
            bar.update(len(part))
            if checkpoint:
                stats.check()
                replace(stats, prompts=[*stats.prompts, str(start + len(part))]).save(checkpoint)
    stats.sums = {name: summed(s.to(denoiser.device)).cpu() for name, s in stats.sums.items()}
    stats.check()
    if checkpoint:
        wait()  # a process that is lost before all have summed is redone alone, the others' shards are still there
        checkpoint.unlink(missing_ok=True)
    return stats


def _empty(denoiser, prompts, groups, steps, first, guidance_scale, seed, cfg_half) -> ActivationStats:
    layers, calls = denoiser.layers(), first or denoiser.calls(steps)
    how = {"steps": steps, "first": first, "guidance_scale": float(guidance_scale), "seed": seed, "cfg_half": cfg_half}
    made = {"sampler": type(denoiser.scheduler).__name__, "diffusers": version("diffusers")}
    network = {"model": fingerprint(denoiser), "layers": list(layers), "dtype": str(denoiser.dtype)}
    told = prompts if isinstance(prompts, list) else prompts.tolist()
    digest = hashlib.sha256(json.dumps([told, groups]).encode()).hexdigest()
    sums = {name: torch.zeros(len(groups), calls, linear.in_features) for name, linear in layers.items()}
    counts = {name: len(members) for name, members in groups.items()}
    return ActivationStats(sums, counts, network | how | made, [digest])


def _check(prompts: list[str] | torch.Tensor, groups: dict, cfg_half: str, steps: int, batch_size: int, first) -> None:
    check_request(prompts, steps, batch_size, first)
    if cfg_half not in ("both", "cond"):
        raise ValueError(f"cfg_half must be 'both' or 'cond'; got {cfg_half!r}.")
    for name, members in groups.items():
        if not len(members):
            raise ValueError(f"group {name!r} holds no prompts.")
        if outside := [i for i in members if not 0 <= i < len(prompts)]:
            raise ValueError(f"group {name!r} names prompt {outside[0]}, but there are {len(prompts)}.")


def _resume(stats: ActivationStats, checkpoint: Path | None) -> int:
    """Adds what a killed capture had summed, and returns how many prompts that covers."""
    if checkpoint is None or not checkpoint.is_file():
        return 0
    saved = ActivationStats.load(checkpoint)
    if (saved.provenance, saved.counts, saved.prompts[0]) != (stats.provenance, stats.counts, stats.prompts[0]):
        raise ValueError(f"{checkpoint} is the checkpoint of another capture; remove it, or name another file.")
    for name, s in saved.sums.items():
        stats.sums[name] += s
    return int(saved.prompts[1])
