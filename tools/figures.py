"""Figures in README, model card and docs, from files that runs wrote: `python -m tools.figures`.

    python -m tools.figures --take runs/demo              # takes over what the notebooks found (more: --help)
    python -m tools.figures                               # writes docs/figures.json into the documents
    python -m tools.figures --check                       # do the documents agree with docs/figures.json?
    python -m tools.figures --compare runs/tiny           # does a run on this machine give the same figures?

In a document, a figure is between `<!--figure 04_pruning.located percent-->` and `<!--/figure-->`; the last word is
one of `FORMATS`. A table of measurements is between `<!--table testbed-->` and `<!--/table-->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from memsub.io.files import load_json, save_json, save_text
from memsub_extra.notebooks.batch import find_parameters, project
from memsub_extra.notebooks.cost import known_work, minutes, on_known_gpu
from memsub_extra.notebooks.findings import SAFETY, percent, share
from memsub_extra.unlearning import shipped
from memsub_extra.unlearning.audit import summary
from memsub_extra.unlearning.removals import displayed
from tools.testbed_report import markdown_table, to_markdown

DOCUMENTS = (
    "README.md",
    "docs/benchmarks.md",
    "docs/canaries.md",
    "docs/faq.md",
    "docs/full-size.md",
    "docs/your-model.md",
    "src/memsub/testbed/weights/README.md",
)
FORMATS: dict[str, Callable[[Any], str]] = {
    "percent": percent,
    "rate": lambda f: share(f["value"], f["low"], f["high"], f["n"]),
    "number": "{:.2f}".format,
    "one": "{:.1f}".format,
    "count": "{:.0f}".format,
    "text": str,
}


def stages(rows: list[dict[str, Any]]) -> str:
    """Steps and minutes of each training stage, as Markdown."""
    lines = [f"| {row['stage']} | {row['steps']:,} | {row['minutes']:.1f} |" for row in rows]
    return markdown_table(["stage", "steps", "minutes"], lines)


def removals(rows: list[dict[str, Any]]) -> str:
    """Audits of the removals, as Markdown: shares in percent, without variants of removals."""
    head = ["", "forget set", "held-out memorized", "attacked", "relearned", "alignment", "CPU-core minutes", "MB"]

    def cells(r: dict[str, Any]) -> str:
        shares = f"{100 * r['forget_set']:.0f} | {100 * r['held_out']:.0f} | {100 * r['attacked']:.0f} | "
        shares += f"{100 * r['relearned']:+.0f} | {100 * r['alignment']:.0f} | "
        return shares + (f"{_core_minutes(r)} | {r['bytes'] / 1e6:.1f} |" if r["bytes"] else "| |")

    return markdown_table(head, _of_removals(rows, cells))


def choice(rows: list[dict[str, Any]]) -> str:
    """Effect of each removal on each kind of attacker, and its price, as Markdown: percent, with 95 % intervals."""
    head = ["", "who prompts: forget set", "who prompts: held-out memorized", "who holds the weights: attack"]
    head += ["... relearning", "alignment kept", "price"]

    def cell(row: dict[str, Any], name: str) -> str:
        return f"{100 * row[name]:.0f} ({100 * row[f'{name}_low']:.0f} to {100 * row[f'{name}_high']:.0f})"

    def cells(r: dict[str, Any]) -> str:
        rates = f"{cell(r, 'forget_set')} | {cell(r, 'held_out')} | {cell(r, 'attacked')} | "
        return (
            rates
            + f"{100 * r['relearned']:+.0f} | {cell(r, 'alignment')} | "
            + (f"{_core_minutes(r)} |" if r["bytes"] else "|")
        )

    return markdown_table(head, _of_removals(rows, cells))


def _of_removals(rows: list[dict[str, Any]], cells: Callable[[dict[str, Any]], str]) -> list[str]:
    """One line per model of the audits, without variants of removals."""
    shown = shipped.whole(r["model"] for r in rows)
    return [f"| {displayed(r['model'])} | {cells(r)}" for r in rows if r["model"] in shown]


def _core_minutes(row: dict[str, Any]) -> str:
    return "" if row["minutes"] is None else f"{row['minutes'] * row['threads']:.1f}"


def fullsize(rows: list[dict[str, Any]]) -> str:
    """Time and memory of a step of each removal at full size, as Markdown."""
    head = ["model", "removal", "on", "latents", "weights set (millions)", "peak memory (GB)", "seconds"]
    lines = [
        f"| {r['model']} | {displayed(r['removal'])} | {r['on']} | {r['side']} x {r['side']} | "
        f"{r['million_weights']:.0f} | {r['gigabytes']:.1f} | {r['seconds']:.0f} |"
        for r in rows
    ]
    return markdown_table(head, lines)


def on_gpu(measured: dict[str, Any]) -> str:
    """Time and memory of Stable Diffusion on a GPU, as Markdown: one row per measurement, one column per model."""
    models = {name: numbers for name, numbers in measured.items() if isinstance(numbers, dict)}

    def row(title: str, how: str, number: Callable[[dict[str, Any]], float]) -> str:
        return f"| {title} | " + " | ".join(how.format(number(numbers)) for numbers in models.values()) + " |"

    lines = [
        row("side of the image (pixels)", "{:.0f}", lambda m: m["pixels"]),
        row("images a call", "{:.0f}", lambda m: m["rows"]),
        row("a guided step of one image (ms)", "{:.1f}", lambda m: m["step_ms"]),
        row("an image in 50 steps, decoded (s)", "{:.2f}", lambda m: m["image_s"]),
        row("capture against sampling (aim: ≤ 1.05)", "{:.3f} ×", lambda m: m["capture_ratio"]),
        row("sampling with an edit against without", "{:.3f} ×", lambda m: m["edited_ratio"]),
        row("sampling once more, which is noise", "{:.3f} ×", lambda m: m["again_ratio"]),
        row("masks of one set at ten steps (s)", "{:.2f}", lambda m: m["masks_s"]),
        row("waits for the GPU that a step adds: sampling", "{:.0f}", lambda m: sum(m["sampling_waits"].values())),
        row("... and capturing", "{:.0f}", lambda m: sum(m["capture_waits"].values())),
    ]
    for k, part in enumerate(next(iter(models.values()))["parts"]):
        peak, shapes = (f"{part.split(',')[0]}: peak (GB)", "... as `memsub check` has it from shapes")
        lines.append(row(peak, "{:.1f}", lambda m, k=k: [*m["parts"].values()][k]["gigabytes"]))  # type: ignore[misc]
        lines.append(row(shapes, "{:.1f}", lambda m, k=k: [*m["shapes_gb"].values()][k]))  # type: ignore[misc]
    by_part = pd.DataFrame({name: minutes_of(name) for name in models})
    lines += [f"| {part} (min) | {' | '.join(f'{of:,.1f}' for of in row)} |" for part, *row in by_part.itertuples()]
    return markdown_table(["", *models], lines)


def minutes_of(name: str) -> pd.Series:
    """Minutes of each part of a run of a parameter file on the measured GPU, as `memsub check` estimates them."""
    parameters, _ = find_parameters(name)
    work, milliseconds = known_work(parameters), on_known_gpu(parameters.model)[1]
    if milliseconds is None:
        raise ValueError(f"nobody has timed a step of {name}: `python -m tools.costs` takes it from docs/figures.json.")
    return minutes(work, milliseconds).set_axis(work["part"])


def membership(rows: list[dict[str, Any]]) -> str:
    """The exact membership test, as Markdown: mean p of the pairs, and its difference from the twin's."""
    tests = f"uniform? (KS{', Holm' if 'holm' in rows[0] else ''})"
    head = ["", "caption", "pairs", "mean p", "smallest p (percent)", tests, "mean p against the twin's"]
    if answered := "verdict" in rows[0]:
        head.append("within 0.10 of it?")
    lines = [
        f"| {displayed(r['model'])} | {r['caption']} | {r['n']} "
        f"| {r['mean']:.3f} ({r['low']:.3f} to {r['high']:.3f}) | "
        f"{100 * r['least']:.0f} ({100 * r['least_low']:.0f} to {100 * r['least_high']:.0f}) | "
        f"{r.get('holm', r['ks']):.2g} | "
        + (
            ""
            if r["against_twin"] is None
            else f"{r['against_twin']:+.3f} ({r['against_twin_low']:+.3f} to {r['against_twin_high']:+.3f}) "
        )
        + (f"| {r['verdict'] or ''} |" if answered else "|")
        for r in rows
    ]
    return markdown_table(head, lines)


