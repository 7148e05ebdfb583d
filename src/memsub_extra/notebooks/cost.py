"""Cost estimate of a run: it runs the experiments on a model that only counts network calls.

    table = work(parameters)                # a row for each experiment: images, network calls, guided steps
    disk(parameters)                        # bytes of the grid's statistics
    seconds_per_step(pipe, batch_size=8)    # one image, one guided step, on this device

`CountingDenoiser` has the interface of a model but computes nothing: it adds up the rows of requested network calls.
Its verdicts find no replication, so attacks do not stop early, and their cost is an upper bound. A loop whose length
depends on its results declares a bound (`declare`). Calls that two experiments share are counted once, for the
first of them, because they are made once.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cached_property
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch

from memsub.io.files import load_json
from memsub.measure.metric import CopyMetric, PromptMetric
from memsub.measure.metrics import Metrics
from memsub.measure.verdict import Judge
from memsub.models import (
    Conditioning,
    Pipeline,
    Solver,
    as_conditioning,
    as_denoiser,
    find_model,
    initial_noise,
    rows_of_call,
)
from memsub.prompts import Prompts
from memsub.registry import Registry
from memsub_extra.mitigations import BASELINES
from memsub_extra.mitigations.base import GRADIENT_ROWS
from memsub_extra.mitigations.detection import SCORES
from memsub_extra.run.data import Data
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run

from .check import MEASURED
from .listing import NOTEBOOKS, of_model

ESTIMATES: Registry[Callable[[Parameters], str]] = Registry("memsub.estimates", "estimate", {})
"""Further parts of an estimate, by name: parameters to lines of text, which may be empty."""
WIDTH, ROWS = 1000, 4
"""Layer sizes of the counting model, wide enough to distinguish sparsities of a tenth of a percent."""


class CountingNetwork(torch.nn.Module):
    """Calls each of its layers once, and counts rows and calls."""

    def __init__(self) -> None:
        super().__init__()
        self.down_blocks = torch.nn.ModuleList([torch.nn.Linear(WIDTH, ROWS)])
        self.mid_block = torch.nn.Linear(WIDTH, ROWS)
        self.up_blocks = torch.nn.ModuleList([torch.nn.Linear(WIDTH, ROWS)])
        self.rows, self.calls, self.images = 0, 0, 0
        # The same columns are large at every step, as in a model, so that masks of different steps share weights.
        self.profile = torch.linspace(1, 3, WIDTH)

    def layers(self) -> dict[str, torch.nn.Linear]:
        return {name: module for name, module in self.named_modules() if isinstance(module, torch.nn.Linear)}

    def add(self, rows: int, calls: int = 1, images: int = 0) -> None:
        self.rows, self.calls, self.images = self.rows + rows, self.calls + calls, self.images + images

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        self.add(len(latents))
        for layer in self.layers().values():
            layer(self.profile * (1 + 0.2 * torch.rand(len(latents), 1, WIDTH)))
        return latents

    def is_hooked(self) -> bool:
        """Whether hooks observe its calls; then the calls have to be made."""
        return any(m._forward_pre_hooks or m._forward_hooks for m in self.modules())


class CountingDenoiser:
    """A denoiser that counts and computes nothing (see `memsub.models.Denoiser`)."""

    def __init__(self) -> None:
        from diffusers import DDIMScheduler  # takes seconds to import

        self.network, self.scheduler = CountingNetwork().eval(), DDIMScheduler()
        self.value = torch.nn.Linear(2, 2)
        self.tokenizer = SimpleNamespace(model_max_length=77, get_vocab=lambda: {"word</w>": 0, "other</w>": 1})
        self.device, self.dtype, self.source = torch.device("cpu"), torch.float32, ""
        self.latent_shape, self.image_shape = (1, 2, 2), (4, 4)

    def layers(self) -> dict[str, torch.nn.Linear]:
        return self.network.layers()

    def value_layers(self) -> dict[str, torch.nn.Linear]:
        return {"value": self.value}

    def embed(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning(torch.zeros(len(prompts), 1, 2))

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        embeddings = conditioning.embeddings
        self.network.add(len(latents) * (GRADIENT_ROWS if embeddings.requires_grad else 1))
        return torch.zeros_like(latents) + 0 * embeddings.sum((1, 2)).view(-1, 1, 1, 1)

    def calls(self, steps: int) -> int:
        return steps

    def call_rows(self, prompts: int, guidance_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        return rows_of_call(prompts, guidance_scale > 1)

    def sample(
        self,
        prompts: list[str] | Conditioning,
        latents: torch.Tensor,
        steps: int,
        guidance_scale: float,
        solver: Solver = "own",
        generators: Sequence[torch.Generator] | None = None,
    ) -> torch.Tensor:
        rows = len(self.call_rows(len(latents), guidance_scale)[0])
        self.network.add(0, 0, len(latents))
        if self.network.is_hooked() and not self.value._forward_hooks:  # hooks on its layers, none on value layers
            for _ in range(steps):
                self.network(torch.zeros(rows, *self.latent_shape))
        else:
            self.network.add(rows * steps, steps)
        return latents

    def encode(self, images: np.ndarray) -> torch.Tensor:
        return torch.zeros(len(images), *self.latent_shape)

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        return np.zeros((len(latents), *self.image_shape, 3), np.uint8)

    def parts(self) -> Mapping[str, torch.nn.Module]:
        return {"network": self.network}

    def declare(self, rows: int) -> None:
        """Adds the largest number of rows of a loop whose length depends on its results."""
        self.network.add(rows, 0)


class _Placeholders(Data):
    """Placeholders for the prompts and images of a run, so that nothing is downloaded. Prompts of a world are real."""

    @cached_property
    def prompts(self) -> Prompts:
        if self.world and not self.parameters.data.prompts:
            return self.world.prompts()
        n, p = self.parameters.grid.memorized, self.parameters
        unseen = max(p.distance_images, p.baselines.never_seen, p.detection.captions, p.evaluation.captions)
        unseen = max(unseen, p.embedding_attack.images, p.deletion.targets)
        unseen += max(p.evaluation.captions, p.baselines.never_seen)  # settings are chosen on other captions
        # Detection may take captions beyond those of the grid, in addition to the third that locates.
        listed = n if p.detection.among == "reported" else max(n, p.detection.captions + -(-n // 3))
        kinds = ["memorized"] * listed + ["ordinary"] * max(n, p.extraction.captions) + ["heldout"] * unseen
        captions = [f"caption {i}" for i in range(len(kinds))]
        # With other wordings, so that experiments that require them are counted.
        table = pd.DataFrame({"prompt": captions, "kind": kinds, "rephrased": "other words"})
        return Prompts(table, ("memorized",))

    @cached_property
    def training_images(self) -> dict[int, np.ndarray]:
        return {i: np.zeros((1, 4, 4, 3), np.uint8) for i in range(self.parameters.grid.memorized)}

    @cached_property
    def corpus(self) -> np.ndarray:
        return np.zeros((2, 4, 4, 3), np.uint8)

    def real_images(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        whole = 2 * max(self.parameters.distance_images, self.parameters.baselines.never_seen) + 2
        return np.zeros((len(range(whole)[start:stop]), 4, 4, 3), np.uint8)


NEVER = Judge(
    "replication",
    "never",
    lambda images, prompts, references: np.zeros(len(images), bool),
    lambda scored: pd.Series(False, index=scored.index),
)
"""Finds no replication, so that no attack stops early."""


class _CountingRun(Run):
    """A run on a counting model, in a temporary folder."""

    def __init__(self, parameters: Parameters):
        super().__init__(parameters)
        self.data = _Placeholders(parameters, lambda: 4)
        self.pipe = CountingDenoiser()
        self.control_pipes = {name: CountingDenoiser() for name in self.info.controls}

    @cached_property
    def metrics(self) -> Metrics:
        def features(items: Any) -> torch.Tensor:  # equal for all models: the strongest strength is compared
            rng = torch.Generator().manual_seed(0)
            return torch.nn.functional.normalize(torch.randn(len(items), 8, generator=rng), dim=1)

        nothing = dict.fromkeys(self.parameters.metrics.more, lambda images, prompts, references: np.ones(len(images)))
        return Metrics(CopyMetric(features, 2.0, "counts"), PromptMetric(features, features, "counts"), nothing)

    @property
    def judge(self) -> Judge:
        return NEVER

    def counted(self) -> np.ndarray:
        """Rows, calls and images so far."""
        networks = [pipe.network for pipe in (self.pipe, *self.control_pipes.values())]
        return np.array([(n.rows, n.calls, n.images) for n in networks]).sum(0)


def work(p: Parameters, only: Sequence[str] = ()) -> pd.DataFrame:
    """The cost of each experiment of the model's notebooks.

    Args:
        only: names of notebooks; default: all of the model. Others may need prompts that these parameters lack.

    Returns:
        Columns notebook, part, images, network calls, rows (of network calls) and steps (guided steps of one image: two
        rows each).
    """
    rows = []
    with _counting(p) as run, redirect_stderr(StringIO()):  # hides progress bars of experiments that take no time
        for notebook in [each for each in of_model(run.info) if not only or each.name in only]:
            for title, experiment in notebook.experiments.items():
                before = run.counted()
                experiment(run)
                counted, calls, images = (run.counted() - before).tolist()
                rows.append(
                    {
                        "notebook": notebook.name,
                        "part": f"{notebook.name[:2]} {title}",
                        "images": images,
                        "network calls": calls,
                        "rows": counted,
                        "steps": counted // 2,
                    }
                )
    return pd.DataFrame(rows)


KNOWN = Path(__file__).with_name("costs.json")
"""Costs of the shipped parameter files, and times of a step on a GPU; written by `python -m tools.costs`."""


def _known(p: Parameters) -> Mapping[str, Any]:
    """The stored cost of these parameters; empty if they are not shipped."""
    wanted = digest(p)
    return next((run for run in load_json(KNOWN)["runs"].values() if run["digest"] == wanted), {})


def known_work(p: Parameters, only: Sequence[str] = ()) -> pd.DataFrame:
    """Like `work`, but reads the stored cost of shipped parameters, because `work` takes half a minute at full size."""
    known = _known(p).get("work")
    return work(p, only) if known is None else pd.DataFrame(known)


def digest(p: Parameters) -> str:
    """sha256 of the parameters, except paths, and of everything in the registries."""
    content = p.model_dump(mode="json", exclude={"folder": True, "data": {"images", "real", "types"}})
    content |= {"registered": [sorted(names) for names in (NOTEBOOKS, BASELINES, SCORES)]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def _counting(p: Parameters) -> Iterator[_CountingRun]:
    memory = "/dev/shm"  # for thousands of small files, if it exists
    where = memory if os.access(memory, os.W_OK) else None
    with TemporaryDirectory(dir=where) as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # chance decides whether two settings mark the same weights, and so are sampled once
        yield _CountingRun(p.model_copy(update={"folder": folder, "dtype": None}))


def disk(p: Parameters) -> int | None:
    """Bytes of the grid's statistics; None if the model's number of neurons is not in the registry."""
    neurons = find_model(p.model).neurons
    groups = 2 * (2 + p.grid.subsets * len(p.grid.sizes))
    return groups * p.grid_steps * neurons * 4 if neurons else None


def at_hand(model: str | Path) -> bool:
    """Whether the model can be loaded without a download: a folder, or in the hub's cache."""
    source = find_model(model).source
    if Path(source).exists():
        return True
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(source, "model_index.json"), str)


