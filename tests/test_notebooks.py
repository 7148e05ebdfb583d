"""The committed notebooks: parameters that are those of tiny.yaml, and outputs whose check can fail."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from memsub.runs import Parameters

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def parameters_of(notebook) -> dict:
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    values: dict = {}
    exec(cell.source, {}, values)
    return values


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_defaults_are_those_of_the_embedded_model(path):
    notebook = nbformat.read(path, as_version=4)
    tiny = Parameters.load(ROOT / "papermill_params" / "tiny.yaml").model_dump()
    for key, value in parameters_of(notebook).items():
        assert tiny[key] == value, key
    first = next(c for c in notebook.cells if c.cell_type == "code")
    assert "parameters" in first.metadata["tags"]


def test_parameter_files_are_valid():
    assert Parameters.load(ROOT / "papermill_params" / "tiny.yaml") == Parameters()
    for name in ("sd14", "sd20"):
        assert Parameters.load(ROOT / "papermill_params" / f"{name}.yaml").model == name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_committed_and_hold_nothing_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code" and "parameters" not in c.metadata.get("tags", [])]
    assert all(c.execution_count for c in code)
    assert any("nbval-ignore-output" not in c.metadata.get("tags", []) for c in code), "nothing is compared"
    text = path.read_text()
    assert "/home/" not in text
    assert "site-packages" not in text
    assert str(ROOT) not in text


def test_nbval_fails_when_an_output_changes(tmp_path):
    """The first compared cell of notebook 00 in a copy: passes as committed, fails with another number."""
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    compared = next(
        i
        for i, c in enumerate(notebook.cells)
        if c.cell_type == "code" and any(o.get("name") == "stdout" for o in c.outputs)
    )
    light = ("parameters", "import", "run =", "prompts =")
    cells = [
        c
        for c in notebook.cells[:compared]
        if c.cell_type == "code" and any(word in c.source or word in c.metadata.get("tags", []) for word in light)
    ][:2]
    notebook.cells = [*cells, notebook.cells[compared]]

    def passes() -> bool:
        nbformat.write(notebook, tmp_path / "copy.ipynb")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--nbval",
            str(tmp_path / "copy.ipynb"),
        ]
        return (
            subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, cwd=tmp_path, check=False).returncode == 0
        )

    assert passes()
    (output,) = [o for o in notebook.cells[-1].outputs if o.get("name") == "stdout"]
    output.text = output.text.replace("100", "101", 1)
    assert not passes()
