"""The site: modules in the reference, notebooks in the navigation, formulas as MathML, and nothing from elsewhere."""

import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import site_files
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from memsub_extra.notebooks.formulas import FORMULA, mathml

ROOT = Path(__file__).parents[1]
PROGRAMS = {"memsub.__main__", "memsub_extra.canaries.__main__"}
DOCUMENTS = [
    *sorted((ROOT / "docs").glob("*.md")),
    *site_files.PAGES.values(),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]


def modules() -> set[str]:
    """All modules of both packages; of packages those that say what they are for."""
    names = set()
    for path in (ROOT / "src").rglob("*.py"):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        if parts[-1] == "__init__":
            if not path.read_text().strip():
                continue
            parts = parts[:-1]
        names.add(".".join(parts))
    return names


def test_the_reference_names_every_module():
    text = "\n".join((ROOT / "docs" / name).read_text() for name in ("api.md", "api-extra.md"))
    assert sorted(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)) == sorted(modules() - PROGRAMS)


def test_the_site_shows_every_notebook():
    shown = set(re.findall(r"notebooks/(\w+\.ipynb)", (ROOT / "mkdocs.yml").read_text()))
    assert shown == {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}


def test_no_page_asks_another_host_for_anything():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert settings["theme"]["font"] is False
    assert not {"repo_url", "extra_javascript", "extra_css"} & set(settings)  # the first asks GitHub for its stars


def test_formulas_of_pages_are_mathml():
    """What pymdownx.arithmatex makes of `$\\tau$`, `` `$x$` ``, and a formula on a line of its own."""
    page = (
        '<p>the first <span class="arithmatex">\\(\\tau\\)</span> steps, <code>$x$</code>, $20 or $30</p>'
        '<div class="arithmatex">\\[a < b\\]</div>'.replace(" < ", " &lt; ")
    )
    built = site_files.on_page_content(page, SimpleNamespace(file=SimpleNamespace(src_uri="x.md")), None, None)
    assert built.count("<math") == 2 and built.count('display="block"') == 1
    assert "<mo>&#x0003C;</mo>" in built
    assert "arithmatex" not in built and "tau" not in built
    assert "<code>$x$</code>, $20 or $30" in built


@pytest.fixture
def notebook_page() -> str:
    """A notebook as nbconvert renders it, with the scripts that it would fetch."""
    from nbconvert import HTMLExporter

    output = new_output("stream", name="stdout", text="it costs $20 or $30 and $x$")
    cells = [
        new_markdown_cell("# Of $\\tau$ steps\n\nThe first $\\tau$, `$x$`:\n\n$$S_{ij}(P) > S_{ij}(∅)$$\n\n$20 or $30"),
        new_code_cell("label = '$y$'", outputs=[output]),
    ]
    exporter = HTMLExporter(template_name="lab", mermaid_js_url="https://cdnjs.cloudflare.com/mermaid.js")
    return exporter.from_notebook_node(new_notebook(cells=cells))[0]


def test_formulas_of_notebooks_are_mathml_and_need_no_cdn(notebook_page):
    assert "cdnjs.cloudflare.com" in notebook_page  # MathJax and Mermaid
    page = SimpleNamespace(file=SimpleNamespace(src_uri="notebooks/04_pruning.ipynb"))
    built = site_files.on_page_content(notebook_page, page, None, None)
    assert built.count("<math") == 3 and built.count('display="block"') == 1
    assert "cdnjs" not in built and "mathjax" not in built.lower()
    text = re.sub(r"<[^>]*>", "", built)
    assert r"$\tau$" not in text and "$$" not in text
    assert "it costs $20 or $30 and $x$" in text  # printed: no formula
    assert "<code>$x$</code>" in built and "$20 or $30" in built
    assert built.count("<h1") == 1 and re.search(r'<h1 id="[^"<>]*">', built)


def test_a_built_site_is_checked(tmp_path, notebook_page):
    folder = tmp_path / "notebooks" / "04_pruning"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text(notebook_page)
    wrong = "\n".join(site_files.complaints(tmp_path))
    assert r"$\tau$ is no MathML" in wrong
    assert "cdnjs.cloudflare.com" in wrong
    (folder / "index.html").write_text(site_files.notebook_with_mathml(notebook_page))
    assert site_files.complaints(tmp_path) == []
    (folder / "index.html").unlink()
    assert site_files.complaints(tmp_path) == [f"{tmp_path}: no notebook"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_all_formulas_can_be_read(path):
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        text = path.read_text()
    for match in FORMULA.finditer(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if formula := match["block"] or match["inline"]:
            assert mathml(formula, block=False).startswith("<math"), formula
