"""Parameters: a typo, a bad value, and what belongs together are told before anything is loaded."""

import pytest

from memsub_extra.run.parameters import Parameters


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
        ("deletion: {iterations: [9, 5]}", "deletion.iterations: ascending numbers from 0 on expected"),
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


def test_the_edit_is_the_recommended_one_unless_given():
    assert Parameters().spec.sparsity == 0.25
    assert Parameters(model="sd14").spec.sparsity == Parameters(model="somebody/else").spec.sparsity == 0.01
    given = Parameters.checked({"edit": {"sparsity": 0.3}})
    assert given.spec.sparsity == given.mask_sparsity == 0.3
    assert Parameters.checked({"grid": {"sparsity": 0.05}}).mask_sparsity == 0.05


def test_a_notebook_is_told_by_its_parameters_cell_alone():
    """What other cells define is no parameter, so any cell can be executed again."""
    variables = {"model": "tiny", "grid": {"sizes": [10]}, "In": [], "Out": {}, "_i": "", "exit": print, "LEVEL": 0.1}
    first = Parameters.from_notebook(variables)
    assert first.grid.sizes == [10]
    variables |= {"run": object(), "layers": ["a"], "size": 5}  # as later cells do
    assert Parameters.from_notebook(variables) == first
    variables["grid"] = {"sizes": [20]}  # the parameters cell edited and executed again
    assert Parameters.from_notebook(variables).grid.sizes == [20]
    variables["extraction"] = object()
    with pytest.raises(
        ValueError, match="extraction is a parameter and holds a object by now: run the parameters cell"
    ):
        Parameters.from_notebook(variables)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"model": "tiny", "sede": 7}, r"unknown key 'sede' in the parameters cell\. Did you mean 'seed'"),
        ({"model": "tiny", "grid": {"size": [7]}}, r"unknown key 'grid\.size'.*Did you mean 'grid\.sizes'"),
        ({"stepz": 2}, "unknown key 'stepz'"),
    ],
)
def test_a_misspelt_parameter_in_a_notebook_is_found(variables, told):
    with pytest.raises(ValueError, match=told):
        Parameters.from_notebook(variables)


def test_dumped_parameters_are_read_again():
    found = Parameters.checked({"metrics": {"copy": "a.pt"}})
    assert found.dump()["metrics"]["copy"] == "a.pt"
    assert Parameters.checked(found.dump()) == found
