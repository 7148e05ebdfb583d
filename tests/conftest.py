"""Fixtures shared by all tests. Nothing here reaches a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
import matplotlib

matplotlib.use("Agg")

import pytest
import torch

import memsub
from memsub.parameters import Parameters
from memsub.runs import Run

SMALL = {
    "sampling": {"steps": 2, "batch_size": 6},
    "capture": {"steps": 2},
    "grid": {"memorized": 12, "subsets": 3, "sizes": [2, 3], "sparsity": 0.05},
    "edit": {"steps": 2},
    "sweep": {"sparsity": [0.1, 0.3], "steps": [1, 2]},
    "evaluation": {"captions": 2, "models": 2, "controls": 1, "real_images": 4, "seed_captions": 2},
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
def pipe():
    return memsub.load_pipeline("tiny", device="cpu")


@pytest.fixture(scope="session")
def twin():
    return memsub.load_pipeline("tiny-twin", device="cpu")


@pytest.fixture(scope="session")
def exact_pipe():
    """The same in float64: what differs between batch sizes, threads and kernels there lies far below float32."""
    return memsub.load_pipeline("tiny", device="cpu", dtype=torch.float64)


@pytest.fixture(scope="session")
def metrics():
    return memsub.load_metrics("tiny", device="cpu", more=["exact_p", "sharpness"])


@pytest.fixture(scope="session")
def prompts():
    return memsub.load_prompts("tiny")


@pytest.fixture
def new_run(tmp_path, pipe, twin, prompts, metrics):
    """Makes runs in folders of their own, with everything loaded already."""

    def make(name: str = "run", **changed) -> Run:
        run = Run(Parameters.checked(SMALL | {"folder": str(tmp_path / name)} | changed))
        run.pipe, run.twin, run.prompts, run.metrics = pipe, twin, prompts, metrics
        run.corpus = prompts.images("verbatim")
        return run

    return make


@pytest.fixture
def run(new_run):
    return new_run()
