"""The table of modules in CONTRIBUTING, from their docstrings: `python -m tools.modules`.

    python -m tools.modules              # writes the table
    python -m tools.modules --check      # changes nothing; fails if a docstring says something else

The table is between `<!--modules-->` and `<!--/modules-->`. A module's row is the first sentence of its docstring. The
modules are read, not imported.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "CONTRIBUTING.md"
PACKAGES = ("memsub", "memsub_extra")
READ_FIRST = ("activations", "neurons", "fast_masks", "overlap", "pruning", "controls")
"""Modules of the method, in METHOD's order; the others follow in order of their names."""
_TABLE = re.compile(r"<!--modules-->.*?<!--/modules-->", re.DOTALL)
_NEXT_SENTENCE = re.compile(r"(?<!\bal)\.\s+(?=[A-Z])")
"""Where the second sentence begins; "et al." ends none."""


def modules(source: Path = ROOT / "src") -> dict[str, Path]:
    """Name to file of every module of both packages, in the order of the table, without empty `__init__` files."""
    files = [file for package in PACKAGES for file in (source / package).rglob("*.py") if file.read_text().strip()]
    names = {file: ".".join(file.relative_to(source).with_suffix("").parts) for file in files}
    by_name = {name.removesuffix(".__init__"): file for file, name in names.items()}
    return {name: by_name[name] for name in sorted(by_name, key=_place)}


def _place(name: str) -> tuple[str, int, list[str]]:
    """Sort key of a module: its package, its place in the method, its name."""
    package, *path = name.split(".")
    if not path:
        return package, -1, path
    return package, READ_FIRST.index(path[0]) if path[0] in READ_FIRST else len(READ_FIRST), path


def says(file: Path) -> str:
    """The first sentence of a module's docstring, on one line.

    Raises:
        ValueError: the module has no docstring.
    """
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{file} has no docstring: say in a sentence what the module does.")
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return _NEXT_SENTENCE.split(paragraph)[0].rstrip(".:").replace("|", r"\|")


def table(source: Path = ROOT / "src") -> str:
    """All modules, as Markdown; raises as `says`."""
    rows = [f"| `{name}` | {says(file)} |\n" for name, file in modules(source).items()]
    return "| module | what |\n| --- | --- |\n" + "".join(rows)


def fill(text: str, source: Path = ROOT / "src") -> str:
    """The text of a document with the table filled in.

    Raises:
        ValueError: the document has no place for the table, or several.
    """
    if len(_TABLE.findall(text)) != 1:
        raise ValueError("the document needs <!--modules--> and <!--/modules--> once, around the table.")
    return _TABLE.sub(lambda _: f"<!--modules-->\n\n{table(source)}\n<!--/modules-->", text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.modules", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the table is another one")
    args = parser.parse_args()
    text = DOCUMENT.read_text(encoding="utf-8")
    filled = fill(text)
    if not args.check:
        DOCUMENT.write_text(filled, encoding="utf-8")
    elif filled != text:
        print(f"{DOCUMENT.name} does not say what the docstrings say: call `python -m tools.modules`.")
        sys.exit(1)


if __name__ == "__main__":
    main()
