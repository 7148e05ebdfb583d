"""One training loop for every part of the embedded model, and for removals that train.

    fit(module, loss, steps=1000, lr=1e-3, seed=0, folder=out / "checkpoints", name="unet")

`loss(step, generator)` returns a scalar; all its randomness comes from the generator, which is a function of
seed, name and step alone. It is the host's, so that every device sees the same. A run that is killed therefore
resumes at its last checkpoint and ends with the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from tqdm.auto import tqdm

from .files import save_json, save_tensors

CHECKPOINT_SECONDS = 120
CHECKPOINT_STEPS = 100
"""Losses are logged every so many steps, and a checkpoint is written then if the last one is old enough."""
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, betas=(0.9, 0.99), fused=True),
    "adafactor": torch.optim.Adafactor,
}
"""By name. AdamW keeps two numbers a weight; Adafactor, for networks of a billion, a row and a column a matrix."""
M = TypeVar("M", bound=Any)


def generator(*parts: object) -> torch.Generator:
    """A generator of the host, seeded by anything that prints: `generator(seed, "unet", step)`."""
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))


def v_weights(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Weights of the steps of a schedule, of mean 1, as of v-prediction: 1 / alpha-bar (Salimans & Ho 2022).

    Capped at 2.5: steps of much noise, which hardly show in the plain epsilon loss of small pictures, decide what is
    where; with a higher cap the middle, where shapes are decided, would be left too little.
    """
    weights = (1 / alphas_cumprod).clamp(max=2.5)
    return weights / weights.mean()


def stratified(n: int, steps: int, rng: torch.Generator) -> torch.Tensor:
    """Steps of a schedule, (n,): one from each n-th part of it, in random order."""
    places = torch.randperm(n, generator=rng) + torch.rand(n, generator=rng)
    return (places * (steps / n)).long().clamp(max=steps - 1)


def fit(
    module: M,
    loss: Callable[[int, torch.Generator], torch.Tensor],
    *,
    steps: int,
    lr: float,
    seed: int,
    folder: Path,
    name: str,
    warmup: int = 200,
    weight_decay: float = 0.01,
    stream: str = "",
    optimizer: str = "adamw",
) -> M:
    """Trains `module` in place, with linear warm-up and cosine decay to zero, and returns it in eval mode.

    Weights and optimizer state go to `folder/<name>.safetensors` every two minutes and at the end; a finished
    stage is loaded from there instead of trained again. `folder/<name>.json` holds the loss curve and seconds spent.
    Stages of one `stream` (default: the name) draw the same random numbers. `optimizer`: a name in `OPTIMIZERS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, log_path = folder / f"{name}.safetensors", folder / f"{name}.json"
    module.to(memory_format=torch.channels_last)  # a tenth faster on CPUs
    params = dict(module.named_parameters())
    rule = OPTIMIZERS[optimizer](params.values(), lr=lr, weight_decay=weight_decay)
    start = 0
    log: dict[str, Any] = {"seconds": 0.0, "steps": steps, "loss": []}
    if path.exists():
        start, log = _load(path, log_path, module, params, rule, steps)

    module.train()
    began, saved = time.monotonic(), time.monotonic()
    bar = tqdm(
        range(start, steps), initial=start, total=steps, desc=f"training {name}", mininterval=2, disable=start == steps
    )
    running = 0.0
    for step in bar:
        value = loss(step, generator(seed, stream or name, step))
        value.backward()
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        for group in rule.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rule.step()
        rule.zero_grad(set_to_none=True)  # here, not before the next backward pass: a loss may need the memory
        running += value.item()
        if (step + 1) % CHECKPOINT_STEPS == 0:
            if not math.isfinite(running):
                raise FloatingPointError(f"training {name}: no finite loss at step {step + 1}; lower the learning rate")
            log["loss"].append([step + 1, running / CHECKPOINT_STEPS])
            bar.set_postfix(loss=f"{running / CHECKPOINT_STEPS:.4f}")
            running = 0.0
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                log["seconds"] += time.monotonic() - began
                began = saved = time.monotonic()
                _save(path, log_path, module, params, rule, step + 1, log)
    if start < steps:
        log["seconds"] += time.monotonic() - began
        _save(path, log_path, module, params, rule, steps, log)
    return module.eval().to(memory_format=torch.contiguous_format)


def _save(path: Path, log_path: Path, module, params, optimizer, step: int, log: dict) -> None:
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    for key, param in params.items():
        state = optimizer.state.get(param, {})  # none if the loss does not depend on it
        tensors |= {f"{moment}.{key}": value for moment, value in state.items() if moment != "step"}
    save_tensors(tensors, path, {"step": str(step), "log": json.dumps(log)})
    save_json(log, log_path)


def _load(path: Path, log_path: Path, module, params, optimizer, steps: int) -> tuple[int, dict]:
    with safe_open(path, "pt") as file:
        step, log = int(file.metadata()["step"]), json.loads(file.metadata()["log"])
        if log["steps"] != steps:
            raise ValueError(
                f"{path} was made for {log['steps']} steps, not {steps}: remove it, or choose another --out"
            )
        module.load_state_dict({k: file.get_tensor(f"module.{k}") for k in module.state_dict()})
        saved: dict[str, dict[str, torch.Tensor]] = {key: {} for key in params}
        for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
            moment, key = name.split(".", 1)
            if moment != "module":
                saved[key][moment] = file.get_tensor(name)
        for key, param in params.items():
            moments = {m: _laid_out(value, param) for m, value in saved[key].items()}
            if moments:
                optimizer.state[param] = {"step": torch.tensor(float(step), device=param.device), **moments}
    return step, log


def _laid_out(moment: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """In memory as the parameter is: fused AdamW walks through all of them side by side."""
    if moment.shape != param.shape:
        return moment.to(param.device)
    return torch.empty_like(param).copy_(moment)
