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
        ("sweep: {sparsity: [0.1, -1]}", "sweep.sparsity.1: .* greater than 0, got -1"),
        ("sweep: {sparsity: [7]}", "sweep.sparsity.0: .* less than or equal to 1, got 7"),
        ("sweep: {sparsity: [.nan]}", "sweep.sparsity.0: .* finite number, got nan"),
        ("sweep: {sparsity: [0.1, 0.1]}", "sweep.sparsity: .* 0.1 stands there twice"),
        ("sweep: {steps: [-5]}", "sweep.steps.0: .* greater than or equal to 1, got -5"),
        ("capture: {steps: 1000000000}", "capture.steps: .* less than or equal to 1000"),
        ("grid: {sizes: [20, 10]}", "grid.sizes: .* ascending numbers are expected"),
        ("sampling: {guidance_scale: .inf}", "sampling.guidance_scale: .* finite number"),
        ("sampling: {batch_size: yes}", "sampling.batch_size is True, where a number, text or a list is expected"),
        ("seed: -1", "seed: .* greater than or equal to 0"),
        ("baselines: {strengths: {value neurons: [.nan]}}", "baselines.strengths.value neurons.0.* finite number"),
        ("baselines: {strengths: {value neurons: [[1]]}}", "baselines.strengths.value neurons.0"),
        (
            "baselines: {strengths: {value neuron: [1]}}",
            "baselines.strengths: unknown 'value neuron'; expected some of",
        ),
        ("metrics: {more: [sharpnes]}", "metrics.more: unknown 'sharpnes'; expected some of"),
        ("metrics: {more: [sharpness, sharpness]}", "'sharpness' stands there twice"),
        ("edit: {located_on: {kind: memorized, part: subset, size: 99}}", "edit.located_on: the grid has no subset"),
        ("edit: {located_on: {kind: memorized, prat: all}}", "edit.located_on.prat"),
        ("deletion: {edits: {'<script>x</script>': a.safetensors}}", "deletion.edits"),
        ("a: &a [x, x]\nb: [*a, *a]", r"anchors and aliases \(&, \*\) are not read \(line 1\)"),
        ("model: *a", "anchors and aliases"),
        ("model: tiny\nmodel: sd14", "the key 'model' stands there twice"),
        ("grid: {subsets: 3, subsets: 4}", "the key 'subsets' stands there twice"),
        ("model: tiny\n---\nmodel: sd14", "another document"),
        ("a: !!python/object/apply:os.abort []", "could not determine a constructor"),
        ("[" * 30 + "]" * 30, "nests deeper than parameters do"),
        ("[" * 20_000, "nests deeper than parameters do"),
        ("? [a, b]\n: 3", "unhashable key"),
        ("seed: " + "9" * 5000, "Exceeds the limit"),
        ("model: tiny\n" + "#" * 200_000, "has 200,012 bytes; a parameter file has at most 100,000"),
        ("model: \x1b[31m", "no YAML of parameters"),
        ("model: [tiny]", "model: .* valid string"),
        ("y" * 900 + ": 3", "unknown key 'yyyy"),
        ("a: [", "no YAML"),
        ("", "must hold a mapping"),
    ],
)
def test_bad_values_are_named(tmp_path, text, told):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=told) as error:
        Parameters.load(tmp_path / "p.yaml")
    assert len(str(error.value)) < 700


def test_home_is_home_and_numbers_may_be_written_with_an_exponent(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.yaml").write_text("folder: ~/runs\ndata: {images: ~/gt, prompts: {memorized: ~/a.txt}}\n")
    found = Parameters.load(tmp_path / "p.yaml")
    assert (found.folder, found.data.images) == (str(tmp_path / "runs"), str(tmp_path / "gt"))
    assert found.data.prompts == {"memorized": str(tmp_path / "a.txt")}
    (tmp_path / "p.yaml").write_text("edit: {sparsity: 1e-2}\nbaselines: {strengths: {random tokens: [1, 4]}}")
    found = Parameters.load(tmp_path / "p.yaml")
    assert found.edit.sparsity == 0.01
    assert [type(strength) for strength in found.baselines.strengths["random tokens"]] == [int, int]


def test_the_edit_is_the_recommended_one_unless_given():
    assert Parameters().spec.sparsity == 0.4
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
