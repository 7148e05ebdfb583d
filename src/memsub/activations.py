"""How strongly a set of prompts drives each feed-forward neuron (METHOD, steps 1 and 2).

    >>> stats = capture(pipe, prompts, steps=3)                                     # one group, "all"
    >>> stats = capture(pipe, prompts, groups={"A": [0, 1], "B": [1]}, steps=3)     # one pass, any number of groups
    >>> stats.norms("A")["mid_block.attentions.0.transformer_blocks.0.ff.net.2"].shape      # a_j: (steps, neurons)
    torch.Size([3, 64])

H is the input of a layer's second linear map `ff.net.2`, one row a token. Each row is scaled to unit length, and a_j
is the norm of column j over all tokens of all prompts of a set: a_j(P) = sqrt(sum_p sum_n h_nj^2). Only the sums of
squares are kept. They add up over batches, prompts, processes and machines: one pass of sampling fills every group.

A "step" of statistics, masks and edits is a network call. Most samplers make one a step; PNDM makes more.

Shapes in this file:

    B   rows of a network call: a prompt each, or two under guidance, the unconditional half first
    T   tokens of a row: what the layer sees of one image, 64 x 64 of them in the first layers of SD1.4
    f   neurons of a layer; F: of all layers together
    G   groups of prompts
    C   network calls that are captured of one sampling: the steps t of METHOD

    membership      (G, prompts), how often each prompt is in each group
    row_counts      (G, B), the same for each row of a network call, by its prompt; 0 where `cfg_half` leaves it out
    squares         (B, F), h_nj^2 summed over the tokens of a row; sums[:, call] = row_counts @ squares
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from tqdm.auto import tqdm

from .io.distributed import is_main, processes, rank, shard, summed, wait
from .io.files import as_written, load_tensors, save_artifact
from .models import (
    Conditioning,
    Denoiser,
    Pipeline,
    as_denoiser,
    as_prompts,
    check_deterministic,
    check_request,
    chosen,
    ended_after,
    fingerprint,
    initial_noise,
    to_host,
)

SMALLEST = torch.finfo(torch.float32).tiny
PART = 2**22
"""Activations that are squared at a time on a CPU: bounds what capture needs besides sampling to tens of megabytes."""
_UNCOMPILED = "load the pipeline again without `torch.compile`"


# --- the statistics ---------------------------------------------------------------------------------------------------


@dataclass
class ActivationStats:
    """Sums of squares of unit-row activations for groups of prompts.

    Attributes:
        sums: layer name to float32 (G, C, f), layers in execution order.
        counts: group name to its number of prompts; the order is that of the first axis of `sums`.
        provenance: what made them, equal in statistics that add: model (its fingerprint), layers, dtype; steps, first,
            guidance_scale, seed, cfg_half (as given to `capture`); sampler (its class), diffusers (its version).
        prompts: sha256 of the prompts of each part that was added up.
    """

    sums: dict[str, torch.Tensor]
    counts: dict[str, int]
    provenance: dict
    prompts: list[str]

    def norms(self, group: str | None = None) -> dict[str, torch.Tensor]:
        """Root mean square over a group's prompts, layer name to (C, f): METHOD's a_j / sqrt(|P|).

        Dividing by the number of prompts makes sets of any size comparable. So the empty prompt needs to be sampled
        once, not |P| times: repeated under the same noise it would give the same mean. (With
        `cfg_half="both"` the sum has two rows a prompt and is divided by one, for prompts and contrast alike.)

        Raises:
            KeyError: there is no such group, or there are several and none is named.
        """
        index = self._group_index(group)
        prompts = list(self.counts.values())[index]
        return {layer: (sums[index] / prompts).sqrt() for layer, sums in self.sums.items()}

    def only(self, group: str | None = None, steps: int | None = None) -> ActivationStats:
        """One group, at the first steps; raises KeyError as `norms`, and ValueError if fewer steps were captured."""
        index = self._group_index(group)
        captured = next(iter(self.sums.values())).shape[1]
        if steps is not None and not 1 <= steps <= captured:
            raise ValueError(f"steps must lie between 1 and {captured}, the steps of these statistics; got {steps}.")
        sums = {layer: s[index : index + 1, :steps] for layer, s in self.sums.items()}
        name = list(self.counts)[index]
        provenance = self.provenance | ({"first": steps} if steps else {})
        return ActivationStats(sums, {name: self.counts[name]}, provenance, [*self.prompts, name])

    def _group_index(self, group: str | None) -> int:
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
                sums[layer][[names.index(name) for name in part.counts]] += part.sums[layer]
        counts = {name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in names}
        return ActivationStats(sums, counts, self.provenance, self.prompts + other.prompts)

    def check_made_like(self, other: ActivationStats) -> None:
        """Raises ValueError naming what differs if the two were made from different models or in different ways."""
        mine, theirs = self.provenance, other.provenance
        differences = [
            f"{key}: {mine.get(key)!r} and {theirs.get(key)!r}"
            for key in mine | theirs
            if mine.get(key) != theirs.get(key)
        ]
        if differences:
            raise ValueError(f"these statistics were made differently: {'; '.join(differences)}.")

    def check_finite(self) -> None:
        """Raises FloatingPointError naming the first step and layer at which a sum is NaN or infinite."""
        bad = {layer: (~torch.isfinite(sums)).any(2).any(0) for layer, sums in self.sums.items()}  # (C,) each
        for step in range(len(next(iter(bad.values())))):
            if layers := [layer for layer, steps in bad.items() if steps[step]]:
                raise FloatingPointError(
                    f"activations of layer {layers[0]} are not finite at step {step}; try another dtype, such as "
                    "bfloat16 or float32."
                )

    def check(self) -> None:
        """Raises FloatingPointError as `check_finite`, and RuntimeError if there is nothing in these statistics."""
        self.check_finite()
        if not any(sums.any() for sums in self.sums.values()):
            raise RuntimeError(
                "all sums of this capture are zero: no activation was seen, so that nothing can be located. If the "
                f"network is compiled, {_UNCOMPILED}."
            )

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file with everything in it, atomically."""
        about = {"counts": self.counts, "provenance": self.provenance, "prompts": self.prompts}
        save_artifact(self.sums, path, "ActivationStats", about)

    @classmethod
    def load(cls, path: str | Path) -> ActivationStats:
        """Reads what `save` wrote; raises FileNotFoundError or ValueError for another file."""
        tensors, about = load_tensors(path, "ActivationStats")
        with as_written(path, "ActivationStats"):
            sums = {layer: tensors[layer] for layer in about["provenance"]["layers"]}  # a file keeps no order
            counts, axes = about["counts"], {s.shape[:2] for s in sums.values()}
            if {type(n) for n in counts.values()} != {int} or min(counts.values()) < 1 or len(axes) != 1:
                raise ValueError("its groups need a count each, and its layers the same groups and steps.")
            if any(s.dtype != torch.float32 or s.ndim != 3 or len(s) != len(counts) for s in sums.values()):
                raise ValueError("its sums must be float32 of shape (groups, steps, neurons).")
            return cls(sums, counts, about["provenance"], [str(digest) for digest in about["prompts"]])