@torch.no_grad()
def seconds_per_step(pipe: Pipeline, batch_size: int) -> float:
    """Seconds of one guided network call for one image, from a few calls of a batch after a warm-up."""
    denoiser = as_denoiser(pipe)
    prompts = as_conditioning([""] * batch_size, denoiser)

    def call(steps: int) -> float:
        began = time.perf_counter()
        denoiser.sample(prompts, initial_noise(denoiser, [0] * batch_size), steps, 3.0)
        if denoiser.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / denoiser.calls(steps)

    call(1)
    return call(4) / batch_size


SMALLER = {
    "replication": "testbed.never_seen",
    "membership": "testbed.membership",
    "capture at all steps": "captured.subsets",
    "a second noise, and the conditional half": "captured.subsets",
    "sweep": "sweep.sparsity",
    "pruned models": "evaluation.models",
    "Wen et al.": "baselines.strengths",
    "similarity between seeds": "evaluation.seed_captions",
    "KID and FID": "evaluation.real_images: 0, evaluation.fid_images: 0",
    "baselines": "baselines.strengths",
    "timing": "baselines.timed",
    "extraction": "extraction.captions, extraction.images",
    "detection": "detection.captions",
    "embedding attack": "embedding_attack.iterations",
    "attack work": "deletion.targets, deletion.iterations",
}
"""Part of a run to the parameter that omits or reduces it."""


