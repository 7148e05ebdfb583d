"""The report of a run, one HTML page: verdicts of all claims, and text, tables and figures of the notebooks.

    write_report(["runs/tiny/00_testbed.ipynb", ...], "runs/tiny/report.html", "memsub: tiny", parameters)

It requires no network: formulas are MathML, figures are embedded, and a click enlarges them. Content of a run, such as
captions and names in parameter files, is escaped: only the page's own script runs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import io
import platform
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode
from PIL import Image, UnidentifiedImageError

from memsub.io.files import save_text

from .findings import digest_of, read_findings, tally
from .formulas import FORMULA, mathml
from .published import section
from .took import versions

_PNG = re.compile(r'(<img\b[^>]*? src=")data:image/png;base64,([A-Za-z0-9+/=\s]+)"')
_TITLE = re.compile(r"^(#{1,2}) (.+)$", re.MULTILINE)
_STYLES = re.compile(r"<style\b[^>]*>.*?</style>", re.DOTALL)
_WIDGET = "application/vnd.jupyter.widget-view+json"
_SHOWN = {"text/plain", "text/html", "text/markdown", "image/png", "image/jpeg"}
"""Kinds of output on the page."""
_TEXT = {"a", "b", "blockquote", "br", "code", "div", "em", "hr", "i", "li", "ol", "p", "pre", "span", "strong", "ul"}
_TABLES = {"caption", "img", "table", "tbody", "td", "th", "thead", "tr"}
_TAGS = frozenset(_TEXT | _TABLES | {f"h{level}" for level in range(1, 7)})
_FIRST = ("fails", "inconclusive", "holds")


def write_report(
    notebooks: Sequence[Path], out: Path, title: str, parameters: Mapping[str, Any] | None = None, notice: str = ""
) -> Path:
    """Writes the report. It begins with the verdicts in `findings/` of the run folder.

    Args:
        notebooks: executed notebooks in one run folder.
        parameters: parameters of the run, with the keys of YAML files.
        notice: first line of the page.

    Raises:
        ValueError: findings do not belong to their notebook, or were changed.
    """
    formulas: dict[str, str] = {}
    findings = [path.parent / "findings" / f"{path.stem}.json" for path in notebooks]
    bodies, contents = [], []
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        _check_findings(notebook, path)
        contents.append(_with_anchors(notebook, path.stem))
        bodies.append(f"<section>{_body(notebook, path.stem, title, formulas)}</section>")
    text = "\n".join(bodies)
    folders = dict.fromkeys(path.parent for path in notebooks)
    for token, formula in formulas.items():
        text = text.replace(token, formula)
    template = (files(__package__) / "report.html").read_text(encoding="utf-8")
    page = Template(template).substitute(
        title=html.escape(title),
        notice=f"<p class='notice'>{html.escape(notice)}</p>" if notice else "",
        policy=_policy(template),
        contents="".join(map(_links, contents)),
        verdicts=verdicts(findings) + by_kind(findings),
        published="".join(section(folder, parameters or {}) for folder in folders),
        about=provenance(parameters or {}),
        body=text,
    )
    save_text(page, out)
    return out


def _check_findings(notebook: NotebookNode, path: Path) -> None:
    """Raises ValueError if the findings are not those that the executed notebook recorded."""
    made, findings = notebook.metadata.get("memsub"), path.parent / "findings" / f"{path.stem}.json"
    if made and made.get("findings") != digest_of(findings):
        raise ValueError(
            f"{findings} is not what {path.name} found: something else has written it since. Run again, and that "
            "notebook is executed again."
        )


def _policy(template: str) -> str:
    """Content security policy: only the page's styles, its script (by hash) and embedded figures load or run."""
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"script-src 'sha256-{digest}'"
    )


def verdicts(findings: Sequence[Path]) -> str:
    """Claims by notebook, as HTML: how many hold, and each with value, interval and bound. Failed claims come first."""
    rows, counted = [], []
    for path in findings:
        if not path.is_file():
            continue
        claims = read_findings(path)["claims"]
        for sentence, claim in sorted(claims.items(), key=lambda item: _FIRST.index(item[1]["verdict"])):
            verdict = claim["verdict"]
            counted.append(verdict)
            rows.append(
                f"<tr><td><span class='chip {verdict}'>{verdict}</span></td>"
                f"<td><a href='#{path.stem}'>{path.stem[:2]}</a></td>"
                f"<td>{html.escape(sentence)}</td><td>{_value(claim)}</td></tr>"
            )
    return _VERDICTS.format(n=len(rows), counts=tally(counted), rows="".join(rows)) if rows else ""


def by_kind(findings: Sequence[Path]) -> str:
    """Tables by kind of memorized caption, as HTML, with their limitations; empty for lists without kinds."""
    notes: dict[str, None] = {}
    tables = []
    for path in findings:
        recorded = read_findings(path).get("by_kind") if path.is_file() else None
        if not recorded:
            continue
        notes |= dict.fromkeys(recorded["notes"])
        for title, table in recorded["tables"].items():
            head = "".join(f"<th>{html.escape(str(column))}</th>" for column in table["columns"])
            rows = ("".join(f"<td>{_cell(value)}</td>" for value in row) for row in table["data"])
            body = "".join(f"<tr>{row}</tr>" for row in rows)
            tables.append(
                f"<h3><a href='#{path.stem}'>{path.stem[:2]}</a> {html.escape(title)}</h3>"
                f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>"
            )
    said = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return _BY_KIND.format(notes=said, tables="".join(tables)) if tables else ""


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else html.escape(str(value))