def price(rows: list[dict[str, Any]]) -> str:
    """Regrowth and training from random weights against compute and data, as Markdown: shares in percent."""
    head = ["", "steps", "ordinary pairs", "of them memorized", "CPU-core minutes", "replicated", "alignment"]
    head += ["mean p of membership", "... against the twin's", "within 0.10 of it?"]

    def percents(r: dict[str, Any], name: str) -> str:
        return f"{100 * r[name]:.0f} ({100 * r[f'{name}_low']:.0f} to {100 * r[f'{name}_high']:.0f})"

    def numbers(r: dict[str, Any], name: str, sign: str = "") -> str:
        value, low, high = (format(r[f"{name}{end}"], f"{sign}.3f") for end in ("", "_low", "_high"))
        return f"{value} ({low} to {high})"

    lines = [
        f"| {displayed(r['method'])} | {r['steps']:,} | {r['pairs']:,} | {100 * r['contaminated']:g} % | "
        f"{r['minutes']:.1f}{' (resumed)' if r['resumed'] else ''} | {percents(r, 'replicated')} | "
        f"{percents(r, 'alignment')} | {numbers(r, 'membership')} | {numbers(r, 'against_twin', '+')} | "
        f"{r['verdict']} |"
        for r in rows
    ]
    return markdown_table(head, lines)