def halved(table: pd.DataFrame) -> str:
    """Suggests which parts to omit to halve the number of steps: the fewest parts, each with its parameter.

    Args:
        table: the result of `work`.
    """
    parts = table[table["part"].str[3:].isin(SMALLER)].sort_values("steps", ascending=False, kind="stable")
    total, left_out = table["steps"].sum(), 0
    named = []
    for part, steps in zip(parts["part"], parts["steps"], strict=True):
        if 2 * left_out >= total:
            break
        left_out += steps
        named.append(f"{part} ({SMALLER[part[3:]]})")
    return f"to halve it, leave out or make smaller: {'; '.join(named)}: {left_out / max(1, total):.0%} of the steps"


LEFT_OUT = "network calls alone: decoding, metrics and the start of a kernel a notebook come on top"
"""What estimates in minutes omit."""


def minutes(table: pd.DataFrame, milliseconds: float) -> pd.Series:
    """Minutes of each part of a table of `work`, for network calls only.

    Args:
        milliseconds: time of one guided step of one image.
    """
    return (table["steps"] * milliseconds / 60_000).round(1)


def on_known_gpu(model: str) -> tuple[str, float | None]:
    """The GPU on which steps were timed (`tools.gpu`), and milliseconds of a model's guided step (None: not timed)."""
    gpu = load_json(KNOWN)["gpu"]
    return gpu["name"], gpu["step_ms"].get(find_model(model).name)