# --- from activations to sums -----------------------------------------------------------------------------------------


def unit_squares(hidden: torch.Tensor) -> torch.Tensor:
    """Squares of token rows scaled to unit length, summed over tokens: (B, T, f) to float32 (B, f).

    A token row h has h_j^2 / |h|^2 in column j. Summing that over tokens is a product of matrices, of 1 / |h|^2 (one a
    token) with the squares, which needs no scaled copy of the activations.
    """
    if hidden.device.type != "cpu":
        return _unit_squares_on_device(hidden)
    sums = []
    for rows in hidden.split(max(1, PART // hidden[0].numel())):
        squares = rows.float().square()
        inverse = squares.sum(-1).clamp_min_(SMALLEST).reciprocal_()  # a zero row stays zero
        sums.append(torch.bmm(inverse[:, None], squares)[:, 0])
    return torch.cat(sums)


def _unit_squares_on_device(hidden: torch.Tensor) -> torch.Tensor:
    """The same on a GPU, where memory takes the time: two passes in the model's own dtype, whose sums are float32."""
    # rms_norm scales to length sqrt(f), which keeps half-precision numbers away from zero; hence the division by f.
    unit = torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=SMALLEST)
    return torch.linalg.vector_norm(unit, dim=1, dtype=torch.float32).square() / hidden.shape[-1]


class BatchSums:
    """The sums of one batch of prompts, filled by hooks while it is sampled.

    `begin_call` before each network call, `add` from every layer within it, `finish` after the last one. The sums come
    out only there: a batch that fails half way leaves no trace in the statistics.

    Args:
        widths: layer name to its neurons f, in execution order.
        row_counts: float32 (G, B), how often each row of a network call counts for each group.
        calls: network calls C that will be made.
    """

    def __init__(self, widths: Mapping[str, int], row_counts: torch.Tensor, calls: int):
        self.widths, self.row_counts, self.calls = dict(widths), row_counts, calls
        self.sums = torch.zeros(len(row_counts), calls, sum(widths.values()))  # (G, C, F), on the CPU
        self.call = -1
        self.squares: dict[str, torch.Tensor] = {}  # layer to (B, f) of the call that is being made, on its device
        self.times: Counter[str] = Counter()  # layer to how often it was called in it
        self.copying: tuple[int, Callable[[], torch.Tensor]] | None = None  # a call whose squares come to the host

    def begin_call(self) -> None:
        """The network is about to be called; raises RuntimeError if the call before was not as it must be."""
        self._end_call()
        self.call += 1
        if self.call >= self.calls:
            raise RuntimeError(f"the sampler made more than the {self.calls} calls that were expected.")

    def add(self, layer: str, hidden: torch.Tensor) -> None:
        """The input of a layer: (B, T, f), or with more axes of tokens."""
        self.times[layer] += 1
        self.squares[layer] = unit_squares(hidden.detach().flatten(1, -2))

    def finish(self) -> dict[str, torch.Tensor]:
        """Layer name to the batch's sums (G, C, f); raises RuntimeError as `begin_call`, and for too few calls."""
        self._end_call()
        self._receive()
        if self.call + 1 != self.calls:
            raise RuntimeError(
                f"{self.call + 1} network calls were seen, but {self.calls} were expected: either the sampler ended "
                f"early, or the network is compiled and calls no hooks. In that case {_UNCOMPILED}."
            )
        return dict(zip(self.widths, self.sums.split(list(self.widths.values()), 2), strict=True))

    def _end_call(self) -> None:
        """Begins to copy a call's squares to the host, which a GPU does while it computes the next call.

        So the host receives what it sent one call ago, and only one call's (B, F) lie on the device.
        """
        if self.call < 0:
            return
        self._check_call()
        self._receive()
        together = torch.cat([self.squares.pop(layer) for layer in self.widths], 1)  # one copy, not one a layer
        self.copying = (self.call, to_host(together))
        self.times.clear()

    def _receive(self) -> None:
        if self.copying is not None:
            call, received = self.copying
            self.sums[:, call] = self.row_counts @ received()  # (G, B) @ (B, F)
            self.copying = None

    def _check_call(self) -> None:
        """Refuses a call whose sums would be silently wrong.

        `add` keeps the last input of a layer, so of two chunks the first would be lost.
        """
        for layer in self.widths:
            if self.times[layer] != 1:
                raise RuntimeError(
                    f"layer {layer} was called {self.times[layer]} times in network call {self.call}, where capture "
                    "expects one call of every layer. Likely causes: feed-forward layers in chunks (undo it by "
                    "`set_chunk_feed_forward(None)` on the transformer blocks, or `disable_forward_chunking()`); "
                    "blocks that are cached or skipped (switch it off, `disable_cache()`); a compiled network "
                    f"({_UNCOMPILED})."
                )
            if len(self.squares[layer]) != self.row_counts.shape[1]:
                raise RuntimeError(
                    f"layer {layer} was called on {len(self.squares[layer])} rows in network call {self.call}, where "
                    f"{self.row_counts.shape[1]} were expected: the sampler splits its batches. Use `batch_size=1`, or "
                    "a sampler that calls the network once a step."
                )


@contextmanager
def hooked(denoiser: Denoiser, batch: BatchSums) -> Iterator[None]:
    """While open, the network and its layers report to `batch`; the hooks are gone afterwards, also by an exception."""
    handles = [denoiser.network.register_forward_pre_hook(lambda *_: batch.begin_call(), with_kwargs=True)]
    for name, linear in denoiser.layers().items():
        handles.append(linear.register_forward_pre_hook(lambda _, args, name=name: batch.add(name, args[0])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- capture ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def capture(
    pipe: Pipeline,
    prompts: Sequence[str] | Conditioning | torch.Tensor,
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
        prompts: captions, their `Conditioning`, or their embeddings (prompts, tokens, width).
        groups: name to indices of prompts, each counts as often as it stands there; default one group "all".
        first: sampling ends after so many network calls: enough for an edit that unites no more steps than that.
        cfg_half: sum both halves of a guided call (as the paper's code does), or the conditional one alone.
        checkpoint: a file (and "0-of-1": which process, of how many) written after every batch, to resume if killed.

    Raises:
        ValueError: no prompts, no groups, a group that is empty or names others, an option out of bounds, another's
            checkpoint, or a sampler that draws noise of its own.
        FloatingPointError: activations that are not finite; names layer and step.
        RuntimeError: a layer was not called exactly once in each network call; names layer, call and likely causes.
    """
    denoiser = as_denoiser(pipe)
    prompts = as_prompts(prompts, denoiser)
    groups = {"all": range(len(prompts))} if groups is None else groups
    members = {name: _indices(name, indices) for name, indices in groups.items()}
    how = {"steps": steps, "first": first, "guidance_scale": float(guidance_scale), "seed": seed, "cfg_half": cfg_half}
    _check(denoiser, prompts, members, how, batch_size)
    check_deterministic(denoiser)
    membership = torch.stack([torch.bincount(torch.tensor(m), minlength=len(prompts)) for m in members.values()])
    stats = _empty(denoiser, prompts, members, how)
    mine = shard(range(len(prompts)))  # one process: all of them
    checkpoint = Path(f"{checkpoint}.{rank()}-of-{processes()}") if checkpoint else None
    done = _resume(stats, checkpoint, len(mine))
    bar = tqdm(total=len(mine), initial=done, desc="capturing", unit="prompt", disable=not (progress and is_main()))
    with bar:
        for start in range(done, len(mine), batch_size):
            part = list(mine[start : start + batch_size])
            _add_batch(stats, denoiser, chosen(prompts, part), membership[:, part])
            bar.update(len(part))
            if checkpoint:
                stats.check_finite()
                # Beside the digest: of this process' prompts, how many are summed, and how many there are.
                replace(stats, prompts=[*stats.prompts, str(start + len(part)), str(len(mine))]).save(checkpoint)
    stats.sums = {name: summed(sums.to(denoiser.device)).cpu() for name, sums in stats.sums.items()}
    stats.check()
    if checkpoint:
        wait()  # a process that is lost before all have summed is redone alone, the others' shards are still there
        for share in checkpoint.parent.glob(f"{escape(checkpoint.stem)}.*-of-*") if is_main() else ():
            share.unlink(missing_ok=True)
    return stats


def _add_batch(
    stats: ActivationStats, denoiser: Denoiser, prompts: list[str] | Conditioning, membership: torch.Tensor
) -> None:
    """Samples some prompts and, when that has ended, adds their sums to the statistics.

    `membership` says how often each prompt counts for each group: (G, prompts).
    """
    how = stats.provenance
    prompt_of_row, conditional = denoiser.call_rows(len(prompts), how["guidance_scale"])  # both (B,)
    row_counts = membership[:, prompt_of_row] * (conditional | (how["cfg_half"] == "both"))  # (G, B)
    widths = {layer: sums.shape[2] for layer, sums in stats.sums.items()}
    batch = BatchSums(widths, row_counts.float(), next(iter(stats.sums.values())).shape[1])
    noise = initial_noise(denoiser, [how["seed"]] * len(prompts))
    with hooked(denoiser, batch), ended_after(denoiser, how["first"]):
        denoiser.sample(prompts, noise, how["steps"], how["guidance_scale"])
    for layer, sums in batch.finish().items():
        stats.sums[layer] += sums


def _empty(
    denoiser: Denoiser, prompts: list[str] | Conditioning, groups: dict[str, list[int]], how: dict
) -> ActivationStats:
    """Statistics of zeros, with what will have made them."""
    layers, calls = denoiser.layers(), how["first"] or denoiser.calls(how["steps"])
    network = {"model": fingerprint(denoiser), "layers": list(layers), "dtype": str(denoiser.dtype)}
    software = {"sampler": type(denoiser.scheduler).__name__, "diffusers": version("diffusers")}
    content = prompts if isinstance(prompts, list) else prompts.row_digests()
    digest = hashlib.sha256(json.dumps([content, groups]).encode()).hexdigest()
    sums = {name: torch.zeros(len(groups), calls, linear.in_features) for name, linear in layers.items()}
    counts = {name: len(members) for name, members in groups.items()}
    return ActivationStats(sums, counts, network | how | software, [digest])


def _indices(group: str, indices: Sequence[int]) -> list[int]:
    """The prompts of a group; raises ValueError for what counts no prompts, such as a mask or fractions."""
    given = list(indices) if isinstance(indices, Iterable) else [f"{indices!r} alone"]
    numbers = [i.tolist() if hasattr(i, "tolist") else i for i in given]  # of numpy or torch
    if wrong := [i for i in numbers if type(i) is not int]:
        raise ValueError(f"group {group!r} must be a list of whole numbers, indices of prompts; it holds {wrong[0]!r}.")
    return numbers


def _check(
    denoiser: Denoiser, prompts: list[str] | Conditioning, groups: dict[str, list[int]], how: dict, batch_size: int
) -> None:
    check_request(prompts, how["steps"], batch_size)
    calls, first = denoiser.calls(how["steps"]), how["first"]
    if first is not None and not 1 <= first <= calls:
        raise ValueError(f"first must lie between 1 and {calls}, the network calls of these steps; got {first}.")
    if not groups:
        raise ValueError("no groups: give one group or more, or None for one group of all prompts.")
    if how["cfg_half"] not in ("both", "cond"):
        raise ValueError(f"cfg_half must be 'both' or 'cond'; got {how['cfg_half']!r}.")
    for name, members in groups.items():
        if not members:
            raise ValueError(f"group {name!r} holds no prompts.")
        if outside := [i for i in members if not 0 <= i < len(prompts)]:
            raise ValueError(f"group {name!r} names prompt {outside[0]}, but there are {len(prompts)}.")


def _resume(stats: ActivationStats, checkpoint: Path | None, total: int) -> int:
    """Adds what a killed capture had summed, and returns how many prompts that covers of this process' `total`."""
    if checkpoint is None or not checkpoint.is_file():
        return 0
    saved = ActivationStats.load(checkpoint)
    digest, done, shard_size = (*saved.prompts, "", "", "")[:3]
    shapes = [{name: sums.shape for name, sums in each.sums.items()} for each in (saved, stats)]
    expected = (stats.provenance, stats.counts, stats.prompts[0], str(total))
    if (saved.provenance, saved.counts, digest, shard_size) != expected or shapes[0] != shapes[1]:
        raise ValueError(f"{checkpoint} is the checkpoint of another capture; remove it, or name another file.")
    if not (done.isdecimal() and int(done) <= total):
        raise ValueError(f"{checkpoint} does not say how many of {total} prompts it holds; remove it.")
    for name, sums in saved.sums.items():
        stats.sums[name] += sums
    return int(done)
