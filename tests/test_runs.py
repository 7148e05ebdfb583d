"""Parameters, run folders, and the two commands for people who do not open notebooks."""

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import memsub
from memsub import batch
from memsub.__main__ import main
from memsub.files import save_image
from memsub.prompts import disjoint_pairs, subsets
from memsub.runs import Parameters, Run

SMALL = {"steps": 2, "memorized": 6, "sizes": [2, 3], "subsets": 3, "judged": 3, "judge_steps": 2, "batch_size": 6}


@pytest.fixture
def run(tmp_path, pipe, prompts, judges):
    run = Run(Parameters(run=str(tmp_path / "run"), **SMALL))
    run.pipe, run.prompts, run.judges = pipe, prompts, judges  # loaded already
    return run


# --- parameters ----------------------------------------------------------------------------------------------


def test_a_typo_is_an_error_that_lists_the_keys(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: tiny\nsparsty: 0.1\n")
    with pytest.raises(ValueError, match=r"'sparsty' in .*mine.yaml. Did you mean 'sparsity'.* cfg_half"):
        Parameters.load(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sparsity: 2", "sparsity: .* less than or equal to 1, got 2"),
        ("cfg_half: left", "cfg_half"),
        ("steps: many", "steps"),
        ("- a list", "must hold a mapping"),
        ("a: [", "no YAML"),
        ("", "must hold a mapping"),
    ],
)
def test_bad_values_are_named(tmp_path, text, told):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=told):
        Parameters.load(tmp_path / "p.yaml")


def test_a_misspelt_variable_in_a_notebook_is_found():
    assert Run.from_notebook({"model": "tiny", "In": [], "Out": {}, "_i": "", "exit": print}).parameters.model == "tiny"
    with pytest.raises(ValueError, match=r"'stepz'.*'steps'"):
        Run.from_notebook({"stepz": 2})
    with pytest.raises(ValueError, match=r"unknown model 'tinny'\. Did you mean 'tiny'"):
        Run.from_notebook({"model": "tinny"})


def test_more_prompts_than_there_are(run):
    run.parameters = run.parameters.model_copy(update={"memorized": 5000})
    with pytest.raises(ValueError, match="5000 prompts of each kind were asked for, but only 100 are memorized"):
        run.captions("memorized")


# --- subsets and captions -------------------------------------------------------------------------------------


def test_subsets_share_as_little_as_possible():
    tens = subsets(100, 10, 10)
    assert sorted(i for part in tens for i in part) == list(range(100))
    assert len(disjoint_pairs(tens)) == 45
    fifties = subsets(100, 50, 10)
    assert len(disjoint_pairs(fifties)) == 5
    assert subsets(100, 10, 10) == tens != subsets(100, 10, 10, seed=1)
    with pytest.raises(ValueError, match="subsets of 11 prompts were asked for, but there are 10"):
        subsets(10, 11, 1)


# --- artifacts ------------------------------------------------------------------------------------------------


def test_the_grid_is_captured_once_and_equals_separate_captures(run, pipe, monkeypatch):
    stats = run.grid
    group = run.members(3)[1]
    alone = memsub.capture(
        pipe, [run.captions("ordinary")[i] for i in group], steps=2, guidance_scale=3.0, progress=False
    )
    for name, norms in alone.norms().items():
        torch.testing.assert_close(stats.norms("ordinary 3/1")[name], norms, rtol=2e-4, atol=1e-6)
    masks, edit = run.masks("memorized", 3, 1), run.edit("memorized 3/1", steps=2)
    again = Run(run.parameters)
    again.pipe, again.prompts = pipe, run.prompts
    monkeypatch.setattr("memsub.runs.capture", lambda *a, **k: pytest.fail("captured twice"))
    for name, sums in stats.sums.items():
        assert torch.equal(again.grid.sums[name], sums)
    assert torch.equal(again.masks("memorized", 3, 1).density(), masks.density())
    assert again.edit("memorized 3/1", steps=2).density == edit.density > 0
    assert run.edit("memorized 3/1", steps=2, contrast="ordinary").density > 0


