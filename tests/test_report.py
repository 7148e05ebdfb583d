"""The report: verdicts on top, contents, formulas and figures that need no network; what is data stays data."""

import base64
import hashlib
import re

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from memsub.io.files import save_json
from memsub_extra.notebooks.formulas import FORMULA, mathml
from memsub_extra.notebooks.report import verdicts, write_report

WIDGET = "application/vnd.jupyter.widget-view+json"


def write_notebook(path, cells):
    nbformat.write(new_notebook(cells=cells), path)
    return path


def claim(verdict, value, low, high, relation, bound, varies=0.01):
    numbers = {"value": value, "low": low, "high": high, "bound": bound, "varies": varies}
    return {"verdict": verdict, "relation": relation} | numbers


def run_folder(tmp_path):
    """A run folder with one executed notebook and its claims."""
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
    claims = {
        "less than <half> is left": claim("holds", 0.4, 0.3, 0.48, "at most", 0.5),
        "nothing else is lost": claim("fails", 0.9, None, None, "at least", 1.0),
        "random weights delete nothing": claim("inconclusive", 0.1, 0.02, 0.3, "at most", 0.15),
        "the weights are as they were": claim("holds", 1.0, None, None, "exact", 1.0, varies=0.0),
    }
    save_json({"claims": claims, "facts": {}}, tmp_path / "findings" / "04_pruning.json")
    return write_notebook(tmp_path / "04_pruning.ipynb", cells)


def test_a_notice_is_the_first_line(tmp_path):
    page = write_report(
        [run_folder(tmp_path)], tmp_path / "report.html", "memsub", notice="weights <are> random"
    ).read_text()
    text = re.sub(r"<[^>]+>", "", page.partition("<body>")[2])
    assert text.strip().startswith("weights &lt;are&gt; random")


def test_what_fails_stands_on_top(tmp_path):
    table = verdicts([run_folder(tmp_path).parent / "findings" / "04_pruning.json", tmp_path / "missing.json"])
    assert "Verdicts of 4 claims: holds 2, fails 1, inconclusive 1" in table
    order = ("nothing else is lost", "random weights delete nothing", "less than &lt;half&gt; is left")
    places = [table.index(sentence) for sentence in order]
    assert places == sorted(places)
    assert "0.9 (at least 1)" in table
    assert "0.4 (0.3 to 0.48; at most 0.5)" in table
    assert table.count("<td>exact</td>") == 1
    assert verdicts([tmp_path / "missing.json"]) == ""


def test_the_page_has_contents_formulas_and_parameters_and_needs_no_network(tmp_path):
    path = run_folder(tmp_path)
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


def test_only_the_pages_own_script_may_run(tmp_path):
    page = write_report([run_folder(tmp_path)], tmp_path / "report.html", "memsub").read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert (rules["style-src"], rules["img-src"]) == ("'unsafe-inline'", "data:")
    assert page.index("Content-Security-Policy") < page.index("<style>")


NAME = '<script>alert(1)</script><img src=x onerror=alert(2)><a href="javascript:alert(3)">x</a>'


@pytest.mark.parametrize(
    "cell",
    [
        new_code_cell(outputs=[new_output("display_data", {"text/html": f"<table><tr><td>{NAME}</td></tr></table>"})]),
        new_code_cell(outputs=[new_output("display_data", {"text/markdown": f"*Seen:* {NAME}"})]),
        new_code_cell(outputs=[new_output("display_data", {"text/html": f"<b>{NAME}", "text/plain": "x"})]),
        new_code_cell(outputs=[new_output("stream", name="stdout", text=NAME)]),
        new_code_cell(outputs=[new_output("display_data", {"image/svg+xml": f"<svg>{NAME}</svg>", "text/plain": "x"})]),
        new_code_cell(outputs=[new_output("display_data", {"text/javascript": "alert(1)", "text/plain": "x"})]),
        new_markdown_cell(NAME),
    ],
    ids=["table", "sentence", "unclosed", "printed", "svg", "javascript", "text"],
)
def test_a_name_is_no_script(tmp_path, cell):
    path = write_notebook(tmp_path / "04_x.ipynb", [new_markdown_cell("# 04 · X"), cell])
    page = write_report([path], tmp_path / "report.html", NAME, {"data": {"memorized": NAME}}).read_text()
    assert page.count("<script") == page.count("</script>") == 1
    assert not re.search(r"<[^>]* on\w+=", page)  # no handler in a tag
    assert not re.search(r"<a[^>]* href=[\"']?javascript", page)
    assert "<svg" not in page and ">alert(1)" not in page.replace("&lt;script&gt;alert(1)", "")


def test_tables_and_links_of_notebooks_stay(tmp_path):
    styled = (
        "<style>td { color: red; }</style><table><thead><tr><th>rate</th></tr></thead><tr><td>12 %</td></tr></table>"
    )
    cells = [
        new_markdown_cell("# 04 · X\n\nSee [the paper](https://arxiv.org/abs/2406.18566), *or* `code`.\n\n> a > b & c"),
        new_code_cell(outputs=[new_output("display_data", {"text/html": styled})]),
    ]
    path = write_notebook(tmp_path / "04_x.ipynb", cells)
    page = write_report([path], tmp_path / "report.html", "x").read_text()
    for kept in ('href="https://arxiv.org/abs/2406.18566"', "<em>or</em>", "<code>code</code>", "a &gt; b &amp; c"):
        assert kept in page
    assert "<th>rate</th>" in page and "<td>12 %</td>" in page
    assert "color: red" not in page


def test_figures_are_embedded_and_text_that_looks_like_one_is_text(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "figure.png")
    png = base64.b64encode((tmp_path / "figure.png").read_bytes()).decode()
    text = "data:image/png;base64,AAAA and data:image/png;base64,not even base64!"
    outputs = [
        new_output("display_data", {"image/png": png, "text/plain": "Figure"}),
        new_output("stream", name="stdout", text=text),
        new_output("display_data", {"text/html": '<img src="data:image/png;base64,AAAA">'}),
    ]
    path = write_notebook(tmp_path / "04_x.ipynb", [new_markdown_cell("# 04 · X"), new_code_cell(outputs=outputs)])
    page = write_report([path], tmp_path / "report.html", "x").read_text()
    webp = re.search(r'src="data:image/webp;base64,([^"]+)"', page)[1]
    (tmp_path / "figure.webp").write_bytes(base64.b64decode(webp))
    assert Image.open(tmp_path / "figure.webp").size == (4, 4)
    assert page.count("data:image/webp") == 1
    assert text in page


def test_dollars_are_no_formulas():
    found = [m.groupdict() for m in FORMULA.finditer(r"$20 or $30, `$x$`, \$5 and \$6, $a_j$ and $$b$$; $c$.")]
    assert [m["inline"] or m["block"] for m in found if not m["code"]] == ["a_j", "b", "c"]
    assert [m["code"] for m in found if m["code"]] == ["`$x$`"]


def test_formulas_are_mathml():
    assert "<mi>&#x003C4;</mi>" in mathml(r"\tau", block=False)
    assert 'display="block"' in mathml(r"\sqrt{2}", block=True)
    assert mathml("a_b_c <", block=False) == "<code>a_b_c &lt;</code>"  # which is no TeX
