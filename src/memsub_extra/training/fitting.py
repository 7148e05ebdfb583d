"""The training loop for every part of the embedded model, and for removals that train.

    fit(module, loss, steps=1000, lr=1e-3, seed=0, folder=out / "checkpoints", name="unet")

`loss(step, generator)` returns a scalar. All its randomness comes from the generator, which depends only on seed, name
and step. It is a CPU generator, so all devices get the same numbers. A killed run therefore resumes at its last
checkpoint and ends with the same weights as a run that was not killed.
"""

from __future__ import annotations

import json
import math
import threading
import time
import zlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from tqdm.auto import tqdm

from memsub.io.files import save_json, save_tensors
from memsub_extra.hardware import hardware

from .muon import Muon

CHECKPOINT_SECONDS = 120
CHECKPOINT_STEPS = 100
"""Number of steps between entries of the loss curve. A checkpoint is written there if the last one is old enough."""
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, betas=(0.9, 0.99), fused=True),
    "adamw 0.999": partial(torch.optim.AdamW, betas=(0.9, 0.999), fused=True),
    "adafactor": torch.optim.Adafactor,
    "muon": Muon,
}
"""Optimizers by name. AdamW keeps two numbers per weight ("adamw 0.999" has the betas of torch and diffusers), and
Muon one. Adafactor, for networks of a billion weights, keeps a row and a column of each matrix."""
M = TypeVar("M", bound=Any)


def generator(*parts: object) -> torch.Generator:
    """A CPU generator, seeded by the `repr` of its arguments: `generator(seed, "unet", step)`."""
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))


