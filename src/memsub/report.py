"""One HTML page of a run: the verdicts of all checks, then the notebooks' text, tables and figures, without their code.

    write_report(["runs/tiny/00_testbed.ipynb", ...], "runs/tiny/report.html", "memsub: tiny", parameters)

It opens from disk without a network: formulas are MathML, figures are in it, and a click enlarges them.
"""

from __future__ import annotations

import base64
import html
import io
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode
from PIL import Image

from .files import load_json, save_text

LIBRARIES = ("memsub", "torch", "diffusers", "transformers", "numpy")
"""Whose versions are told."""
_MATH = re.compile(r"(`[^`\n]+`)|(\$\$.+?\$\$|\$[^$\n]+?\$)", re.DOTALL)
_PNG = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")
_TITLE = re.compile(r"^(#{1,2}) (.+)$", re.MULTILINE)
_WIDGET = "application/vnd.jupyter.widget-view+json"
_ORDER = {"FAILS": 0, "open": 1, "holds": 2}


def write_report(notebooks: Sequence[Path], out: Path, title: str, parameters: Mapping[str, Any] | None = None) -> Path:
    """Writes the page, with what the run folder's `findings/` says of the notebooks' claims on top.

    Args:
        notebooks: executed ones, in one run folder.
        parameters: of the run, by the names that YAML files use.
    """
    from nbconvert import HTMLExporter

    formulas: dict[str, str] = {}
    parts, contents = [], []
    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True
    )
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        contents.append(_with_anchors(notebook, path.stem))
        for i, cell in enumerate(notebook.cells):
            cell["id"] = f"{path.stem}-{i}"
            _clean(cell, formulas)
        notebook.metadata = {"title": title}
        body, _ = exporter.from_notebook_node(notebook)
        parts.append(f"<section>{_PNG.sub(_webp, body)}</section>")
    text = "\n".join(parts)
    for token, formula in formulas.items():
        text = text.replace(token, formula)
    head = verdicts([path.parent / "findings" / f"{path.stem}.json" for path in notebooks])
    about = provenance(parameters or {})
    nav = "".join(_links(of) for of in contents)
    page = _PAGE.format(
        title=html.escape(title), style=_STYLE, script=_SCRIPT, nav=nav, head=head, about=about, body=text
    )
    save_text(page, out)
    return out


def verdicts(findings: Sequence[Path]) -> str:
    """Claims by notebook, as HTML: how many hold, and each with its value, bound and margin; what fails comes first."""
    rows, counts = [], dict.fromkeys(("holds", "open", "FAILS"), 0)
    for path in findings:
        if not path.is_file():
            continue
        claims = load_json(path)["claims"]
        for told, claim in sorted(claims.items(), key=lambda item: _ORDER[item[1]["verdict"]]):
            counts[claim["verdict"]] += 1
            exact = claim["bound"] == 1 and not claim["varies"]
            value = "exact" if exact else f"{claim['value']:.4g} (bound {claim['bound']:.4g})"
            chip = f"<span class='chip {claim['verdict'].lower()}'>{claim['verdict']}</span>"
            rows.append(
                f"<tr><td>{chip}</td><td><a href='#{path.stem}'>{path.stem[:2]}</a></td>"
                f"<td>{html.escape(told)}</td><td>{value}</td></tr>"
            )
    if not rows:
        return ""
    told = ", ".join(f"{name} {n}" for name, n in counts.items())
    return _VERDICTS.format(n=len(rows), told=told, rows="".join(rows))


def provenance(parameters: Mapping[str, Any]) -> str:
    """What made the report, as HTML: versions, machine, date, and the parameters in a fold."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    made = (
        f"{datetime.now():%Y-%m-%d %H:%M}, Python {platform.python_version()}, {platform.machine()} {platform.system()}"
    )
    told = html.escape(yaml.safe_dump(dict(parameters), sort_keys=False))
    return f"<p class='made'>{versions}; {made}</p><details><summary>Parameters</summary><pre>{told}</pre></details>"


def _with_anchors(notebook: NotebookNode, stem: str) -> list[tuple[int, str, str]]:
    """Gives every title an anchor; returns level, anchor and title of each."""
    found: list[tuple[int, str, str]] = []

    def anchored(match: re.Match) -> str:
        level, title = len(match[1]), match[2]
        anchor = stem if level == 1 else f"{stem}-{len(found)}"
        found.append((level, anchor, title))
        return f'<a id="{anchor}"></a>\n\n{match[0]}'

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _TITLE.sub(anchored, cell.source)
    return found


def _links(titles: Sequence[tuple[int, str, str]]) -> str:
    links = [
        f"<li class='level{level}'><a href='#{anchor}'>{html.escape(title)}</a></li>" for level, anchor, title in titles
    ]
    return f"<ul>{''.join(links)}</ul>"


def results(cell: NotebookNode) -> list[NotebookNode]:
    """A code cell's outputs without progress bars and widgets, which are no result."""
    return [o for o in cell.outputs if o.get("name") != "stderr" and _WIDGET not in o.get("data", {})]


