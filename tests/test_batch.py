"""All notebooks, headless: what is executed, what is skipped, what the report holds."""

import html
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from tools.rehearsal import foreign_findings

from memsub import batch
from memsub.__main__ import main


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A project of two small notebooks."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "papermill_params").mkdir()
    (tmp_path / "papermill_params" / "small.yaml").write_text("model: tiny\nseed: 3\n")
    parameters = new_code_cell('model = "tiny"\nfolder = ""\nseed = 0', metadata={"tags": ["parameters"]})
    code = "print('seed', seed)\nopen(folder + '/first', 'a').write('x');"
    first = new_notebook(cells=[parameters, new_markdown_cell("# First"), new_code_cell(code)])
    second = new_notebook(
        cells=[
            parameters,
            new_code_cell("import os\nassert os.path.exists(folder + '/go'), 'not yet'\nprint('second')"),
        ]
    )
    for i, notebook in enumerate((first, second)):
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, tmp_path / "notebooks" / f"0{i}_n.ipynb")
    monkeypatch.setattr(batch, "project", lambda: tmp_path)
    monkeypatch.setattr(batch, "NOTEBOOKS", dict.fromkeys(("00_n", "01_n"), batch.of_any_model))
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
    assert "open(folder" not in report  # results, not code
    assert main(arguments) == 0  # nothing changed, nothing is executed
    assert (out / "first").read_text() == "x"
    notebook = nbformat.read(checkout / "notebooks" / "00_n.ipynb", as_version=4)
    notebook.cells[2].source += "\n"
    nbformat.write(notebook, checkout / "notebooks" / "00_n.ipynb")
    assert main(arguments) == 0
    assert (out / "first").read_text() == "xx"


def test_notebooks_run_side_by_side_after_the_capture(checkout, monkeypatch, capsys):
    source = checkout / "notebooks" / "00_n.ipynb"
    names = ("00_n", "01_n", "02_n", "03_n")
    monkeypatch.setattr(batch, "NOTEBOOKS", dict.fromkeys(names, batch.of_any_model))
    monkeypatch.setattr(batch, "CAPTURE", "01_n")
    code = """import os, time
began = time.time()
time.sleep(1)
open(f"{folder}/times", "a").write(f"NAME {began} {time.time()} {os.environ['OMP_NUM_THREADS']}\\n");"""
    for name in names:
        notebook = nbformat.read(source, as_version=4)
        notebook.cells[2].source = code.replace("NAME", name)
        nbformat.write(notebook, source.with_name(f"{name}.ipynb"))
    out = checkout / "out"
    assert main(["run", "small", "--out", str(out), "--jobs", "2"]) == 0
    rows = [line.split() for line in (out / "times").read_text().splitlines()]
    times = {name: (float(began), float(ended)) for name, began, ended, _ in rows}
    assert sorted(times) == list(names)
    assert {threads for *_, threads in rows} == {str(max(1, os.cpu_count() // 2))}
    assert min(times["02_n"][0], times["03_n"][0]) > times["01_n"][1]
    assert (out / "report.html").is_file()
    assert main(["run", "small", "--out", str(out), "--jobs", "2"]) == 0  # nothing is executed again
    assert len((out / "times").read_text().splitlines()) == len(names)
    assert main(["run", "small", "--out", str(out), "--jobs", "0"]) == 1
    assert "jobs: at least one notebook at a time; got 0" in capsys.readouterr().err


def test_side_by_side_too_the_first_error_is_told(checkout, capsys):
    out = checkout / "out"
    assert main(["run", "small", "--out", str(out), "--jobs", "2"]) == 1
    assert "01_n.ipynb stopped at In [3]: AssertionError: not yet" in capsys.readouterr().err
    (out / "go").touch()
    assert main(["run", "small", "--out", str(out), "--jobs", "2"]) == 0


def test_a_model_without_ground_truth_gets_the_notebooks_that_are_for_it():
    from memsub.models import MODELS

    names = {model: [p.stem for p in batch.find_notebooks(MODELS[model])] for model in ("tiny", "sd14")}
    assert names["tiny"] == list(batch.NOTEBOOKS)
    assert names["sd14"] == [n for n in batch.NOTEBOOKS if n != "00_testbed"]
    assert [p.stem[:2] for p in batch.find_notebooks(MODELS["sd14"], ["03", "00"])] == ["00", "03"]
    with pytest.raises(ValueError, match="no notebook's name begins with 77; there are 00_testbed"):
        batch.find_notebooks(MODELS["tiny"], ["77"])


def test_a_report_of_another_model_repeats_nothing_that_was_found_on_the_embedded_one(tmp_path):
    """The committed notebooks without their outputs are what another model's run begins with."""
    committed = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
    bare = []
    for path in committed:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = []
        bare.append(tmp_path / path.name)
        nbformat.write(notebook, bare[-1])

    def text(notebooks) -> str:
        report = batch.write_report(notebooks, tmp_path / "report.html", "x").read_text()
        return html.unescape(re.sub(r"<[^>]+>", "", report))

    assert not foreign_findings(text(bare), committed)
    assert len(foreign_findings(text(committed), committed)) > 20  # the grep finds them where they are
