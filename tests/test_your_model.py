"""docs/your-model.md runs as it is written: from a checkpoint and captions to an edit and what it does."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import memsub
from memsub.__main__ import COMMANDS, main
from memsub.io.files import load_json
from memsub.io.images import save_image
from memsub.models import as_denoiser, load_pipeline
from memsub_extra.unlearning import shipped
from memsub_extra.unlearning.pairs import Pairs
from memsub_extra.unlearning.price import price
from memsub_extra.unlearning.removals import REMOVALS, displayed

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


# --- removals ----------------------------------------------------------------------------------------------------


IN_THE_TABLE = [name for name in REMOVALS if "," not in name]
FEW = {"epochs": 1, "steps": 2, "alone": 1, "iterations": 1, "rounds": 1}
"""Of a removal's options, those that say how long it takes."""


@pytest.fixture
def pairs_folder(tmp_path, monkeypatch, micro, prompts):
    """The files that the page's Python reads, for a small model."""
    side = as_denoiser(micro).image_shape[0]
    for kind, captions, folder, n in (
        ("verbatim", "captions", "training-images", 6),
        ("ordinary", "ordinary", "ordinary-images", 8),
    ):
        texts = prompts.of(kind)[:n]
        (tmp_path / f"{captions}.txt").write_text("\n".join(texts) + "\n")
        table = pd.DataFrame({"caption": texts, "rephrased": [f"in other words, {text}" for text in texts]})
        table.to_csv(tmp_path / f"{captions}.csv", index=False)
        rng = np.random.default_rng(n)
        for number in range(1, n):  # the last caption has no image
            image = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            save_image(image, tmp_path / folder / str(number) / "0.png")
    micro.save_pretrained(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snippet() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    return code


def test_the_table_has_the_removals_that_can_be_exchanged():
    assert all(f"| {displayed(name)} |" in PAGE for name in shipped.whole(shipped.costs()))
    assert 'name = "regrowth"' in snippet()


@pytest.mark.parametrize("name", IN_THE_TABLE)
def test_the_python_of_the_page_runs_as_written_with_every_removal(name, pairs_folder, monkeypatch, capsys):
    removal, code = REMOVALS[name], snippet().replace('name = "regrowth"', f"name = {name!r}")
    for option in FEW.keys() & removal.options.keys():
        monkeypatch.setitem(removal.options, option, FEW[option])
    if "pruning" in name:
        monkeypatch.setitem(removal.options, "sparsity", 0.1)  # of rows of 64 weights
    if removal.needs_wording:
        with pytest.raises(ValueError, match="other words"):
            exec(code, {})
        code = code.replace("captions.txt", "captions.csv")
    exec(code, {})
    told = capsys.readouterr().out
    assert "5 of 6 captions of captions." in told and "7 of 8 captions of ordinary.txt have an image" in told
    assert "Minutes and memory of 'my-model' are not known: on a GPU sd14 and sd20 were measured" in told
    edit = memsub.Edit.load("edit.safetensors")
    assert any(map(len, edit.positions.values()))
    with memsub.pruned(load_pipeline("my-model", dtype=torch.bfloat16), edit):
        pass  # it belongs to this model


def test_pairs_are_read_in_the_order_of_the_list(pairs_folder):
    save_image(np.full((40, 50, 3), 200, np.uint8), pairs_folder / "training-images" / "2" / "1.png")  # a second one
    pairs = Pairs.read("captions.csv", "training-images", 16)
    texts = pd.read_csv("captions.csv")
    assert pairs.captions == texts["caption"].tolist()[:5]
    assert pairs.wordings == [[text] for text in texts["rephrased"][:5]]
    assert pairs.images.shape == (5, 16, 16, 3) and pairs.images.dtype == np.uint8
    assert Pairs.read("captions.txt", "training-images", 16).wordings == []
    with pytest.raises(FileNotFoundError, match="no folder of images at nowhere"):
        Pairs.read("captions.txt", "nowhere", 16)
    (pairs_folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no training image of these 6 captions(?s:.*)empty/1, or"):
        Pairs.read("captions.txt", "empty", 16)


def test_a_price_says_what_it_cannot():
    told = str(price("regrowth", "sd14", 500))
    assert "1,800 steps" in told and "minutes" in told and "19.1 GB" in told and "not known" not in told
    for name in ("regrowth", "adversarial pruning"):
        own = price(name, "my-model", 500)
        assert own.steps > 0 and own.minutes is None and own.gigabytes is None
        assert "Name the one that it is as large as" in str(own)
    assert price("adversarial pruning", "sd14", 50).minutes == pytest.approx(4.9, abs=0.1)
    assert "The memory of this removal was not measured on sd14" in str(price("adversarial pruning", "sd14", 50))
    assert str(price("pruning", "sd14", 3)).startswith("no steps: it neither trains nor attacks, 3 pairs")
