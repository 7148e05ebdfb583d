"""The two commands for people who do not open notebooks."""

import pytest
from diffusers import StableDiffusionPipeline

import memsub
from memsub.__main__ import main


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
        assert not repaired.unet.get_submodule(name).weight.flatten()[positions].any()
    # The edit belongs to the unedited model: it says so instead of doing anything.
    assert main(["prune", str(out), "--edit", str(edit), "--out", str(tmp_path / "twice")]) == 1
    assert "made for another model" in capsys.readouterr().err
    assert not (tmp_path / "twice").exists()
    assert main(["prune", "tiny", "--edit", str(edit), "--out", str(out)]) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["locate", "tinny", "--out", "e"], "Did you mean 'tiny'"),
        (["locate", "tiny", "--prompts", "none.txt", "--out", "e"], "no prompt file"),
        (["locate", "tiny", "--tau", "99", "--out", "e"], "--tau 99 steps cannot be united where --steps 50"),
        (["locate", "tiny", "--out", "/proc/nowhere/e"], "cannot be written"),
        (["prune", "tiny", "--edit", "none", "--out", "o"], "no Edit at"),
        (["run", "tinny"], "expected one of"),
    ],
)
def test_bad_input_is_an_error_in_a_line_before_anything_is_loaded(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("memsub.models.load_pipeline", lambda *a, **k: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps: 0 is out of bounds: at least 1"),
        (["--sparsity", "7"], "--sparsity: 7 is out of bounds: more than 0, at most 1"),
        (["--sparsity", "nan"], "--sparsity: nan is out of bounds"),
        (["--batch-size", "0"], "--batch-size: 0 is out of bounds"),
        (["--seed", "one"], "--seed: invalid whole number value: 'one'"),
    ],
)
def test_a_number_out_of_bounds_is_an_error_of_the_option(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["locate", "tiny", "--out", "e", *arguments])
    assert message in capsys.readouterr().err
