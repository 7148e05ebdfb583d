"""How strongly a set of prompts drives each feed-forward neuron (METHOD, steps 1 and 2).

    >>> stats = capture(pipe, prompts, steps=3)                                     # one group, "all"
    >>> stats = capture(pipe, prompts, groups={"A": [0, 1], "B": [1]}, steps=3)     # one pass, any number of groups
    >>> stats.norms("A")["mid_block.attentions.0.transformer_blocks.0.ff.net.2"].shape      # a_j: (steps, neurons)
    torch.Size([3, 64])

H is the input of a layer's second linear map `ff.net.2`, one row a token. Each row is scaled to unit length, and a_j
is the norm of column j over all tokens of all prompts of a set: a_j(P) = sqrt(sum_p sum_n h_nj^2). Only the sums of
squares are stored. Sums of batches, prompts and processes add up, so one pass of sampling fills every group.

A "step" of statistics, masks and edits is one network call. Most samplers make one call a step; PNDM makes one call
more than steps. Heun and KDPM2 (second order) make two calls a step, and the squares of both are added up.

Shapes in this file:

    B   rows of a network call: a prompt each, or two under guidance, the unconditional half first
    T   tokens of a row: the positions of one image at the layer's resolution, 64 x 64 in the first layers of SD1.4
    f   neurons of a layer; F: neurons of all layers together
    G   groups of prompts
    C   captured steps t of one sampling: network calls, or pairs of calls for samplers of second order

    membership      (G, prompts), how often each prompt is in each group
    row_counts      (G, B), `membership` of the prompt of each row of a network call; 0 for rows that `cfg_half` omits
    squares         (B, F), h_nj^2 summed over the tokens of a row; sums[:, step] = row_counts @ squares
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from importlib.metadata import version
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from tqdm.auto import tqdm

from .io.distributed import is_main, processes, rank, shard, summed, wait
from .models import (
    as_denoiser,
    as_prompts,
    check_request,
    chosen,
    draws_noise,
    fingerprint,
    hooked,
    in_batches,
    initial_noise,
    is_of_weight,
    one_seed_each,
    row_generators,
    sampler_fingerprint,
    to_host,
)

if TYPE_CHECKING:
    from .models import Conditioning, Denoiser, Joint, Pipeline

SMALLEST = torch.finfo(torch.float32).tiny
PART = 2**22
"""Activations squared at a time on a CPU, so that capture needs tens of megabytes more memory than sampling."""


# --- the statistics ---------------------------------------------------------------------------------------------------


@dataclass
class ActivationStats:
    """Sums of squares of unit-row activations for groups of prompts.

    Attributes:
        sums: layer name to float32 (G, C, f), layers in execution order.
        counts: group name to its number of prompts, in the order of the first axis of `sums`.
        provenance: how they were made: model (its fingerprint), layers, dtype; steps, first, guidance_scale, seed and
            cfg_half (as given to `capture`); sampler (its class), diffusers (its version). `+` requires equal ones.
        prompts: sha256 of the prompts of each summand.
    """

    sums: dict[str, torch.Tensor]
    counts: dict[str, int]
    provenance: dict
    prompts: list[str]

    def norms(self, group: str | None = None) -> dict[str, torch.Tensor]:
        """Root mean square over a group's prompts, layer name to (C, f): METHOD's a_j / sqrt(|P|).

        Dividing by the number of prompts makes sets of different sizes comparable. The empty prompt is therefore
        sampled once, not |P| times: the same noise would give the same mean. With `cfg_half="both"` the sum of two
        rows is divided by one prompt, for the prompts and for the contrast.

        Raises:
            KeyError: there is no such group, or there are several groups and none is named.
        """
        index = self._group_index(group)
        prompts = list(self.counts.values())[index]
        return {layer: (sums[index] / prompts).sqrt() for layer, sums in self.sums.items()}

    def only(self, group: str | None = None, steps: int | None = None) -> ActivationStats:
        """One group at its first steps; raises KeyError like `norms`, and ValueError if fewer steps were captured."""
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
        """Joins statistics that were made the same way (else ValueError). Groups with the same name add up."""
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
        """Raises ValueError if the two differ in provenance; the message names what differs."""
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
        """Raises FloatingPointError like `check_finite`, and RuntimeError if all sums are zero."""
        self.check_finite()
        if not any(sums.any() for sums in self.sums.values()):
            raise RuntimeError(
                "all sums of this capture are zero: no activation was seen, so that nothing can be located. Load the "
                "pipeline again, in another dtype."
            )

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file with everything in it, atomically."""
        from .io.files import save_artifact

        about = {"counts": self.counts, "provenance": self.provenance, "prompts": self.prompts}
        save_artifact(self.sums, path, "ActivationStats", about)

    @classmethod
    def load(cls, path: str | Path) -> ActivationStats:
        """Reads a file that `save` wrote; raises FileNotFoundError, or ValueError for any other file."""
        from .io.artifacts import statistics_parts

        return cls(*statistics_parts(path))


