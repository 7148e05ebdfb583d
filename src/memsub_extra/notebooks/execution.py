"""Executes one notebook in a separate process (`notebooks.batch`).

Each of these processes imports this module, so it imports neither torch nor models; the kernels do.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memsub.io.files import printable


class NotebookError(RuntimeError):
    """A notebook stopped with an error; says which, where, and how."""


def begin(threads: int) -> None:
    """Initializes a worker process: sets its number of threads, and ends it as soon as its parent ends."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def execute(path: Path, out: Path, parameters: Mapping[str, Any], bar: bool = True) -> None:
    """Executes one notebook by papermill, in its own folder.

    Args:
        parameters: parameters of the run, with the keys of YAML files.
        bar: show a progress bar.

    Raises:
        NotebookError: a cell failed; the message names notebook, cell and error. `out` has the notebook up to it.
    """
    import papermill  # in the extra `notebooks`
    from papermill.exceptions import PapermillExecutionError

    # A notebook's parameters cell has only the parameters that concern it; papermill would warn of the others.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        options = {"cwd": str(path.parent), "kernel_name": "python3", "progress_bar": bar}
        # The results are written by then, and a regular shutdown of the kernel takes more than a second.
        papermill.execute_notebook(str(path), str(out), dict(parameters), shutdown_kernel="immediate", **options)
    except PapermillExecutionError as error:
        raise NotebookError(
            f"{path.name} stopped at In [{error.exec_count}]: {printable(f'{error.ename}: {error.evalue}')[:1000]} "
            f"(see {out}). Run again to go on from there."
        ) from None
