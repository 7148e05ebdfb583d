"""The committed notebooks: parameters, prose made from numbers, and outputs whose check can fail."""

import ast
import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from memsub.models import MODELS
from memsub_extra.notebooks.listing import NOTEBOOKS as REGISTERED
from memsub_extra.run.parameters import Parameters

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def parameters_of(notebook) -> dict:
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    values: dict = {}
    exec(cell.source, {}, values)
    return values


def test_every_notebook_is_registered():
    assert [p.stem for p in NOTEBOOKS] == sorted(REGISTERED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_parameters_are_those_of_the_embedded_model(path):
    notebook = nbformat.read(path, as_version=4)
    first = next(c for c in notebook.cells if c.cell_type == "code")
    assert "parameters" in first.metadata["tags"]
    tiny = yaml.safe_load((ROOT / "papermill_params" / "tiny.yaml").read_text())
    for part, value in parameters_of(notebook).items():
        assert tiny[part] == value, part


def test_parameter_files_are_valid():
    for model in (m for m in MODELS.values() if m.parameters):
        assert Parameters.load(ROOT / "papermill_params" / model.parameters).model == model.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_prose_that_states_a_result_is_made_from_numbers(path):
    """Markdown is copied into every model's report: it may explain, but not say what was seen."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert "Seen:" not in cell.source
            text = re.sub(r"https?://\S+", "", cell.source)
            assert not re.search(r"\d\.\d\d|\b\d+ of \d+\b", text), cell.source
    assert any(re.search(r"\b(say|result)\(", c.source) for c in notebook.cells if c.cell_type == "code")
    assert re.search(r"\bchecks\(", notebook.cells[-1].source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_cell_uses_the_name_of_a_parameter(path):
    """They are in `run.parameters`; overwritten, the cell that reads them could not be executed again."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            names = {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}
            assert not names & set(Parameters.model_fields), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_fit_a_glance(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert max(map(len, cell.source.splitlines()), default=0) <= 140, cell.source
        if cell.cell_type == "code" and not re.search(r"\bchecks\(", cell.source):
            assert len(cell.source.splitlines()) <= 26, cell.source


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
    """The first compared cell of notebook 00, twice in a copy: as committed it passes, with another number it fails.

    It prints what it printed when it was committed: what it computes takes seconds, and is what `make test` checks.
    """
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    compared = next(c for c in notebook.cells if any(o.get("name") == "stdout" for o in c.get("outputs", ())))
    (output,) = compared.outputs
    compared.source = f"print({output.text!r}, end='')"
    changed = copy.deepcopy(compared)
    changed.id, changed.outputs[0].text = "changed", output.text.replace("100", "101", 1)
    assert changed.outputs != compared.outputs
    notebook.cells = [compared, changed]
    nbformat.write(notebook, tmp_path / "copy.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", str(tmp_path / "copy.ipynb")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "1 failed, 1 passed" in ran.stdout
