"""Bad luck and bad models: a full disk, a kill, activations that overflow, a UNet without what the method needs."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from conftest import SMALL
from memsub.activations import _unit_squares_on_device, capture, unit_squares
from memsub.io.files import save_tensors, save_text
from memsub.io.images import read_images, save_image
from memsub.models import as_denoiser
from memsub_extra.attacks import sample_to_folder
from memsub_extra.files import save_table
from memsub_extra.notebooks.listing import NOTEBOOKS
from micro import micro_pipeline

OPTIONS = {"steps": 2, "guidance_scale": 3.0, "progress": False}


# --- a full disk -------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(free: int):
    """No file can grow beyond `free` bytes: a write fails half way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.safetensors", lambda path, n: save_tensors({"x": torch.zeros(n, 4)}, path, {})),
        ("a.parquet", lambda path, n: save_table(pd.DataFrame({"x": np.random.default_rng(0).random(n)}), path)),
        ("a.png", lambda path, n: save_image(np.random.default_rng(0).integers(0, 256, (n, 9, 3), np.uint8), path)),
        ("a.json", lambda path, n: save_text("x" * n, path)),
    ],
)
def test_a_full_disk_leaves_what_was_there(tmp_path, name, save):
    path = tmp_path / name
    save(path, 10)
    before = path.read_bytes()
    with full_disk(20_000), pytest.raises(OSError, match=f"{name} could not be written, and is as it was before"):
        save(path, 100_000)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_full_disk_in_the_middle_of_a_capture_loses_nothing(micro, prompts, tmp_path):
    some, part = prompts.memorized[:3], tmp_path / "part"
    whole = capture(micro, some, **OPTIONS)
    with full_disk(1000), pytest.raises(OSError, match=r"part\.0-of-1 could not be written"):
        capture(micro, some, batch_size=1, checkpoint=part, **OPTIONS)
    resumed = capture(micro, some, batch_size=1, checkpoint=part, **OPTIONS)
    for name, sums in whole.sums.items():
        torch.testing.assert_close(resumed.sums[name], sums, rtol=2e-4, atol=1e-7)


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n half")
    with pytest.raises(ValueError, match=r"half\.png is truncated or no image"):
        read_images([tmp_path / "half.png"], 32)


# --- a kill ------------------------------------------------------------------------------------------------------


def kill_when(command: list[str], ready, cwd: Path, timeout: float = 120) -> None:
    """Starts a process group and kills it as soon as `ready()`."""
    process = subprocess.Popen(command, cwd=cwd, start_new_session=True, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + timeout
    while not ready():
        if process.poll() is not None:
            pytest.fail(f"ended by itself: {process.stderr.read()[-2000:]}")
        assert time.monotonic() < end, "never got there"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


def test_images_are_whole_after_a_kill_and_sampling_resumes(micro, tmp_path):
    folder = tmp_path / "images"
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from micro import micro_pipeline\nfrom memsub_extra.attacks import sample_to_folder\n"
        "sample_to_folder(micro_pipeline(), [f'{i} hearts' for i in range(20)], sys.argv[1], images=10, steps=1,"
        "guidance_scale=3.0, batch_size=2, progress=False)"
    )
    kill_when([sys.executable, "-c", code, str(folder)], lambda: len(list(folder.rglob("*.png"))) > 5, tmp_path)
    there = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    assert 5 < len(there) < 200
    for path in there:
        Image.open(path).load()
    options = {"images": 10, "steps": 1, "guidance_scale": 3.0, "progress": False}
    sample_to_folder(micro, [f"{i} hearts" for i in range(20)], folder, **options)
    assert len(list(folder.rglob("*.png"))) == 200
    assert all(p.stat().st_mtime_ns == when for p, when in there.items())


@pytest.mark.slow  # tests/test_batch.py has the same for a notebook that stops with an error
def test_notebooks_go_on_after_a_kill(tmp_path):
    for name in ("notebooks", "papermill_params"):
        (tmp_path / name).mkdir()
    (tmp_path / "papermill_params" / "small.yaml").write_text(yaml.safe_dump(SMALL | {"model": "tiny"}))
    parameters = new_code_cell('model = "tiny"\nfolder = ""', metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    first = new_code_cell("open(folder + '/first', 'a').write('x');")
    second = new_code_cell(
        "import os, time\nopen(folder + '/second', 'a').write('x')\nos.path.exists('go') or time.sleep(600)"
    )
    for i, cell in enumerate((first, second)):
        path = tmp_path / "notebooks" / f"{sorted(NOTEBOOKS)[i]}.ipynb"
        nbformat.write(new_notebook(cells=[parameters, cell], metadata=kernel), path)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "memsub", "run", "small", "--out", str(out), "--notebooks", "00", "01"]
    kill_when(command, lambda: (out / "second").is_file(), tmp_path)
    assert not (out / "report.html").exists()
    (tmp_path / "notebooks" / "go").touch()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert (out / "first").read_text() == "x"  # not executed again
    assert (out / "second").read_text() == "xx"
    assert (out / "report.html").is_file()


# --- models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_capture_in_half_precision(micro, prompts, dtype):
    some = prompts.memorized[:2]
    exact = capture(micro, some, **OPTIONS).norms()
    half = micro_pipeline(dtype)
    stats = capture(half, some, **OPTIONS)
    assert {s.dtype for s in stats.sums.values()} == {torch.float32}
    for name, norms in stats.norms().items():
        assert torch.corrcoef(torch.stack([norms.flatten(), exact[name].flatten()]))[0, 1] > 0.995


def test_the_largest_halves_do_not_overflow():
    hidden = torch.full((2, 5, 4), torch.finfo(torch.float16).max, dtype=torch.float16)
    for found in (unit_squares(hidden), _unit_squares_on_device(hidden)):
        torch.testing.assert_close(found, torch.full((2, 4), 5 / 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_s_unit_squares_are_those_of_the_definition(dtype):
    rows = torch.randn(2, 500, 320, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 500)[:, None]
    hidden = rows.to(dtype)
    hidden[0, 0] = 0
    exact = torch.nn.functional.normalize(hidden.double(), dim=-1).square().sum(1)
    assert (unit_squares(hidden) / exact - 1).abs().max() < 1e-5
    assert (_unit_squares_on_device(hidden) / exact - 1).abs().max() < (1e-5 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_named(prompts, value):
    broken = micro_pipeline()
    name, layer = list(as_denoiser(broken).layers().items())[1]
    gate = broken.unet.get_submodule(name.removesuffix("net.2") + "net.0.proj")
    with torch.no_grad():
        gate.bias[0] = value
    with pytest.raises(FloatingPointError, match=f"{name} are not finite at step 0; try another dtype"):
        capture(broken, prompts.memorized[:1], **OPTIONS)
    assert not layer._forward_pre_hooks


def test_a_unet_without_feed_forward_blocks_is_named():
    blocks = {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("UpBlock2D",), "mid_block_type": None}
    with pytest.raises(ValueError, match="UNet2DConditionModel holds no FeedForward blocks"):
        as_denoiser(micro_pipeline(**blocks)).layers()
