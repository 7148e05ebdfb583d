"""Fixtures shared by all tests. Nothing here reaches a network, and nothing is imported before a test asks for it.

`micro` is for every test about plumbing: a Stable Diffusion of random weights, under 10 ms a network call. The embedded
model (`pipe`, its twin and its metrics) is for the few tests about memory.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
import matplotlib

matplotlib.use("Agg")

import pytest
import torch

if TYPE_CHECKING:
    from memsub_extra.run.run import Run

SMALL = {
    "sampling": {"steps": 2, "batch_size": 6},
    "capture": {"steps": 2},
    "grid": {"memorized": 12, "subsets": 3, "sizes": [2, 3], "sparsity": 0.05},
    "edit": {"steps": 2},
    "sweep": {"sparsity": [0.1, 0.3], "steps": [1, 2]},
    "evaluation": {"captions": 2, "models": 2, "controls": 1, "real_images": 6, "seed_captions": 2},
    "baselines": {
        "captions": 2,
        "never_seen": 4,
        "strengths": {"embedding optimization": [1.0], "random tokens": [1], "value neurons": [1.0]},
        "timed": 2,
        "turns": 1,
    },
    "detection": {"captions": 3, "calls": 1},
    "extraction": {"captions": 2, "images": 2, "clique": 2},
    "embedding_attack": {"images": 2, "iterations": 2, "noises": 2},
    "deletion": {"targets": 2, "iterations": [0, 2], "noises": 2},
}
"""Parameters of a run that takes seconds."""
ONE_METHOD = SMALL["baselines"] | {
    "strengths": {"embedding optimization": [], "random tokens": [1], "value neurons": []}
}
"""Of its baselines the fastest alone: one that is not named has its own strengths."""


@pytest.fixture(scope="session")
def micro():
    """A Stable Diffusion of random weights in float32. Shared: a test that changes its weights works on a copy."""
    from micro import micro_pipeline

    return micro_pipeline()


@pytest.fixture(scope="session")
def exact_micro():
    """The same in float64: what differs between batch sizes, threads and kernels lies far below float32."""
    from micro import micro_pipeline

    return micro_pipeline(torch.float64)


@pytest.fixture(scope="session")
def pipe():
    """The embedded model."""
    from memsub.models import load_pipeline

    return load_pipeline("tiny", device="cpu")


@pytest.fixture(scope="session")
def twin():
    """The embedded model's twin, which has never seen a memorized pair."""
    from memsub.models import load_pipeline

    return load_pipeline("tiny-twin", device="cpu")


@pytest.fixture(scope="session")
def exact_pipe():
    """The embedded model in float64."""
    from memsub.models import load_pipeline

    return load_pipeline("tiny", device="cpu", dtype=torch.float64)


@pytest.fixture(scope="session")
def metrics():
    from memsub.measure.metrics import load_metrics

    return load_metrics("tiny", device="cpu", more=["exact_p", "sharpness"])


@pytest.fixture(scope="session")
def prompts():
    from memsub.prompts import load_prompts

    return load_prompts("tiny")


@pytest.fixture(scope="session")
def other_micro():
    """Another micro pipeline: the twin of runs on the first one."""
    from micro import micro_pipeline

    return micro_pipeline(seed=1)


@pytest.fixture(scope="session")
def third_micro():
    """One more: for a second control of runs on the first one."""
    from micro import micro_pipeline

    return micro_pipeline(seed=2)


@pytest.fixture
def new_run(tmp_path, micro, other_micro, third_micro, prompts, metrics):
    """Makes runs of the micro pipeline in folders of their own, with the embedded model's prompts and metrics."""
    from memsub_extra.run.parameters import Parameters
    from memsub_extra.run.run import Run

    def make(name: str = "run", **changed) -> Run:
        run = Run(Parameters.checked(SMALL | {"folder": str(tmp_path / name)} | changed))
        run.pipe, run.metrics = micro, metrics
        run.control_pipes = dict(zip(run.info.controls, (other_micro, third_micro), strict=False))
        run.data.prompts, run.data.corpus = prompts, prompts.images("verbatim")
        return run

    return make


@pytest.fixture
def run(new_run):
    return new_run()


@pytest.fixture
def rows(monkeypatch):
    """Rows of network calls that sampling makes."""
    from memsub.models import StableDiffusionDenoiser

    counts = []
    plain = StableDiffusionDenoiser.sample

    def counted(self, prompts, latents, steps, guidance_scale, *options):
        hook = self.network.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
        try:
            return plain(self, prompts, latents, steps, guidance_scale, *options)
        finally:
            hook.remove()

    monkeypatch.setattr(StableDiffusionDenoiser, "sample", counted)
    return counts
