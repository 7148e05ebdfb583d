"""Two and three CPU processes (gloo) give what one gives: integers identical, sums to float32 accuracy."""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate import PartialState
from PIL import Image
from safetensors.torch import load_file

import distributed_worker
from conftest import ONE_METHOD, SMALL
from memsub import ActivationStats, WeightMasks
from memsub.io.files import save_tensors
from memsub.models import sampler_fingerprint
from memsub.testbed.dataset import weights_folder
from memsub_extra.canaries.training import train
from memsub_extra.notebooks.listing import precompute
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run
from memsub_extra.training import dataset

WORKER = Path(__file__).with_name("distributed_worker.py")


def launch(processes: int, *arguments: object) -> subprocess.CompletedProcess:
    """As `accelerate launch --multi_gpu` does, on CPUs: it hands over to torch's launcher too."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    variables = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "EXPECTED_PROCESSES": str(processes)}
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | variables,
    )


def member(rank: int, processes: int, port: int, work: Callable[[], object]) -> None:
    """A forked process becomes one of a group, by the variables that torch's launcher sets."""
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "EXPECTED_PROCESSES": processes}
    os.environ |= {name: str(value) for name, value in group.items()} | {"ACCELERATE_USE_CPU": "true"}
    PartialState._reset_state()
    work()


def fork_group(processes: int, work: Callable[[], object]) -> list[int | None]:
    """Exit statuses of a group that is forked from this process: each that is launched imports for five seconds.

    As under torch's launcher, one that fails ends them all.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    group = [fork.Process(target=member, args=(rank, processes, port, work)) for rank in range(processes)]
    for process in group:
        process.start()
    try:
        while running := [process for process in group if process.exitcode is None]:
            assert wait([process.sentinel for process in running], timeout=300), "no process has ended"
            if any(process.exitcode for process in group):
                break
    finally:
        for process in group:
            process.kill()
            process.join()
    return [process.exitcode for process in group]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    out, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    distributed_worker.main(out, None)
    torch.set_num_threads(threads)
    return out


def assert_same(found: Path, expected: Path) -> None:
    ours, theirs = (ActivationStats.load(folder / "stats.safetensors") for folder in (found, expected))
    assert (ours.counts, ours.provenance, ours.prompts) == (theirs.counts, theirs.provenance, theirs.prompts)
    for name, sums in ours.sums.items():
        torch.testing.assert_close(sums, theirs.sums[name], rtol=1e-5, atol=1e-8)
    ours, theirs = (WeightMasks.load(folder / "masks.safetensors").density() for folder in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=0.001, atol=1e-4)  # ties at the edge may fall the other way
    ours, theirs = (load_file(folder / "images.safetensors")["images"].int() for folder in (found, expected))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1
    files = sorted(p.relative_to(expected) for p in (expected / "extraction").rglob("*.png"))
    assert files == sorted(p.relative_to(found) for p in (found / "extraction").rglob("*.png"))
    for file in files:
        a, b = (np.asarray(Image.open(folder / file)).astype(int) for folder in (found, expected))
        assert abs(a - b).max() <= 1
    assert not list(found.glob("*.partial*"))
    ours, theirs = (json.loads((folder / "distances.json").read_text()) for folder in (found, expected))
    assert ours == pytest.approx(theirs)


@pytest.mark.slow  # the next test compares two processes, too
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_give_what_one_gives(alone, tmp_path, processes):
    done = launch(processes, WORKER, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same(tmp_path, alone)


def test_a_lost_shard_is_redone_alone(alone, tmp_path):
    assert fork_group(2, partial(distributed_worker.main, tmp_path, killed=1))[1] == 3
    assert not (tmp_path / "stats.safetensors").exists()
    left = sorted(p.name for p in tmp_path.glob("stats.partial*"))
    assert "stats.partial.1-of-2" in left
    assert fork_group(2, partial(distributed_worker.main, tmp_path, killed=None)) == [0, 0]
    assert_same(tmp_path, alone)


def test_several_processes_train_no_canaries(tmp_path):
    """Each would train by itself, and write into the same folder: both are refused before anything is loaded."""

    def refused() -> None:
        no_manifest: Any = None
        with pytest.raises(ValueError, match=r"2 were started(?s:.*)--num_processes 1(?s:.*)--device cuda:1"):
            train("no/model", no_manifest, tmp_path / "out")
        PartialState().wait_for_everyone()  # the first process holds what the second still reads to join the group

    assert fork_group(2, refused) == [0, 0]
    assert not (tmp_path / "out").exists()


def made_of_an_edit(file: Path, unedited: str) -> bool:
    """Whether the artifact is of an edited model. Sums round otherwise in two processes, so such an edit may differ in
    a weight at the edge, and by it the model's fingerprint and the names of all that is sampled from it."""
    return json.loads(file.with_suffix(".json").read_text()).get("model", unedited) != unedited