def v_weights(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Loss weights of the steps of a schedule, with mean 1, as in v-prediction: 1 / alpha-bar (Salimans & Ho 2022).

    They are capped at 2.5. Noisy steps determine the layout, and have little weight in the plain epsilon loss of small
    images. A higher cap would leave too little weight for the middle steps, which determine shapes.
    """
    weights = (1 / alphas_cumprod).clamp(max=2.5)
    return weights / weights.mean()


def stratified(n: int, steps: int, rng: torch.Generator) -> torch.Tensor:
    """Steps (n,) of a schedule: one from each of n equal parts, in random order."""
    places = torch.randperm(n, generator=rng) + torch.rand(n, generator=rng)
    return (places * (steps / n)).long().clamp(max=steps - 1)


class Replayed:
    """A function of tensors whose GPU kernels are recorded after a few calls, and replayed in one launch.

    All tensors must keep their shapes. The next call overwrites the returned tensors.
    """

    def __init__(self, function: Callable[..., torch.Tensor], calls: int = 3):
        self.function, self.calls = function, calls
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        if self.calls:
            self.calls -= 1
            return self.function(*tensors)
        if self.graph is None:
            self.graph, self.held = torch.cuda.CUDAGraph(), [t.clone() for t in tensors]
            with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):  # computes nothing
                self.out = self.function(*self.held)
        for held, tensor in zip(self.held, tensors, strict=True):
            held.copy_(tensor)
        self.graph.replay()
        return self.out


def training(
    module: M,
    loss: Callable[..., torch.Tensor],
    *,
    steps: int,
    lr: float,
    seed: int,
    folder: Path,
    name: str,
    batch: Callable[[int, torch.Generator], tuple[torch.Tensor, ...]] | None = None,
    warmup: int = 200,
    weight_decay: float = 0.01,
    stream: str = "",
    optimizer: str = "adamw",
    decay: bool = True,
    checkpoint_seconds: float | None = None,
) -> Generator[None, None, M]:
    """Trains `module` in place, one step for each `next`, with linear warm-up and, if `decay`, cosine decay to zero.

    Weights and optimizer state are saved to `folder/<name>.safetensors` every `checkpoint_seconds` (two minutes) and at
    the end. A finished stage is loaded from there instead of trained again. `<name>.json` has the loss curve and the
    seconds. Stages with the same `stream` (default: the name) use the same random numbers. `optimizer` is a name in
    `OPTIMIZERS`. `loss` takes step and generator, or, if `batch` is given, the tensors that `batch` returns for them.
    These keep their shapes, so that a GPU can replay recorded steps.

    Returns:
        The module, in eval mode.
    """
    module.to(memory_format=torch.channels_last)  # a tenth faster on CPUs
    params = dict(module.named_parameters())
    device = next(iter(params.values())).device
    recorded = batch is not None and device.type == "cuda"
    rates: dict[str, Any] = {"lr": torch.tensor(lr, device=device), "capturable": True} if recorded else {"lr": lr}
    rule = OPTIMIZERS[optimizer](params.values(), weight_decay=weight_decay, **rates)
    work = _Work(folder, name, module, params, rule, steps, device, checkpoint_seconds)

    def learned(*given: Any) -> torch.Tensor:
        value = loss(*given)
        value.backward()
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        rule.step()
        rule.zero_grad()  # here, not before the next backward pass: a loss may need the memory
        return value.detach()

    learn: Callable[..., torch.Tensor] = Replayed(learned) if recorded else learned
    module.train()
    running = torch.zeros((), device=device)  # read every 100 steps only: reading it waits for the GPU
    queued = _queue(device) if recorded else nullcontext
    for step in work.bar():
        with queued():
            _set_rate(rule, lr * _share(step, warmup, steps if decay else None))
            rng = generator(seed, stream or name, step)
            running += learn(*batch(step, rng)) if batch else learn(step, rng)
            if (step + 1) % CHECKPOINT_STEPS == 0:
                work.note(step + 1, running.item() / CHECKPOINT_STEPS)
                running.zero_()
        yield
    with queued():
        work.finish()
    return module.eval().to(memory_format=torch.contiguous_format)


def fit(module: M, loss: Callable[..., torch.Tensor], **options: Any) -> M:
    """Runs a whole `training` with these `options`; returns the module in eval mode."""
    return side_by_side([training(module, loss, **options)])[0]


def side_by_side(trainings: Sequence[Generator[None, None, M]]) -> list[M]:
    """Runs trainings step by step in turn until all have ended. On a GPU their queued steps overlap."""
    ended: dict[int, M] = {}
    while len(ended) < len(trainings):
        for i in [i for i in range(len(trainings)) if i not in ended]:
            try:
                next(trainings[i])
            except StopIteration as end:
                ended[i] = end.value
    return [ended[i] for i in range(len(trainings))]


def in_threads(trainings: Sequence[Generator[None, None, M]]) -> list[M]:
    """Like `side_by_side`, in one thread each with a share of PyTorch's threads, which suits small networks on a CPU.

    If one fails or is interrupted, the others stop at their next step.
    """
    threads, stop = torch.get_num_threads(), threading.Event()
    workers = min(len(trainings), threads)

    def whole(one: Generator[None, None, M]) -> Any:
        torch.set_num_threads(threads // workers)  # of this thread
        while not stop.is_set():
            try:
                next(one)
            except StopIteration as end:
                return end.value

    pool = ThreadPoolExecutor(workers)
    try:
        ended = [pool.submit(whole, one) for one in trainings]
        wait(ended, return_when=FIRST_EXCEPTION)
    finally:
        stop.set()
        pool.shutdown()
        torch.set_num_threads(threads)
    return [one.result() for one in ended]


def _queue(device: torch.device) -> Callable[[], AbstractContextManager]:
    """Makes contexts of one CUDA stream for a training; the stream begins after the work that is queued now."""
    queue = torch.cuda.Stream(device)
    queue.wait_stream(torch.cuda.current_stream(device))
    return lambda: torch.cuda.stream(queue)


def _share(step: int, warmup: int, steps: int | None) -> float:
    """The share of the learning rate at a step: linear warm-up times cosine decay over `steps` (None: no decay)."""
    falling = 1.0 if steps is None else 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warmup) * falling


def _set_rate(rule: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of the next step; a tensor is set in place, where a recorded step reads it."""
    for group in rule.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class _Work:
    """A stage's unfinished work: weights, optimizer state, loss curve and seconds, and the files that hold them."""

    def __init__(
        self,
        folder: Path,
        name: str,
        module,
        params: dict[str, torch.nn.Parameter],
        rule: torch.optim.Optimizer,
        steps: int,
        device: torch.device,
        apart: float | None = None,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.log_path = folder / f"{name}.safetensors", folder / f"{name}.json"
        self.name, self.module, self.params, self.rule, self.steps = name, module, params, rule, steps
        self.start, self.apart = 0, CHECKPOINT_SECONDS if apart is None else apart
        self.log: dict[str, Any] = {"seconds": 0.0, "steps": steps, "on": hardware(device), "loss": []}
        if self.path.exists():
            self._load()
        self.began = self.saved = time.monotonic()

    def bar(self) -> tqdm:
        """The remaining steps, as a progress bar."""
        what: dict[str, Any] = {"initial": self.start, "total": self.steps, "desc": f"training {self.name}"}
        done = self.start == self.steps
        self._bar = tqdm(range(self.start, self.steps), mininterval=2, disable=done, **what)
        return self._bar

    def note(self, step: int, loss: float) -> None:
        """Records the mean loss of the last steps, and saves a checkpoint if the last one is old enough.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise FloatingPointError(f"training {self.name}: no finite loss at step {step}; lower the learning rate")
        self.log["loss"].append([step, loss])
        self._bar.set_postfix(loss=f"{loss:.4f}")
        if time.monotonic() - self.saved > self.apart:
            self._save(step)
            self.saved = time.monotonic()

    def finish(self) -> None:
        """Saves the work, if there were steps to do."""
        if self.start < self.steps:
            self._save(self.steps)

    def _save(self, step: int) -> None:
        now = time.monotonic()
        self.log["seconds"], self.began = self.log["seconds"] + now - self.began, now
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        for key, param in self.params.items():
            state = self.rule.state.get(param, {})  # none if the loss does not depend on it
            tensors |= {f"{moment}.{key}": value for moment, value in state.items() if moment != "step"}
        save_tensors(tensors, self.path, {"step": str(step), "log": json.dumps(self.log)})
        save_json(self.log, self.log_path)

    def _load(self) -> None:
        with safe_open(self.path, "pt") as file:
            step, log = int(file.metadata()["step"]), json.loads(file.metadata()["log"])
            if log["steps"] != self.steps:
                raise ValueError(
                    f"{self.path} was made for {log['steps']} steps, not {self.steps}: remove it, or choose another "
                    "--out"
                )
            self.module.load_state_dict({k: file.get_tensor(f"module.{k}") for k in self.module.state_dict()})
            saved: dict[str, dict[str, torch.Tensor]] = {key: {} for key in self.params}
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                moment, key = name.split(".", 1)
                if moment != "module":
                    saved[key][moment] = file.get_tensor(name)
        for key, param in self.params.items():
            moments = {m: _laid_out(value, param) for m, value in saved[key].items()}
            if moments:
                self.rule.state[param] = {"step": torch.tensor(float(step), device=param.device), **moments}
        self.start, self.log = step, log


def _laid_out(moment: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """The moment in the memory layout of its parameter, because fused AdamW reads them side by side."""
    if moment.shape != param.shape:
        return moment.to(param.device)
    return torch.empty_like(param).copy_(moment)