def coverage(measured: dict[str, Any]) -> str:
    """How often simulated intervals contain the truth, as Markdown; shares in percent."""
    kinds = {"used": "used here", "images": "images counted as independent"}
    kinds |= {"captions resampled": "captions resampled"}
    head = ["", "truth", "captions x images", *kinds.values(), "mean width"]
    lines = [
        f"| {r['of']} | {r['truth']} | {r['n']} x {r['images each']} | "
        + " | ".join(f"{100 * r[kind]:.1f}" if kind in r else "" for kind in kinds)
        + f" | {r['width']:.3f} |"
        for r in measured["rows"]
    ]
    return markdown_table(head, lines)


def canaries(rows: list[dict[str, Any]]) -> str:
    """Results of exact tests on planted and unseen canaries, as Markdown; shares in percent."""
    head = ["trained", "model", "canaries", "measure", "n", "smallest p (percent)", "more than by chance? (binomial)"]
    lines = [
        f"| {r['way']} | {r['model']} | {r['canaries']} | {r['measure']} | {r['n']} | {100 * r['least']:.0f} "
        f"({100 * r['least_low']:.0f} to {100 * r['least_high']:.0f}) | {r['binomial_p']:.2g} | {r['mean']:.3f} | "
        f"{r['uniform_p']:.2g} |"
        for r in rows
    ]
    return markdown_table([*head, "mean p", "uniform? (KS)"], lines)


def solvers(rows: list[dict[str, Any]]) -> str:
    """Agreement of samplers with fifty steps of the model's own scheduler, as Markdown; shares in percent."""
    head = ["model", "solver", "steps", "in", "replicated", "same verdict", "alignment", "ms an image"]
    lines = [
        f"| {r['model']} | {r['solver']} | {r['steps']} | {r['dtype']} | {100 * r['replicated']:.0f} "
        f"({100 * r['low']:.0f} to {100 * r['high']:.0f}, n = {r['n']}) | {100 * r['agree']:.0f} | "
        f"{100 * r['alignment']:.1f} | {1000 * r['seconds']:.0f} |"
        for r in rows
    ]
    return markdown_table(head, lines)


TABLES: dict[str, Callable[[Any], str]] = {
    "stages": stages,
    "removals": removals,
    "choice": choice,
    "membership": membership,
    "price": price,
    "fullsize": fullsize,
    "gpu": on_gpu,
    "solvers": solvers,
    "coverage": coverage,
    "canaries": canaries,
}
"""Functions that format tables, by name. All other tables have the form of the testbed's report."""
FROM = {"choice": "removals"}
"""Tables whose rows are stored under another name."""
_FIGURE = re.compile(r"<!--figure (?P<path>[\w.]+) (?P<format>\w+)-->.*?<!--/figure-->", re.DOTALL)
_TABLE = re.compile(r"<!--table (?P<name>\w+)-->(?P<rows>.*?)<!--/table-->", re.DOTALL)


def take(
    known: dict[str, Any],
    run: Path | None = None,
    testbed: Path | None = None,
    benchmarks: Path | None = None,
    **tables: Path | None,
) -> dict[str, Any]:
    """Updates the known figures by a run's findings, a report, benchmarks, and other files of `tables` by name."""
    if run:
        known = known | facts(run)
    if run or testbed:
        known = known | {"removals": audited()}
    if testbed:
        known = known | load_json(testbed)
    if benchmarks:  # benchmarks that were not run now are kept
        known = known | {"benchmarks": known.get("benchmarks", {}) | load_json(benchmarks)}
    return known | {name: load_json(file) for name, file in tables.items() if file}


def facts(run: Path) -> dict[str, dict[str, Any]]:
    """The facts that each notebook of a run recorded; raises as `findings`."""
    return {notebook: recorded["facts"] for notebook, recorded in findings(run).items()}