def describe(p: Parameters, pipe: Pipeline | None, estimates: bool = True) -> str:
    """The estimate as text. Without a pipeline, times are those measured on a GPU; optionally with `ESTIMATES`."""
    counted = known_work(p)
    table = counted.drop(columns=["notebook", "rows"])
    name, milliseconds = on_known_gpu(p.model)
    if pipe is not None:
        milliseconds = 1000 * seconds_per_step(pipe, min(p.sampling.batch_size, 8))
        lines = [f"minutes: on {as_denoiser(pipe).device} here, {milliseconds:.1f} ms an image and step; {LEFT_OUT}"]
    else:
        why = "`--time` does, and loads the model for it" if at_hand(p.model) else "it has to be downloaded first"
        if milliseconds:
            lines = [
                f"minutes: on one {name}, {milliseconds:.1f} ms an image and step as measured with random weights; "
                f"{LEFT_OUT}. On another GPU in proportion; the model was not timed here ({why})"
            ]
        else:
            lines = [f"minutes: not known, the model was not timed here ({why})"]
    if milliseconds:
        table["minutes"] = minutes(table, milliseconds)
    total = table.drop(columns="part").sum()
    lines += [table.to_string(index=False), "together: " + ", ".join(f"{v:,.7g} {k}" for k, v in total.items())]
    lines.append(halved(counted))
    if missing := p.missing_images():
        lines.append(f"requires: {missing}")
    if statistics := disk(p):
        lines.append(f"on disk: {statistics / 1e6:,.0f} MB of statistics, besides images and masks")
    if peak := _known(p).get("memory"):
        listed = ", ".join(f"{part} {gigabytes:.1f}" for part, gigabytes in peak.items())
        lines.append(f"on a GPU, peak gigabytes from shapes, times {MEASURED}: {listed}")
    if estimates:
        lines += [text for estimate in ESTIMATES.values() if (text := estimate(p))]
    return "\n".join(lines)