def _clean(cell: NotebookNode, formulas: dict[str, str]) -> None:
    """Leaves out what is no result, and puts tokens in the place of formulas."""
    if cell.cell_type == "code":
        cell.outputs = results(cell)
        return
    from latex2mathml.converter import convert

    def token(match: re.Match) -> str:
        if match[1]:  # code
            return match[0]
        block = match[2].startswith("$$")
        formula = convert(match[2].strip("$"), display="block" if block else "inline")
        formulas[f"FORMULA{len(formulas):04d}X"] = formula
        return f"FORMULA{len(formulas) - 1:04d}X"

    cell.source = _MATH.sub(token, cell.source)


def _webp(match: re.Match) -> str:
    """The same picture in a third of the bytes, in a format that every browser reads."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(match[1]))).save(buffer, "WEBP", quality=88)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


_VERDICTS = """<h2 id="verdicts">Verdicts of {n} claims: {told}</h2>
<p>A claim <em>holds</em> if its value clears the bound by three times what it varies by between machines,
<em>fails</em> if it lies as far on the other side, and is <em>open</em> in between.</p>
<div class="scroll"><table><tr><th>verdict</th><th>in</th><th>claim</th><th>value</th></tr>{rows}</table></div>
"""
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; color: #222; }
main { max-width: 980px; margin: 0 auto; padding: 0 16px 64px; }
h1 { border-top: 3px solid #345; padding-top: 16px; margin-top: 48px; }
a { color: #1f5fa8; }
a.anchor-link, .jp-InputPrompt, .jp-OutputPrompt { display: none; }
nav { background: #f4f6f8; border-radius: 8px; padding: 8px 16px; }
nav ul { columns: 2; list-style: none; padding: 0; margin: 4px 0; }
nav li { break-inside: avoid; padding: 2px 0; }
nav .level1 { font-weight: 600; column-span: all; }
nav .level2 { padding-left: 12px; font-size: 14px; }
img, svg { max-width: 100%; height: auto; }
section img { cursor: zoom-in; }
dialog { border: 0; padding: 0; max-width: 98vw; max-height: 98vh; }
dialog img { display: block; max-width: none; cursor: zoom-out; }
dialog::backdrop { background: rgb(0 0 0 / 70%); }
.scroll, .output_html, .jp-RenderedHTMLCommon { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 3px 10px; border-bottom: 1px solid #ddd; vertical-align: top; }
pre { overflow-x: auto; background: #f7f7f7; padding: 8px; font-size: 13px; }
math[display=block] { overflow: auto hidden; margin: 12px 0; padding: 4px 0; }
.made { color: #666; font-size: 13px; }
.chip { border-radius: 10px; padding: 1px 9px; font-size: 13px; white-space: nowrap; }
.holds { background: #d7f0dd; color: #14532d; }
.open { background: #fdf0c8; color: #6b4e00; }
.fails { background: #f9d4d4; color: #7f1d1d; }
@media (max-width: 640px) { nav ul { columns: 1; } body { font-size: 15px; } h1 { font-size: 24px; } }
@media print { nav, dialog { display: none; } }
"""

_SCRIPT = """
const large = document.querySelector("dialog");
document.querySelectorAll("section img").forEach(image => image.addEventListener("click", () => {
  const copy = image.cloneNode();
  copy.style.width = Math.max(image.naturalWidth, 0.96 * window.innerWidth) + "px";
  large.replaceChildren(copy);
  large.showModal();
}));
large.addEventListener("click", () => large.close());
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><main>
<h1>{title}</h1>
{about}
{head}
<h2>Contents</h2>
<nav>{nav}</nav>
{body}
</main><dialog></dialog><script>{script}</script></body></html>
"""