def findings(run: Path) -> dict[str, dict[str, Any]]:
    """The records of each notebook of a run: claims, facts, rows of network calls.

    Raises:
        FileNotFoundError: the folder holds no findings.
    """
    files = sorted((run / "findings").glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{run} holds no findings/*.json: name the folder of a run that has finished.")
    return {file.stem: load_json(file) for file in files}


def audited() -> list[dict[str, Any]]:
    """The summary of the shipped audits, one row per model, with the cost of each removal."""
    nothing = {"minutes": None, "bytes": 0}
    rows = summary(shipped.audits()).to_dict("index")
    return [{"model": name} | row | nothing | shipped.costs().get(name, {}) for name, row in rows.items()]


def fill(text: str, figures: dict[str, Any], source: str) -> str:
    """The text of a document with its figures and tables filled in.

    Raises:
        ValueError: a figure, format or table is unknown; the message names the document and the figure or table.
    """

    def figure(match: re.Match) -> str:
        path, how = match["path"], match["format"]
        value: Any = figures
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"{source}: no figure {path!r} in docs/figures.json.")
            value = value[key]
        if how not in FORMATS:
            raise ValueError(f"{source}: unknown format {how!r} of {path!r}; expected one of {', '.join(FORMATS)}.")
        if isinstance(value, dict) and how != "rate":
            value = value["value"]
        return f"<!--figure {path} {how}-->{FORMATS[how](value)}<!--/figure-->"

    def table(match: re.Match) -> str:
        rows = FROM.get(match["name"], match["name"])
        if rows not in figures:
            if match["name"] in TABLES and not match["rows"].strip():
                return match[0]  # not measured yet, and the place in the document is empty
            raise ValueError(f"{source}: no table {rows!r} in docs/figures.json.")
        made = TABLES.get(match["name"], to_markdown)(figures[rows])
        return f"<!--table {match['name']}-->\n\n{made}\n<!--/table-->"

    return _TABLE.sub(table, _FIGURE.sub(figure, text))


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Sentences on facts of `theirs` that `ours` lacks, or that differ by more than they vary between machines."""
    differing = []
    for notebook, recorded in theirs.items():
        for name, fact in recorded.items():
            known = ours.get(notebook, {}).get(name)
            if known is None:
                differing.append(f"{notebook}.{name} is not in docs/figures.json")
            elif isinstance(fact, dict) and "varies" in fact:
                distance, allowed = abs(fact["value"] - known["value"]), SAFETY * fact["varies"]
                if distance > allowed + 1e-12:
                    differing.append(f"{notebook}.{name}: {known['value']:.4g} written, {fact['value']:.4g} found")
    return differing


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.figures", description=__doc__.splitlines()[0])
    parser.add_argument("--take", type=Path, metavar="RUN", help="folder of a run whose findings to take over")
    parser.add_argument("--testbed", type=Path, help="report.json of tools.testbed_report to take over")
    parser.add_argument("--benchmarks", type=Path, help="benchmarks.json of tools.benchmarks to take over")
    parser.add_argument("--membership", type=Path, help="rows of tools.membership to take over")
    parser.add_argument("--price", type=Path, help="price.json of tools.regrowth_price to take over")
    parser.add_argument("--coverage", type=Path, help="coverage.json of tools.coverage to take over")
    parser.add_argument("--fullsize", type=Path, help="rows of tools.fullsize_removals to take over")
    parser.add_argument("--solvers", type=Path, help="rows of tools.solvers to take over")
    parser.add_argument("--canaries", type=Path, help="table.json of tools.canaries to take over")
    parser.add_argument("--gpu", type=Path, help="gpu.json of tools.gpu to take over")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a document says otherwise")
    parser.add_argument("--compare", type=Path, metavar="RUN", help="fail if this run found something else")
    args = parser.parse_args()
    root = project()
    file = root / "docs" / "figures.json"
    figures = load_json(file) if file.is_file() else {}
    wrong = []
    if args.compare:
        wrong = compare(figures, facts(args.compare))
    elif args.check:
        for name in DOCUMENTS:
            text = (root / name).read_text(encoding="utf-8")
            wrong += [] if fill(text, figures, name) == text else [f"{name} does not say what docs/figures.json says"]
    else:
        names = ("testbed", "benchmarks", "membership", "price", "coverage", "fullsize", "solvers", "canaries", "gpu")
        figures = take(figures, args.take, **{name: getattr(args, name) for name in names})
        save_json(figures, file)
        for name in DOCUMENTS:
            save_text(fill((root / name).read_text(encoding="utf-8"), figures, name), root / name)
    print("\n".join(wrong) or "all figures agree")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
