"""The report: verdicts on top, contents, formulas and figures that need no network."""

import re

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from memsub.files import save_json
from memsub.report import verdicts, write_report

WIDGET = "application/vnd.jupyter.widget-view+json"


def folder(tmp_path):
    """A run folder with one executed notebook and what it found."""
    outputs = [
        new_output("stream", name="stderr", text="100%|####| 3/3"),
        new_output("stream", name="stdout", text="42 weights"),
        new_output("display_data", {WIDGET: {"model_id": "x"}, "text/plain": "Explorer(children=())"}),
    ]
    cells = [
        new_markdown_cell("# 04 · Pruning\n\nSet $W_{ij} = 0$, not `$HOME`:\n\n$$a_j = \\sqrt{\\sum_n h_{n,j}^2}$$"),
        new_markdown_cell("## Checks & balances"),
        new_code_cell("print(42)", outputs=outputs),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "04_pruning.ipynb")
    claims = {
        "less than <half> is left": {"verdict": "holds", "value": 0.4, "bound": 0.5, "varies": 0.01},
        "nothing else is lost": {"verdict": "FAILS", "value": 0.9, "bound": 1.0, "varies": 0.01},
        "the weights are as they were": {"verdict": "holds", "value": 1.0, "bound": 1.0, "varies": 0.0},
    }
    save_json({"claims": claims, "facts": {}}, tmp_path / "findings" / "04_pruning.json")
    return tmp_path / "04_pruning.ipynb"


def test_what_fails_stands_on_top(tmp_path):
    found = verdicts([folder(tmp_path).parent / "findings" / "04_pruning.json", tmp_path / "missing.json"])
    assert "Verdicts of 3 claims: holds 2, open 0, FAILS 1" in found
    assert found.index("nothing else is lost") < found.index("less than &lt;half&gt; is left")
    assert "0.9 (bound 1)" in found
    assert found.count("exact") == 1
    assert verdicts([tmp_path / "missing.json"]) == ""


def test_the_page_has_contents_formulas_and_parameters_and_needs_no_network(tmp_path):
    path = folder(tmp_path)
    page = write_report([path], tmp_path / "report.html", "memsub: tiny", {"model": "tiny"}).read_text()
    for target in re.findall(r"href='#([^']+)'", page):
        assert f'id="{target}"' in page
    assert "Checks &amp; balances</a>" in page
    assert page.count("<math") == 2
    assert "<code>$HOME</code>" in page
    assert "FORMULA" not in page
    assert "model: tiny" in page
    assert "42 weights" in page
    assert "####" not in page
    assert "Explorer(children" not in page
    assert not re.findall(r"(?:src|href)=['\"]https?:", page)
    assert "width=device-width" in page