def made_of_numbers(file: Path) -> bool:
    """Whether it is made of optimized embeddings, or of features, which round otherwise in two processes."""
    of = json.loads(file.with_suffix(".json").read_text())
    return any(isinstance(of.get(name), str) for name in ("prompts", "features"))


FEWER = {
    "sampling": SMALL["sampling"] | {"steps": 1},
    "grid": SMALL["grid"] | {"subsets": 2, "sizes": [2]},
    "sweep": {"sparsity": [0.3], "steps": [2]},
    "evaluation": SMALL["evaluation"] | {"models": 1},
    "baselines": ONE_METHOD,
    "testbed": {"captions": 10, "never_seen": 10, "membership": {"pairs": 2, "steps": 1}},
}
"""Every experiment of the run is shared out over the processes, none has more than it takes to tell."""


@pytest.fixture
def listed(tmp_path, micro, monkeypatch) -> str:
    """The micro pipeline as a model by name, with the testbed's prompts and scorers, listed by another package."""
    micro.save_pretrained(tmp_path / "model")
    shutil.copytree(weights_folder() / "scorers", tmp_path / "model" / "scorers")
    about = tmp_path / "site" / "listed-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: listed\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[memsub.models]\nlisted = listed:MODEL\n")
    (tmp_path / "site" / "listed.py").write_text(
        "from memsub.models import ModelInfo\n"
        f"MODEL = ModelInfo('listed', {str(tmp_path / 'model')!r}, 'tiny', 'testbed', sparsity=0.25, world='testbed')\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    return "listed"


@pytest.mark.slow
def test_a_run_under_the_launcher_makes_the_artifacts_of_one_process(tmp_path, prompts, monkeypatch, listed):
    """`accelerate launch -m memsub run`: everything that takes a GPU, shared out over two processes."""
    monkeypatch.setenv("MEMSUB_CACHE", str(tmp_path / "cache"))  # of the training images a hundred are enough
    save_tensors({"images": torch.from_numpy(prompts.images("verbatim"))}, dataset.training_images_file(), {})
    given = SMALL | {"model": listed} | FEWER
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(given))
    run = Run(Parameters.checked(given | {"folder": str(tmp_path / "one")}))
    precompute(run)
    done = launch(2, "-m", "memsub", "run", tmp_path / "small.yaml", "--out", tmp_path / "two", "--notebooks", "02")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "two" / "report.html").is_file()
    one, two = ([p for p in (tmp_path / name / "artifacts").rglob("*.*") if p.is_file()] for name in ("one", "two"))
    assert {p.suffix for p in one} == {".safetensors", ".parquet", ".png", ".json"}
    stored, found = ([p for p in sorted(of) if p.suffix in (".safetensors", ".parquet")] for of in (one, two))
    assert not Counter(p.parent.name for p in stored) - Counter(p.parent.name for p in found)  # 02 made masks besides
    unedited = sampler_fingerprint(run.pipe)
    assert sum(not made_of_an_edit(file, unedited) for file in stored) > 20
    for file in [f for f in stored if f.parent.name != "seconds"]:  # two processes take other times
        other = tmp_path / "two" / file.relative_to(tmp_path / "one")
        if not other.is_file():
            assert made_of_an_edit(file, unedited) or made_of_numbers(file), other
            continue
        if file.suffix == ".parquet":
            ours, theirs = (pd.read_parquet(path) for path in (file, other))
            features = ours.columns.intersection(["image_features"])  # of scored images; other tables have none
            ours, theirs = ours.drop(columns=features), theirs.drop(columns=features)
            pd.testing.assert_frame_equal(ours, theirs, atol=0.02)
        elif file.parent.name == "grid":
            ours, theirs = ActivationStats.load(file), ActivationStats.load(other)
            for name, sums in ours.sums.items():
                torch.testing.assert_close(sums, theirs.sums[name], rtol=2e-4, atol=1e-6)
