"""docs/your-model.md runs as it is written: from a checkpoint and captions to an edit and what it does."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import memsub
from memsub.__main__ import COMMANDS, main
from memsub.io.files import load_json
from memsub.io.images import save_image
from memsub.models import load_pipeline

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your-model.md").read_text()
FEWER = {
    "detect": "--seeds 1 --false-positives 0.1",
    "locate": "--steps 4 --tau 4 --sparsity 0.25",
    "evaluate": "--steps 4 --seeds 2",
}
"""Of each command, so that the page takes seconds: the embedded model has small rows, and 50 steps are not needed."""


def commands() -> list[list[str]]:
    """The commands of the page, in order, those that this version has."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert all(line.startswith("memsub ") for line in lines)
    return [words for line in lines if (words := shlex.split(line)[1:])[0] in COMMANDS]


def output_shown() -> list[str]:
    """A pattern for each line that the page says a command prints: numbers and captions may be any."""
    blocks = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    return [
        r"\s+".join(".*" if "..." in word or word in "KNXM" else re.escape(word) for word in line.split())
        for block in blocks
        for line in block.splitlines()
    ]


@pytest.fixture
def workplace(tmp_path, monkeypatch, pipe, prompts):
    """A folder with all that the page asks for."""
    memorized = prompts.memorized_rows[:3]
    lists = {
        "captions": memorized["prompt"].tolist(),
        "ordinary": prompts.ordinary[:9],
        "unseen": prompts.of("heldout")[:2],
    }
    for name, captions in lists.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(captions) + "\n")
    for number, image in enumerate(prompts.images("verbatim", 0, 2), 1):  # that of the last caption is not known
        save_image(image, tmp_path / "training-images" / str(number) / "0.png")
    pipe.save_pretrained(tmp_path / "my-model")
    # In the place of SSCD and CLIP, which are fetched.
    shutil.copytree(Path(memsub.models.find_model("tiny").source) / "scorers", tmp_path / "my-model" / "scorers")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(model: str, capsys) -> str:
    printed = []
    for words in commands():
        words = shlex.split(" ".join(words).replace(" my-model ", f" {model} ", 1) + " " + FEWER.get(words[0], ""))
        assert main(words) == 0, capsys.readouterr().err
        printed.append(capsys.readouterr().out)
    return "\n".join(printed)


def test_the_page_runs_as_written_on_a_folder(workplace, capsys):
    printed = run_page("my-model", capsys)
    for line in output_shown():
        assert re.search(line, printed), line
    scores = pd.read_csv("scores.csv")
    assert len(scores) == 3 and scores["text magnitude: percentile"].mean() > 50
    rows = {row["measure"]: row for row in load_json("evaluation/evaluation.json")["measures"]}
    replicated = rows["captions with a replicated image"]
    assert replicated["captions"] == 2 and replicated["before"] > replicated["after"]
    assert "1 of 3 captions have no training image and are not judged" in printed
    assert "Without --images" not in printed
    repaired, edit = load_pipeline("repaired", device="cpu"), memsub.Edit.load("edit.safetensors")
    zero = [~repaired.unet.get_submodule(n).weight.flatten()[p].any() for n, p in edit.positions.items()]
    assert np.all(zero)


def test_the_page_runs_as_written_on_a_single_file(workplace, micro, metrics, monkeypatch, capsys):
    single_file = pytest.importorskip("single_file", reason="single files do not load yet")
    single_file.save_single_file(micro, workplace / "my-model.safetensors")
    micro.save_pretrained(workplace / "folder")
    monkeypatch.setattr("memsub.measure.metrics.load_metrics", lambda *a, **k: metrics)
    assert "1 of 3 captions have no training image" in run_page("my-model.safetensors --config folder", capsys)
    assert load_pipeline("repaired", device="cpu").unet.config.sample_size == micro.unet.config.sample_size
