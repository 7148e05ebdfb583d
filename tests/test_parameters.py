"""Parameters: a typo, a bad value, and what belongs together are told before anything is loaded."""

import pytest

from memsub.parameters import Parameters

CELL = 'model = "tiny"\ngrid = {"sizes": [10]}'


def test_a_typo_is_an_error_that_lists_the_keys(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: tiny\ngrid: {szies: [10]}\n")
    with pytest.raises(ValueError, match=r"'grid.szies' in .*mine.yaml. Did you mean 'grid.sizes'.* memorized"):
        Parameters.load(path)
    path.write_text("modle: tiny\n")
    with pytest.raises(ValueError, match=r"'modle' in .*mine.yaml. Did you mean 'model'.* folder"):
        Parameters.load(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("edit: {sparsity: 2}", "edit.sparsity: .* less than or equal to 1, got 2"),
        ("capture: {cfg_half: left}", "capture.cfg_half"),
        ("sampling: {steps: many}", "sampling.steps"),
        ("capture: {steps: 0}", "capture.steps: .* greater than or equal to 1, got 0"),
        ("edit: {steps: 99}", "edit.steps unites 99 steps, but capture.steps makes 50"),
        ("grid: {sizes: [10, 200]}", "grid.sizes asks for 200 of 100 prompts"),
        ("extraction: {clique: 9, images: 5}", "extraction.clique is 9 of 5 images"),
        ("grid: 3", "grid"),
        ("- a list", "must hold a mapping"),
        ("a: [", "no YAML"),
        ("", "must hold a mapping"),
    ],
)
def test_bad_values_are_named(tmp_path, text, told):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=told):
        Parameters.load(tmp_path / "p.yaml")


def test_the_edit_is_the_recommended_one_unless_told():
    assert Parameters().edit_sparsity == 0.35
    assert Parameters(model="sd14").edit_sparsity == Parameters(model="somebody/else").edit_sparsity == 0.01
    told = Parameters.checked({"edit": {"sparsity": 0.2}})
    assert told.edit_sparsity == told.mask_sparsity == 0.2
    assert Parameters.checked({"grid": {"sparsity": 0.05}}).mask_sparsity == 0.05


def test_a_notebook_is_told_by_its_parameters_cell_alone():
    """Whatever other cells define, and however often they are executed, is no parameter."""
    cells = ["", CELL, "import memsub\nrun = 3", "size = 5", "layers = ['a']", "print(1)"]
    assert Parameters.from_cells(cells) == Parameters.from_cells([*cells, *cells[2:]])
    assert Parameters.from_cells(cells).grid.sizes == [10]
    assert Parameters.from_cells([*cells, 'model = "sd14"']).model == "sd14"  # edited, and executed again
    assert Parameters.from_cells([*cells, 'model = "sd14"']).grid.sizes != [10]


def test_papermill_overrides_the_parameters_cell():
    injected = '# Parameters\nmodel = "sd20"\nfolder = "x"\n'
    found = Parameters.from_cells(["", CELL, injected, "seed = 1 + 1"])
    assert (found.model, found.folder, found.grid.sizes) == ("sd20", "x", [10])
    assert Parameters.from_cells(["", CELL, "# Parameters\nseed = 7"]).seed == 7
    with pytest.raises(ValueError, match=r"unknown key 'sede' in the parameters cell\. Did you mean 'seed'"):
        Parameters.from_cells(["", CELL, "# Parameters\nsede = 7"])
    with pytest.raises(ValueError, match="unknown key 'stepz'"):
        Parameters.from_cells(["", CELL + "\nstepz = 2"])


def test_dumped_parameters_are_read_again():
    found = Parameters.checked({"metrics": {"copy": "a.pt"}})
    assert found.dump()["metrics"]["copy"] == "a.pt"
    assert Parameters.checked(found.dump()) == found
