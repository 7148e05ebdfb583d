"""All notebooks, headless: what is executed, what is skipped, what the report holds."""

import html
import os
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from tools.rehearsal import foreign_findings

from memsub.__main__ import main
from memsub.io.files import save_json
from memsub_extra.notebooks import batch
from memsub_extra.notebooks.listing import Notebook


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
    monkeypatch.setattr(batch, "of_model", lambda model: [Notebook("00_n"), Notebook("01_n", needs=("00_n",))])
    monkeypatch.setattr(batch, "known_work", lambda parameters, only: pd.DataFrame({"notebook": [], "steps": []}))
    monkeypatch.setattr(batch, "load_pipeline", lambda model: None)
    monkeypatch.setattr(batch, "seconds_per_step", lambda pipe, batch_size: 0.01)
    return tmp_path


def test_run_resumes_from_the_first_notebook_that_changed(checkout, capsys):
    out = checkout / "out"
    arguments = ["run", "small", "--out", str(out)]
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert "2 notebooks, 0 guided steps of one image at most, 10.0 ms each here: about 1 min" in told.out
    assert "01_n.ipynb stopped at In [3]: AssertionError: not yet" in told.err
    (out / "go").touch()
    assert main(arguments) == 0  # goes on with the second
    assert (out / "first").read_text() == "x"
    report = (out / "report.html").read_text()
    assert "seed 3" in report
    assert "open(folder" not in report  # results, not code
    capsys.readouterr()
    assert main(arguments) == 0  # nothing changed, nothing is executed
    assert "nothing to execute" in capsys.readouterr().out
    assert (out / "first").read_text() == "x"
    notebook = nbformat.read(checkout / "notebooks" / "00_n.ipynb", as_version=4)
    notebook.cells[2].source += "\n"
    nbformat.write(notebook, checkout / "notebooks" / "00_n.ipynb")
    assert main(arguments) == 0
    assert (out / "first").read_text() == "xx"


def test_notebooks_run_side_by_side_after_the_capture_and_an_error_is_printed(checkout, monkeypatch, capsys):
    source = checkout / "notebooks" / "00_n.ipynb"
    names = ("00_n", "01_n", "02_n", "03_n")
    listed = [Notebook(name, needs=("01_n",) if name > "01_n" else ()) for name in names]
    monkeypatch.setattr(batch, "of_model", lambda model: listed)
    code = """import os, time
began = time.time()
time.sleep(1)
open(f"{folder}/times", "a").write(f"NAME {began} {time.time()} {os.environ['OMP_NUM_THREADS']}\\n");"""
    for name in names:
        notebook = nbformat.read(source, as_version=4)
        waits = "import os\nassert os.path.exists(folder + '/go'), 'not yet'\n" * (name == "03_n")
        notebook.cells[2].source = waits + code.replace("NAME", name)
        nbformat.write(notebook, source.with_name(f"{name}.ipynb"))
    out = checkout / "out"
    assert main(["run", "small", "--out", str(out), "--jobs", "2"]) == 1
    assert "03_n.ipynb stopped at In [3]: AssertionError: not yet" in capsys.readouterr().err
    (out / "go").touch()
    assert main(["run", "small", "--out", str(out), "--jobs", "2"]) == 0
    rows = [line.split() for line in (out / "times").read_text().splitlines()]
    times = {name: (float(began), float(ended)) for name, began, ended, _ in rows}
    assert sorted(times) == list(names)
    assert {threads for *_, threads in rows} == {str(max(1, os.cpu_count() // 2))}
    assert min(times["02_n"][0], times["03_n"][0]) > times["01_n"][1]
    assert (out / "report.html").is_file()
    assert main(["run", "small", "--out", str(out), "--jobs", "2"]) == 0  # nothing is executed again
    assert len((out / "times").read_text().splitlines()) == len(rows)  # (one may have begun beside the one that failed)
    assert main(["run", "small", "--out", str(out), "--jobs", "0"]) == 1
    assert "jobs: at least one notebook at a time; got 0" in capsys.readouterr().err


def test_a_model_without_ground_truth_gets_the_notebooks_that_are_for_it():
    from memsub.models import MODELS

    names = {model: [n.name for n in batch.find_notebooks(MODELS[model])] for model in ("tiny", "sd14")}
    assert names["tiny"] == sorted(batch.NOTEBOOKS)
    assert names["sd14"] == [name for name in names["tiny"] if name != "00_testbed"]
    assert batch.left_out(MODELS["sd14"]) == "00_testbed (about the world 'testbed')"
    assert batch.left_out(MODELS["tiny"]) == ""
    assert [n.name[:2] for n in batch.find_notebooks(MODELS["sd14"], ["03", "00"])] == ["00", "03"]
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


def findings(rate: float, verdicts: list[str]) -> dict:
    claim = {"relation": "exact", "value": 1.0, "bound": 1.0, "varies": 0.0, "low": None, "high": None}
    claims = {f"claim {i}": claim | {"verdict": verdict} for i, verdict in enumerate(verdicts)}
    return {"claims": claims, "facts": {"located": {"value": rate, "varies": 0.1}, "best": {"n": 3, "name": "x"}}}


def test_what_a_notebook_found_is_told_in_a_line(tmp_path):
    assert batch.found_in_a_line("04_n", tmp_path) == "04_n: executed"
    save_json(findings(0.714, ["holds", "holds", "inconclusive"]), tmp_path / "findings" / "04_n.json")
    assert batch.found_in_a_line("04_n", tmp_path) == "04_n: 2 holds, 1 inconclusive; located 0.714, best.n 3"


def test_several_parameter_files_end_in_a_table_that_compares_them(checkout, monkeypatch, capsys):
    monkeypatch.setattr(batch, "of_model", lambda model: [Notebook("00_n")])
    (checkout / "papermill_params" / "other.yaml").write_text("model: tiny\nseed: 4\n")
    for name, rate in (("small", 0.7), ("other", 0.5)):
        save_json(findings(rate, ["holds"]), checkout / "out" / name / "findings" / "00_n.json")
    assert main(["run", "small", "other", "--out", str(checkout / "out")]) == 0
    table = pd.read_csv(checkout / "out" / "comparison.csv", index_col=0)
    assert table.loc["00 located"].to_dict() == {"small": 0.7, "other": 0.5}
    assert table.loc["00 claims: holds"].to_dict() == {"small": 1, "other": 1}
    assert "00 located" in capsys.readouterr().out
    assert (checkout / "out" / "other" / "report.html").is_file()
    assert main(["run", "small", "nothing"]) == 1  # all are checked before the first is executed
    assert "no parameters 'nothing'" in capsys.readouterr().err