# --- from activations to sums -----------------------------------------------------------------------------------------


@torch.autocast("cpu", enabled=False)  # sums are float32, whatever the network computes in
def unit_squares(hidden: torch.Tensor) -> torch.Tensor:
    """Squares of token rows scaled to unit length, summed over tokens: (B, T, f) to float32 (B, f).

    A scaled token row h has the squares h_j^2 / |h|^2. Their sum over tokens is the matrix product of 1 / |h|^2 (one
    number a token) and the squares h_j^2, so no scaled copy of the activations is made.
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
    """The same on a GPU, where memory traffic is the bottleneck: two passes in the model's dtype, sums in float32."""
    # rms_norm scales rows to length sqrt(f), so that half precision does not underflow; hence the division by f.
    unit = torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=SMALLEST)
    return torch.linalg.vector_norm(unit, dim=1, dtype=torch.float32).square() / hidden.shape[-1]


class BatchSums:
    """The sums of one batch of prompts; hooks fill them while the batch is sampled.

    Call `begin_call` before each network call, `add` for every layer during it, `end_call` after it, and `finish` after
    the last call. Only `finish` returns the sums, so a batch that fails half way adds nothing to the statistics.

    Args:
        widths: layer name to its neurons f, in execution order.
        row_counts: float32 (G, B), how often each row of a network call counts for each group.
        calls: number of network calls of the sampling.
        order: network calls per step.
    """

    def __init__(self, widths: Mapping[str, int], row_counts: torch.Tensor, calls: int, order: int = 1):
        self.widths, self.row_counts, self.calls, self.order = dict(widths), row_counts, calls, order
        self.sums = row_counts.new_zeros(len(row_counts), -(-calls // order), sum(widths.values()))  # (G, C, F)
        self.call = -1
        self.squares: dict[str, list[torch.Tensor]] = {layer: [] for layer in widths}  # (B, f) of a call, or of parts
        self.copying: tuple[int, Callable[[], torch.Tensor]] | None = None  # a call whose squares come to the host
        self.compared: list[torch.Tensor] = []  # by layer, whether its output is that of its weight: on the device
        self.of_weights = torch.ones(len(self.widths), device="cpu")  # the same, on the host

    def begin_call(self) -> None:
        """Starts a network call; raises RuntimeError if there are more calls than `calls`."""
        self.call += 1
        self.squares = {layer: [] for layer in self.widths}
        if self.call >= self.calls:
            raise RuntimeError(
                f"more than the {self.calls} network calls that were expected: this pipeline calls its network several "
                "times a step, such as for parts of an image."
            )

    def add(self, layer: str, hidden: torch.Tensor) -> None:
        """The input of a layer: (B, T, f), or with more axes of tokens."""
        self.squares[layer].append(unit_squares(hidden.detach().flatten(1, -2)))

    def compare(self, layer: torch.nn.Linear, hidden: torch.Tensor, output: torch.Tensor) -> None:
        """Checks, in the first call only, that the output is the product with the layer's weight. `finish` raises."""
        if self.call == 0:
            self.compared.append(is_of_weight(layer, hidden, output))

    def end_call(self, joints: Mapping[str, Joint]) -> None:
        """Ends a network call; `joints` says how to join the parts of layers that were called in parts.

        Starts to copy the call's squares to the host while the GPU computes the next call. The host receives the
        squares one call later, so the device holds the (B, F) of one call only.
        """
        self._receive()
        parts = [_joined(self.squares[layer], joints.get(layer)) for layer in self.widths]
        if self.compared:
            parts.append(torch.stack(self.compared).float().expand(len(parts[0]), -1))
            self.compared = []
        self.copying = (self.call, to_host(torch.cat(parts, 1)))  # one copy, not one a layer

    def finish(self) -> dict[str, torch.Tensor]:
        """Layer name to the batch's sums (G, C, f); raises RuntimeError for missing calls or a failed `compare`."""
        self._receive()
        if self.call + 1 != self.calls:
            raise RuntimeError(
                f"{self.call + 1} network calls were seen, but {self.calls} were expected: either the sampler ended "
                "early, or the network is run by code that calls no hooks. In that case load the pipeline again "
                "without `torch.compile` or export."
            )
        if not self.of_weights.all():
            layer = list(self.widths)[int(self.of_weights.argmin())]
            raise RuntimeError(
                f"the output of layer {layer} is not that of its weight, so that an edit would not be one of the layer:"
                " fuse adapters (pipe.fuse_lora()), load it without offloading to disk, or take off what changes it."
            )
        return dict(zip(self.widths, self.sums.split(list(self.widths.values()), 2), strict=True))

    @torch.autocast("cpu", enabled=False)
    def _receive(self) -> None:
        if self.copying is not None:
            call, received = self.copying
            squares, compared = received().tensor_split([self.sums.shape[2]], 1)
            self.sums[:, call // self.order] += self.row_counts @ squares.contiguous()  # (G, B) @ (B, F)
            if compared.numel():
                self.of_weights = compared[0]
            self.copying = None


def _joined(parts: list[torch.Tensor], joint: Joint | None) -> torch.Tensor:
    """Squares (B, f) of a layer: those of its parts, joined."""
    if joint is None:
        return parts[0]
    return torch.cat(parts) if joint == "rows" else torch.stack(parts).sum(0)


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
    keep_checkpoint: bool = False,
    progress: bool = True,
) -> ActivationStats:
    """Samples each prompt once, all from the noise of `seed`, and adds its squares to every group that contains it.

    Under `accelerate launch` each process samples a share of the prompts.

    Args:
        prompts: captions, their `Conditioning`, or their embeddings (prompts, tokens, width).
        groups: name to indices of prompts; an index that occurs twice counts twice. Default: one group "all".
        first: stop sampling after this many steps. An edit that unites no more steps than these needs no others.
        batch_size: prompts per batch; it is halved whenever a batch does not fit into memory.
        cfg_half: sum both halves of a guided call (as the paper's code does), or the conditional half only.
        checkpoint: file written after every batch; a killed capture resumes from it. Each process adds "0-of-1" to it.
        keep_checkpoint: keep the file at the end instead of removing it; it then holds the whole capture.

    Raises:
        ValueError: no prompts, no groups, an empty group, an index beyond the prompts, an option out of bounds, the
            checkpoint of a different capture, or a sampler whose noise no seed fixes.
        FloatingPointError: an activation is not finite; the message names layer and step.
        RuntimeError: a layer was not called exactly once a network call, or does not multiply with its weight.
        MemoryError: a single prompt does not fit into memory.
    """
    denoiser = as_denoiser(pipe)
    prompts = as_prompts(prompts, denoiser)
    members = _members({"all": range(len(prompts))} if groups is None else groups)
    how = {"steps": steps, "first": first, "guidance_scale": guidance_scale, "seed": seed, "cfg_half": cfg_half}
    _check(denoiser, prompts, members, how, batch_size)
    draws_noise(denoiser)  # raises ValueError if no seed fixes the noise
    indices = [torch.tensor(m, device="cpu") for m in members.values()]
    membership = torch.stack([torch.bincount(of_group, minlength=len(prompts)) for of_group in indices])
    stats = _empty(denoiser, prompts, members, how)
    mine = shard(range(len(prompts)))  # one process: all of them
    checkpoint = Path(f"{checkpoint}.{rank()}-of-{processes()}") if checkpoint else None
    done = _resume(stats, checkpoint, len(mine))
    bar = tqdm(total=len(mine), initial=done, desc="capturing", unit="prompt", disable=not (progress and is_main()))
    with bar:
        add = lambda part: _add_batch(stats, denoiser, chosen(prompts, part), membership[:, part])  # noqa: E731
        for part, _ in in_batches(mine[done:], batch_size, add):
            done += len(part)
            bar.update(len(part))
            if checkpoint:
                _write_checkpoint(stats, checkpoint, done, len(mine))
    stats.sums = {name: summed(sums.to(denoiser.device)).cpu() for name, sums in stats.sums.items()}
    stats.check()
    if checkpoint and not keep_checkpoint:
        _remove_checkpoints(checkpoint)
    return stats


def _add_batch(
    stats: ActivationStats, denoiser: Denoiser, prompts: list[str] | Conditioning, membership: torch.Tensor
) -> None:
    """Samples some prompts, then adds their sums; `membership` (G, prompts) counts each prompt in each group."""
    how = stats.provenance
    prompt_of_row, conditional = denoiser.call_rows(len(prompts), how["guidance_scale"])  # both (B,)
    row_counts = membership[:, prompt_of_row] * (conditional | (how["cfg_half"] == "both"))  # (G, B)
    widths = {layer: sums.shape[2] for layer, sums in stats.sums.items()}
    order, layers, first = _order(denoiser), denoiser.layers(), how["first"]
    calls = denoiser.calls(how["steps"]) if first is None else min(first * order, denoiser.calls(how["steps"]))
    batch = BatchSums(widths, row_counts.float(), calls, order)

    def see(layer: str, hidden: torch.Tensor, output: torch.Tensor) -> None:
        batch.add(layer, hidden)
        batch.compare(layers[layer], hidden, output)

    seeds = one_seed_each(how["seed"], len(prompts))
    options: Any = {"generators": row_generators(denoiser, seeds)} if draws_noise(denoiser) else {}
    rows, noise = len(prompt_of_row), initial_noise(denoiser, seeds)
    with hooked(denoiser, layers, see, rows=rows, begin=batch.begin_call, end=batch.end_call, first=first and calls):
        denoiser.sample(prompts, noise, how["steps"], how["guidance_scale"], **options)
    for layer, sums in batch.finish().items():
        stats.sums[layer] += sums


def _order(denoiser: Denoiser) -> int:
    """Network calls per step of the sampler."""
    return getattr(denoiser.scheduler, "order", 1)


def _steps(denoiser: Denoiser, how: dict) -> int:
    """Number of steps that can be captured of a whole sampling."""
    return -(-denoiser.calls(how["steps"]) // _order(denoiser))


def _empty(
    denoiser: Denoiser, prompts: list[str] | Conditioning, groups: dict[str, list[int]], how: dict
) -> ActivationStats:
    """Statistics of zeros, with the provenance of the capture that fills them."""
    layers, captured = denoiser.layers(), how["first"] or _steps(denoiser, how)
    network = {"model": fingerprint(denoiser), "layers": list(layers), "dtype": str(denoiser.dtype)}
    software = {"sampler": type(denoiser.scheduler).__name__, "diffusers": version("diffusers")}
    how = how | {"guidance_scale": float(how["guidance_scale"])}
    software["text encoder and sampler"] = sampler_fingerprint(denoiser, without=("vae",))[:12]
    content = prompts if isinstance(prompts, list) else prompts.row_digests()
    digest = hashlib.sha256(json.dumps([content, groups]).encode()).hexdigest()
    shapes = {name: (len(groups), captured, linear.in_features) for name, linear in layers.items()}
    sums = {name: torch.zeros(shape, dtype=torch.float32, device="cpu") for name, shape in shapes.items()}
    counts = {name: len(members) for name, members in groups.items()}
    return ActivationStats(sums, counts, network | how | software, [digest])


def _members(groups: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """The indices of each group; raises ValueError for anything but whole numbers, such as a mask or fractions."""
    if not groups or not isinstance(groups, Mapping) or not all(isinstance(name, str) for name in groups):
        raise ValueError(f"groups must name lists of prompts by text, such as {{'A': [0, 1]}}; got {groups!r:.80}.")
    members = {}
    for group, indices in groups.items():
        given = list(indices) if isinstance(indices, Iterable) else [f"{indices!r} alone"]
        members[group] = [i.tolist() if hasattr(i, "tolist") else i for i in given]  # of numpy or torch
        if wrong := [i for i in members[group] if type(i) is not int]:
            what = "must be a list of whole numbers, indices of prompts"
            raise ValueError(f"group {group!r} {what}; it holds {wrong[0]!r}.")
    return members


def _check(
    denoiser: Denoiser, prompts: list[str] | Conditioning, groups: dict[str, list[int]], how: dict, batch_size: int
) -> None:
    check_request(prompts, how["steps"], batch_size, how["guidance_scale"], how["seed"])
    captured, first = _steps(denoiser, how), how["first"]
    if first is not None and not (isinstance(first, Integral) and 1 <= int(first) <= captured):
        raise ValueError(f"first must be a whole number from 1 to {captured}, the steps of this sampling; got {first}.")
    if how["cfg_half"] not in ("both", "cond"):
        raise ValueError(f"cfg_half must be 'both' or 'cond'; got {how['cfg_half']!r}.")
    for name, members in groups.items():
        if not members:
            raise ValueError(f"group {name!r} holds no prompts.")
        if outside := [i for i in members if not 0 <= i < len(prompts)]:
            raise ValueError(f"group {name!r} names prompt {outside[0]}, but there are {len(prompts)}.")


def _write_checkpoint(stats: ActivationStats, checkpoint: Path, done: int, total: int) -> None:
    """Writes the sums of the first `done` of this process' `total` prompts, for `_resume`."""
    stats.check_finite()
    replace(stats, prompts=[*stats.prompts, str(done), str(total)]).save(checkpoint)


def _remove_checkpoints(checkpoint: Path) -> None:
    """Removes the checkpoints of all processes."""
    wait()  # until then a process that is killed can resume alone
    for share in checkpoint.parent.glob(f"{escape(checkpoint.stem)}.*-of-*") if is_main() else ():
        share.unlink(missing_ok=True)


def _resume(stats: ActivationStats, checkpoint: Path | None, total: int) -> int:
    """Adds the sums of a killed capture, and returns how many of this process' `total` prompts they cover."""
    if checkpoint is None:
        return 0
    if not checkpoint.is_file():
        _write_checkpoint(stats, checkpoint, 0, total)  # what cannot be written is an error now, not after a batch
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
