"""Executes the notebooks where they lie, as they are committed: `python -m tools.execute [NN ...]`.

    python -m tools.execute 04 05        # by the beginnings of their names; default all
    python -m tools.execute --tidy       # executes nothing

It leaves out what a kernel writes besides results: warnings with paths of this machine, progress bars and times.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from tqdm.auto import tqdm

from memsub.io.files import save_text
from memsub_extra.notebooks.batch import project
from memsub_extra.notebooks.listing import NOTEBOOKS
from memsub_extra.notebooks.report import results


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Removes output to stderr, widgets and their state, and the metadata of this execution."""
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
        if cell.cell_type == "code":
            cell.outputs = results(cell)
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.execute", description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", metavar="NN", help="beginnings of their names (default: all)")
    parser.add_argument("--tidy", action="store_true", help="execute nothing, only leave out what is no result")
    args = parser.parse_args()
    folder: Path = project() / "notebooks"
    for name in tqdm([n for n in sorted(NOTEBOOKS) if n.startswith(tuple(args.notebooks or [""]))], unit="notebook"):
        path = folder / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        if not args.tidy:
            NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(folder)}}).execute()
        save_text(nbformat.writes(tidy(notebook)) + "\n", path)


if __name__ == "__main__":
    main()
