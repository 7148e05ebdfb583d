"""All notebooks, headless: `python -m memsub run`.

    report = run("tiny")                       # runs/tiny/00_testbed.ipynb, ..., report.html

Each notebook is executed by papermill into the run folder. A notebook is skipped if it was executed before with the
same code and parameters, and so were all before it. A new one is a file in notebooks/ and a line in `NOTEBOOKS`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from tqdm.auto import tqdm

from .distributed import alone, is_main, processes
from .experiments import EXPERIMENTS, precompute
from .files import load_json, save_json
from .models import Model, find_model
from .parameters import Parameters
from .report import write_report
from .runs import Run


def of_drawn_worlds(model: Model) -> bool:
    """For notebooks that need the ground truth of a drawn world."""
    return model.drawn


def of_any_model(model: Model) -> bool:
    """For notebooks that read prompts and pictures, whatever they show."""
    return True


NOTEBOOKS: dict[str, Callable[[Model], bool]] = {
    "00_testbed": of_drawn_worlds,
    "01_activation_capture": of_any_model,
    "02_memorized_neurons": of_any_model,
    "03_subspace_overlap": of_any_model,
    "04_pruning": of_any_model,
    "05_attack_evaluation": of_any_model,
    "06_deletion": of_any_model,
    "07_explorer": of_any_model,
}
"""In the order of execution, and which models each is for."""
CAPTURE = "01_activation_capture"
"""Those after it read what it captured: side by side they begin when it has ended."""


class NotebookError(RuntimeError):
    """A notebook stopped with an error; says which, where, and how."""


def project() -> Path:
    """The checkout that holds the notebooks.

    Raises:
        FileNotFoundError: memsub was installed without one.
    """
    for folder in (Path.cwd(), *Path(__file__).resolve().parents):
        if (folder / "papermill_params").is_dir() and (folder / "notebooks").is_dir():
            return folder
    raise FileNotFoundError(
        "no folder with notebooks/ and papermill_params/ here: run this from a checkout of memsub (they are not in the "
        "wheel)."
    )


def find_parameters(name: str) -> tuple[Parameters, str]:
    """Parameters by their name in papermill_params/, or from a YAML file; and the name of the run.

    Raises:
        ValueError, FileNotFoundError: there are none, they are not right, or their model is not there.
    """
    folder = project() / "papermill_params"
    file = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise FileNotFoundError(f"no parameters {name!r}: expected one of {names}, or a YAML file; {file} is missing.")
    parameters = Parameters.load(file)
    find_model(parameters.model)
    return parameters, file.stem


def find_notebooks(model: Model, only: list[str] | None = None) -> list[Path]:
    """Files of the notebooks that are for a model, or of those whose names begin so.

    Raises:
        ValueError: no notebook's name begins so.
    """
    names = [n for n, meant_for in NOTEBOOKS.items() if (n.startswith(tuple(only)) if only else meant_for(model))]
    if not names:
        raise ValueError(f"no notebook's name begins with {' or '.join(only or [])}; there are {', '.join(NOTEBOOKS)}.")
    return [project() / "notebooks" / f"{name}.ipynb" for name in names]


def run(
    name: str, out: Path | None = None, only: list[str] | None = None, fresh: bool = False, jobs: int = 1
) -> Path | None:
    """Executes the notebooks and returns the path of the HTML report (in the main process).

    Args:
        name: of parameters in papermill_params/, or a YAML file.
        out: run folder; default `runs/<name>` in the current folder.
        only: beginnings of the names of the notebooks to execute; default all that are for the model.
        fresh: also those that were executed before.
        jobs: notebooks side by side, which share out the cores. A small model uses two cores better in two kernels
            than in two threads; what fills a GPU alone needs one.

    Raises:
        ValueError, FileNotFoundError: parameters or model are not right, or fewer than one job; nothing was executed.
        NotebookError: a notebook stopped; the next call goes on with it.
    """
    if jobs < 1:
        raise ValueError(f"jobs: at least one notebook at a time; got {jobs}.")
    given, stem = find_parameters(name)
    folder = (out or Path("runs") / stem).resolve()
    given = given.model_copy(update={"folder": str(folder)})
    notebooks = find_notebooks(find_model(given.model), only)
    if processes() > 1:  # under accelerate launch: together what takes long, then one of them runs the notebooks
        precompute(Run(given))
        if not is_main():
            return None
        alone()
    save_json(given.dump(), folder / "parameters.json")
    _execute_all(notebooks, given, folder, fresh, jobs)
    executed = [folder / path.name for path in notebooks]
    return write_report(executed, folder / "report.html", f"memsub: {given.model}", given.dump())


def _execute_all(notebooks: list[Path], parameters: Parameters, folder: Path, fresh: bool, jobs: int) -> None:
    record = folder / "executed.json"
    done = load_json(record) if record.is_file() and not fresh else {}
    digest = _digest(parameters.dump(), *(p.read_text() for p in sorted(Path(__file__).parent.rglob("*.py"))))
    due: dict[Path, str] = {}
    for path in notebooks:
        digest = _digest(digest, _code(nbformat.read(path, as_version=4)))
        if due or done.get(path.name) != digest or not (folder / path.name).is_file():
            due[path] = digest
            done.pop(path.name, None)
    save_json(done, record)
    bar = tqdm(total=len(notebooks), initial=len(notebooks) - len(due), desc="notebooks", unit="notebook")
    with bar, closing(_executed(list(due), parameters, folder, jobs)) as executed:
        for path in executed:
            done[path.name] = due[path]
            save_json(done, record)
            bar.set_postfix_str(path.stem)
            bar.update()


def _executed(paths: list[Path], parameters: Parameters, folder: Path, jobs: int) -> Generator[Path]:
    """Executes notebooks, so many side by side, and names each when it has ended; raises as `execute`."""
    if jobs == 1:
        for path in paths:
            execute(path, folder / path.name, parameters)
            yield path
        return
    waiting, running = list(paths), dict[Future, Path]()
    every = EXPERIMENTS.values()
    cost = {path: sum(e.steps(parameters) for e in every if path.stem.startswith(e.notebook)) for path in paths}
    # Spawned, not forked: this process has threads. The kernels inherit how many of theirs they may use.
    threads = max(1, (os.cpu_count() or 1) // jobs)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, _use_threads, (threads,)) as pool:
        try:
            while waiting or running:
                if not any(path.stem == CAPTURE for path in running.values()):
                    end = 1 + next((i for i, path in enumerate(waiting) if path.stem == CAPTURE), len(waiting))
                    # The longest begin first, of those that sample nothing the later ones: they do more.
                    for path in sorted(waiting[:end], key=lambda path: (cost[path], path.name), reverse=True):
                        running[pool.submit(execute, path, folder / path.name, parameters, bar=False)] = path
                    del waiting[:end]
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    yield running.pop(future)
        finally:
            pool.shutdown(cancel_futures=True)


def _use_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)


def execute(path: Path, out: Path, parameters: Parameters, bar: bool = True) -> None:
    """Executes one notebook by papermill, in the folder it lies in; `bar`: shows how far it is.

    Raises:
        NotebookError: names notebook, cell and error; `out` holds the notebook up to there.
    """
    import papermill  # in the extra `notebooks`
    from papermill.exceptions import PapermillExecutionError

    # A notebook's own cell shows only the parameters it is about; papermill would warn of each of the others.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    given = parameters.dump()
    try:
        options = {"cwd": str(path.parent), "kernel_name": "python3", "progress_bar": bar}
        # All that a notebook leaves is written: a kernel would take more than a second to tidy up.
        papermill.execute_notebook(str(path), str(out), given, shutdown_kernel="immediate", **options)
    except PapermillExecutionError as error:
        raise NotebookError(
            f"{path.name} stopped at In [{error.exec_count}]: {error.ename}: {error.evalue} (see {out}). "
            "Run again to go on from there."
        ) from None


def _code(notebook: NotebookNode) -> str:
    return json.dumps([cell.source for cell in notebook.cells])


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
