"""mkdocs hook: pages whose files lie elsewhere in the repository, and formulas as MathML, which needs no script.

python docs/site_files.py site      # fails if a built page fetches anything, or shows a formula's dollars
"""

import html
import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {"contributing.md": ROOT / "CONTRIBUTING.md", "model-card.md": ROOT / "src/memsub/testbed/weights/README.md"}
SCRIPTS = re.compile(r"<script\b(?P<attributes>[^>]*)>(?P<code>.*?)</script>", re.DOTALL)
COMMENTS = re.compile(r"<!--[^>]*mathjax[^>]*-->", re.IGNORECASE)
ARITHMATEX = re.compile(r'<(span|div) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL)
"""What a Markdown page makes of a formula."""
CELLS = re.compile(r'(?=<div [^>]*class="jp-Cell jp-)')
NO_TEXT = re.compile(r"(<(code|pre)\b.*?</\2>|<[^>]*>)", re.DOTALL)
"""Code and tags, in which dollars are dollars."""
REMOTE = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"')
IMPORT = re.compile(r"""\bimport\b[^;]*["']https?://[^"']*""")
"""What a page would fetch from elsewhere when it is opened. Links that a reader may follow are none."""


def _formulas():
    """`memsub_extra.notebooks.formulas`, loaded as a file: what builds the site has no torch."""
    path = ROOT / "src/memsub_extra/notebooks/formulas.py"
    spec = importlib.util.spec_from_file_location("formulas", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_files(files, config):
    """Adds the notebooks as they are, and the two documents with links that hold from here."""
    from mkdocs.structure.files import File

    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File(f"notebooks/{notebook.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    for name, path in PAGES.items():
        text = re.sub(r"\]\(docs/", "](", path.read_text(encoding="utf-8"))
        files.append(File.generated(config, name, content=text))
    return files


on_files.mkdocs_priority = 100  # before mkdocs-jupyter looks for notebooks


def on_page_content(content, page, config, files):
    """Formulas of a page, or of a notebook's text, as MathML."""
    if page.file.src_uri.endswith(".ipynb"):
        return notebook_with_mathml(content)
    return ARITHMATEX.sub(lambda match: _mathml(match[2], block=match[1] == "div"), content)


def notebook_with_mathml(content):
    """A notebook's HTML: formulas of its text cells as MathML, without the scripts that fetch MathJax and Mermaid."""

    def kept(match):
        fetches = "src=" in match["attributes"] or re.search("mathjax|mermaid", match["code"], re.IGNORECASE)
        return "" if fetches else match[0]

    content = COMMENTS.sub("", SCRIPTS.sub(kept, content))
    return "".join(_text_cell(cell) if "jp-MarkdownCell" in cell[:200] else cell for cell in CELLS.split(content))


def _text_cell(cell):
    """nbconvert leaves formulas of text cells as they are, escaped."""

    def formula(match):
        if match["code"]:
            return match[0]
        return _mathml(match["block"] or match["inline"], block=match["block"] is not None)

    parts = NO_TEXT.split(cell)  # text, code or tag, the name of code's tag, text, ...
    parts[::3] = [_formulas().FORMULA.sub(formula, text) for text in parts[::3]]
    del parts[2::3]
    return "".join(parts)


def _mathml(formula, block):
    return _formulas().mathml(html.unescape(formula), block=block)


def complaints(site):
    """What is wrong with the built pages: formulas that are none, and what is fetched from elsewhere."""
    wrong = []
    for path in sorted(site.rglob("*.html")):
        page = path.read_text(encoding="utf-8")
        scripts = " ".join(match["code"] for match in SCRIPTS.finditer(page))
        fetched = [*REMOTE.finditer(page), *IMPORT.finditer(scripts)]
        wrong += [f"{path}: fetches {match[0][:120]}" for match in fetched]
        text = NO_TEXT.sub("", SCRIPTS.sub("", page))
        wrong += [f"{path}: {match[0]} is no MathML" for match in re.finditer(r"\$\\?\w+\$|\\\(", text)]
    if not list(site.rglob("notebooks/*/*.html")):
        wrong.append(f"{site}: no notebook")
    return wrong


if __name__ == "__main__":
    sys.exit("\n".join(complaints(Path(sys.argv[1]))) or 0)