def test_changed_parameters_or_a_truncated_file_do_not_go_unnoticed(run):
    run.grid  # noqa: B018
    (path,) = run.folder.glob("grid-*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    again = Run(run.parameters)
    again.pipe, again.prompts = run.pipe, run.prompts
    with pytest.raises(ValueError, match=f"{path.name} is truncated"):
        again.grid  # noqa: B018
    other = Run(run.parameters.model_copy(update={"steps": 1}))
    other.pipe, other.prompts = run.pipe, run.prompts
    assert other.grid.sums[next(iter(other.grid.sums))].shape[1] == 1


def test_an_edit_is_judged_on_prompts_that_did_not_locate_it(run):
    frame = run.evaluate(located_on=[0, 1])
    assert set(frame[frame["kind"] == "memorized"]["prompt"]) == set(run.captions("memorized")[2:5])
    pd.testing.assert_frame_equal(frame, run.evaluate(located_on=[0, 1]))
    means = memsub.summary(frame)
    assert 0 <= means["reproduced"] <= 1
    assert frame.loc[frame["kind"] == "never seen", "copy_similarity"].isna().all()
    unedited = run.judge(None, located_on=[0, 1])
    assert unedited["kept"] == 1
    assert unedited["density"] == 0
    assert unedited["reproduced"] == means["reproduced"]


def test_training_images_of_a_published_list(run, tmp_path):
    """Lists have addresses, not images: those in the folder are used, prompts without one are left out."""
    table = pd.DataFrame({"prompt": ["a", "b", "c"], "kind": "memorized", "index": [7, 8, 9], "url": "x"})
    run.prompts = memsub.Prompts(table, ("memorized",))
    run.parameters = run.parameters.model_copy(update={"memorized": 3, "images": str(tmp_path / "gt")})
    (tmp_path / "gt").mkdir()
    with pytest.raises(ValueError, match="holds no training image of these prompts"):
        run.references  # noqa: B018
    save_image(np.full((20, 10, 3), 9, np.uint8), tmp_path / "gt" / "8" / "0.png")
    assert list(run.references) == [1]
    assert run.references[1].shape == (32, 32, 3)
    assert run.unused([0]) == [1]
    with pytest.raises(ValueError, match="real: a folder of pictures for the FID is needed"):
        run.real_images()


def test_random_masks_have_the_same_counts_a_row(run):
    masks = run.masks("memorized", 3, 0)
    control = masks.random(1)
    np.testing.assert_array_equal(control.density(), masks.density())
    name = next(iter(masks.layers))
    np.testing.assert_array_equal(control.dense(name, 1).sum(1), masks.dense(name, 1).sum(1))
    assert not torch.equal(control.dense(name, 1), masks.random(2).dense(name, 1))


# --- commands -------------------------------------------------------------------------------------------------


def test_locate_then_prune_gives_a_pipeline_that_loads_anywhere(tmp_path, pipe, capsys):
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(memsub.load_prompts("tiny").memorized[:3]))
    edit, out = tmp_path / "edit.safetensors", tmp_path / "pruned"
    assert main(["locate", "tiny", "--prompts", str(captions), "--steps", "2", "--tau", "2", "--out", str(edit)]) == 0
    assert main(["prune", "tiny", "--edit", str(edit), "--out", str(out)]) == 0
    assert "set to zero" in capsys.readouterr().out
    repaired = StableDiffusionPipeline.from_pretrained(out)
    found = memsub.Edit.load(edit)
    for name, positions in found.positions.items():
        assert not repaired.unet.get_submodule(name).weight.view(-1)[positions].any()
    # The edit belongs to the unedited model: it says so instead of doing anything.
    assert main(["prune", str(out), "--edit", str(edit), "--out", str(tmp_path / "twice")]) == 1
    assert "made for another model" in capsys.readouterr().err
    assert not (tmp_path / "twice").exists()
    assert main(["prune", "tiny", "--edit", str(edit), "--out", str(out)]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_bad_input_is_told_in_a_line(tmp_path, capsys):
    for arguments, told in (
        (["locate", "tinny", "--out", "e"], "Did you mean 'tiny'"),
        (["locate", "tiny", "--prompts", str(tmp_path / "none.txt"), "--out", "e"], "no prompt file"),
        (["prune", "tiny", "--edit", str(tmp_path / "none"), "--out", str(tmp_path / "o")], "no Edit at"),
        (["run", "tinny"], "expected one of"),
    ):
        assert main(arguments) == 1
        assert told in capsys.readouterr().err


def test_dry_run_tells_the_cost_and_downloads_nothing(capsys):
    assert main(["run", "tiny", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "ms an image and step on cpu" in told
    assert "MB of statistics" in told
    row = next(line for line in told.splitlines() if "capture of the grid" in line)
    assert row.split()[5:8] == ["201", "50", "200"]  # 100 memorized, 100 ordinary and the empty prompt, 60 at a time
    assert main(["run", "sd14", "--dry-run"]) == 0
    assert "no time estimate: the model is not on this machine yet" in capsys.readouterr().out


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A project of two small notebooks."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "papermill_params").mkdir()
    (tmp_path / "papermill_params" / "small.yaml").write_text("model: tiny\nseed: 3\n")
    parameters = new_code_cell("seed = 0", metadata={"tags": ["parameters"]})
    first = new_notebook(
        cells=[parameters, new_markdown_cell("# First"), new_code_cell("print('seed', seed)\nopen(run + '/first', 'a').write('x');")]
    )  # fmt: skip
    second = new_notebook(
        cells=[parameters, new_code_cell("import os\nassert os.path.exists(run + '/go'), 'not yet'\nprint('second')")]
    )
    for i, notebook in enumerate((first, second)):
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, tmp_path / "notebooks" / f"0{i}_n.ipynb")
    monkeypatch.setattr(batch, "project", lambda: tmp_path)
    return tmp_path


def test_run_resumes_from_the_first_notebook_that_changed(checkout, capsys):
    out = checkout / "out"
    arguments = ["run", "small", "--out", str(out)]
    assert main(arguments) == 1
    assert "01_n.ipynb stopped at In [3]: AssertionError: not yet" in capsys.readouterr().err
    (out / "go").touch()
    assert main(arguments) == 0  # goes on with the second
    assert (out / "first").read_text() == "x"
    report = (out / "report.html").read_text()
    assert "seed 3" in report
    assert "open(run" not in report  # results, not code
    assert main(arguments) == 0  # nothing changed, nothing is executed
    assert (out / "first").read_text() == "x"
    notebook = nbformat.read(checkout / "notebooks" / "00_n.ipynb", as_version=4)
    notebook.cells[2].source += "\n"
    nbformat.write(notebook, checkout / "notebooks" / "00_n.ipynb")
    assert main(arguments) == 0
    assert (out / "first").read_text() == "xx"


def test_two_runs_with_one_seed_give_the_same_artifacts(tmp_path, pipe, prompts):
    files = []
    for name in ("one", "two"):
        run = Run(Parameters(run=str(tmp_path / name), **SMALL))
        run.pipe, run.prompts = pipe, prompts
        run.masks("memorized", 3, 0)
        run.edit("memorized 3/0", steps=2).save(run.folder / "edit.safetensors")
        files.append(sorted(run.folder.iterdir()))
    assert [p.name for p in files[0]] == [p.name for p in files[1]]
    assert len(files[0]) == 4
    for one, two in zip(*files, strict=True):
        if one.name.startswith(("masks", "edit")):  # whole numbers: to the byte
            assert one.read_bytes() == two.read_bytes(), one.name
        else:  # sums of floats: threads may add in another order
            a, b = (memsub.ActivationStats.load(p) for p in (one, two))
            assert (a.counts, a.made, a.prompts) == (b.counts, b.made, b.prompts)
            for layer, sums in a.sums.items():
                torch.testing.assert_close(sums, b.sums[layer], rtol=1e-5, atol=1e-8)