def _value(claim: Mapping[str, Any]) -> str:
    """ "0.4 (0.3 to 0.5; at most 0.5)"."""
    if claim["relation"] == "exact":
        return "exact"
    sampled = "" if claim["low"] is None else f"{claim['low']:.4g} to {claim['high']:.4g}; "
    return f"{claim['value']:.4g} ({sampled}{claim['relation']} {claim['bound']:.4g})"


def provenance(parameters: Mapping[str, Any]) -> str:
    """Provenance of the report, as HTML: versions, machine, date, and the parameters in a fold."""
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    made = (
        f"{datetime.now():%Y-%m-%d %H:%M}, Python {platform.python_version()}, {platform.machine()} {platform.system()}"
    )
    values = html.escape(yaml.safe_dump(dict(parameters), sort_keys=False))
    return f"<p class='made'>{libraries}; {made}</p><details><summary>Parameters</summary><pre>{values}</pre></details>"


def _with_anchors(notebook: NotebookNode, stem: str) -> list[tuple[int, str, str]]:
    """Adds an anchor to every title; returns level, anchor and title of each."""
    titles: list[tuple[int, str, str]] = []

    def anchored(match: re.Match) -> str:
        level, title = len(match[1]), match[2]
        anchor = stem if level == 1 else f"{stem}-{len(titles)}"
        titles.append((level, anchor, title))
        return f'<a id="{anchor}"></a>\n\n{match[0]}'

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _TITLE.sub(anchored, cell.source)
    return titles


def _links(titles: Sequence[tuple[int, str, str]]) -> str:
    links = [
        f"<li class='level{level}'><a href='#{anchor}'>{html.escape(title)}</a></li>" for level, anchor, title in titles
    ]
    return f"<ul>{''.join(links)}</ul>"


def _body(notebook: NotebookNode, stem: str, title: str, formulas: dict[str, str]) -> str:
    """Text and results of a notebook as HTML without scripts. Tokens, added to `formulas`, replace its formulas."""
    from nbconvert import HTMLExporter

    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"{stem}-{i}"
        if cell.cell_type == "code":
            cell.outputs = [_shown(output) for output in results(cell)]
        else:
            cell.source = _with_tokens(cell.source, formulas)
    notebook.metadata = {"title": title}
    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True
    )
    body, _ = exporter.from_notebook_node(notebook)
    return _harmless(_PNG.sub(_webp, body))


def results(cell: NotebookNode) -> list[NotebookNode]:
    """The outputs of a code cell without progress bars and widgets."""
    return [o for o in cell.outputs if o.get("name") != "stderr" and _WIDGET not in o.get("data", {})]


def _shown(output: NotebookNode) -> NotebookNode:
    """An output, reduced to text, tables and figures; scripts, for example, are removed."""
    if "data" in output:
        output.data = NotebookNode({kind: data for kind, data in output.data.items() if kind in _SHOWN})
    return output


def _with_tokens(source: str, formulas: dict[str, str]) -> str:
    """Markdown with a token in place of each formula, because Markdown would interpret its content."""

    def token(match: re.Match) -> str:
        if match["code"]:
            return match[0]
        name = f"FORMULA{secrets.token_hex(8)}"  # which no cell can guess
        formulas[name] = mathml(match["block"] or match["inline"], block=match["block"] is not None)
        return name

    return FORMULA.sub(token, source)


def _webp(match: re.Match) -> str:
    """Converts a PNG figure to WebP, a third of the bytes; other content is unchanged."""
    buffer = io.BytesIO()
    try:
        Image.open(io.BytesIO(base64.b64decode(match[2])), formats=("PNG",)).save(buffer, "WEBP", quality=88)
    except (binascii.Error, UnidentifiedImageError, OSError):
        return match[0]
    return f'{match[1]}data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"'


def _harmless(body: str) -> str:
    """Sanitizes HTML: text, tables, links and figures stay; any other tag is escaped."""
    from bleach import Cleaner  # which nbconvert requires

    cleaner = Cleaner(tags=_TAGS, attributes=_allowed, protocols={"http", "https", "mailto", "data"})
    return cleaner.clean(_STYLES.sub("", body))


def _allowed(tag: str, name: str, value: str) -> bool:
    """Whether an attribute is kept: no event handlers, no styles, no addresses that run or fetch something."""
    if name == "src":
        return tag == "img" and value.startswith("data:image/")
    if name == "href":
        return not value.lower().lstrip().startswith("data:")
    return name in ("id", "class", "alt", "title", "colspan", "rowspan")


_VERDICTS = """<h2 id="verdicts">Verdicts of {n} claims: {counts}</h2>
<p>A claim <em>holds</em> if the 95 % interval of its value clears the bound, and the value itself by three times what
it varies by between machines. It <em>fails</em> if both are true on the other side, and is <em>inconclusive</em>
otherwise. Claims without an interval are of quantities that are not sampled.</p>
<div class="scroll"><table><tr><th>verdict</th><th>in</th><th>claim</th><th>value</th></tr>{rows}</table></div>
"""
_BY_KIND = """<h2 id="kinds">By kind of memorized caption</h2>
<p>What the notebooks' tables say of verbatim and template captions, each for itself: n images (or captions) behind a
rate with its 95 % interval; references: captions of the kind that have a training image, of those listed in the part
that is evaluated.</p>
<ul>{notes}</ul>
{tables}
"""
