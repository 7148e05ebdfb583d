"""Executes all notebooks without a browser: `python -m memsub run`.

    reports = run(["tiny"])                     # runs/tiny/00_testbed.ipynb, ..., report.html
    reports = run(["quick", "tiny"])            # several parameter files; writes runs/comparison.csv

Papermill executes each notebook into the run folder. An executed notebook carries a digest of its code, the code of all
notebooks before it, the parameters, and the files that they name (except training images, which a run fetches). A
notebook that was executed with the same digest is skipped. Only one run at a time can use a folder.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir, closing, contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbformat import NotebookNode
from tqdm.auto import tqdm

from memsub.io.distributed import is_main, processes
from memsub.io.files import check_artifact, exclusive, load_json, printable, save_json, save_text, write_atomically
from memsub.measure.clip import CLIPS
from memsub.measure.sscd import SSCD, sscd_file
from memsub.models import ModelInfo, find_model, load_pipeline
from memsub_extra.prompt_lists.kinds import read_types
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run
from memsub_extra.run.sample import taken

from . import inputs
from .cost import at_hand, known_work, seconds_per_step
from .execution import NotebookError, begin, execute
from .findings import digest_of, read_findings
from .listing import NOTEBOOKS, Notebook, of_model, precompute
from .report import write_report

GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables of a process that belongs to a group, under `accelerate launch`."""
VERSION = 1
"""Raise it to execute notebooks again although neither their code nor their parameters changed."""
LARGE = 2**26
"""Files of this many bytes or more are identified by size and time instead of content."""
OVERHEAD = 12.0
"""Seconds that a notebook takes in addition to network calls: start of the kernel, imports, figures."""


def project() -> Path:
    """The checkout with the notebooks.

    Raises:
        FileNotFoundError: memsub was installed without a checkout.
    """
    for folder in (Path.cwd(), *Path(__file__).resolve().parents):
        if (folder / "papermill_params").is_dir() and (folder / "notebooks").is_dir():
            return folder
    raise FileNotFoundError(
        "no folder with notebooks/ and papermill_params/ here: run this from a checkout of memsub (they are not in the "
        "wheel)."
    )


def find_parameters(name: str) -> tuple[Parameters, str]:
    """Parameters by name in papermill_params/, or from a YAML file; and the name of the run.

    Raises:
        ValueError, FileNotFoundError: they are missing or invalid, or their model is missing.
    """
    folder = project() / "papermill_params"
    file = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise FileNotFoundError(f"no parameters {name!r}: expected one of {names}, or a YAML file; {file} is missing.")
    parameters = Parameters.load(file)
    find_model(parameters.model)
    return parameters, file.stem


def find_notebooks(model: ModelInfo, only: Sequence[str] = ()) -> list[Notebook]:
    """The notebooks that apply to a model; with `only`, those whose names begin with one of its entries.

    Raises:
        ValueError: no notebook's name begins with an entry.
    """
    if not only:
        return of_model(model)
    chosen = [NOTEBOOKS[name] for name in sorted(NOTEBOOKS) if name.startswith(tuple(only))]
    if not chosen:
        raise ValueError(f"no notebook's name begins with {' or '.join(only)}; there are {', '.join(NOTEBOOKS)}.")
    return chosen


def left_out(model: ModelInfo) -> str:
    """The notebooks that do not apply to a model, each with the world that it requires; "" if all apply."""
    others = [NOTEBOOKS[name] for name in sorted(NOTEBOOKS) if not NOTEBOOKS[name].suits(model)]
    return ", ".join(f"{notebook.name} (about the world {notebook.needs_world!r})" for notebook in others)


def run(
    names: Sequence[str],
    out: Path | None = None,
    only: Sequence[str] = (),
    fresh: bool = False,
    jobs: int = 1,
    notice: str = "",
) -> list[Path]:
    """Executes the notebooks of each parameter file, and returns the paths of the HTML reports (in the main process).

    Args:
        names: names of parameters in papermill_params/, or YAML files.
        out: run folder; default: the parameters' `folder`, relative to notebooks/, or `runs/<name>` in the current
            folder. With several names, the parent of their run folders.
        only: beginnings of the names of the notebooks to execute; default: all that apply to the model.
        fresh: also execute notebooks that were executed before.
        jobs: number of notebooks at a time; they share the cores. A small model uses two cores better in two kernels
            than in two threads. A model that fills a GPU requires 1.
        notice: first line of the reports.

    Raises:
        ValueError, FileNotFoundError: invalid parameters or model, or fewer than one job; nothing was executed.
        BlockingIOError: another run uses the folder.
        NotebookError: a notebook failed; the next call resumes with it.
    """
    if jobs < 1:
        raise ValueError(f"jobs: at least one notebook at a time; got {jobs}.")
    if not names:
        raise ValueError("name at least one parameter file.")
    wanted: dict[Path, tuple[Parameters, list[Notebook], dict[str, Any]]] = {}
    for name in names:  # check all of them before the first is executed
        parameters, stem = find_parameters(name)
        folder = _folder(parameters, stem, out, len(names))
        if folder in wanted:
            raise ValueError(f"two of these parameter files lead to one run folder, {folder}: name one at a time.")
        notebooks = find_notebooks(find_model(parameters.model), only)
        parameters = parameters.model_copy(update={"folder": str(folder)})
        wanted[folder] = parameters, notebooks, _check_files(parameters, [notebook.name for notebook in notebooks])
    if processes() > 1:  # accelerate launch: all compute the experiments, then one executes the notebooks
        with chdir(project() / "notebooks"):  # as in their kernels: paths in parameters are relative to it
            for parameters, *_ in wanted.values():
                precompute(Run(parameters))
        if not is_main():
            return []
        _leave_group()
    reports = []
    for folder, (parameters, notebooks, prompts) in wanted.items():
        with one_at_a_time(folder):
            _save_inputs(parameters, prompts, folder)
            if not only and (others := left_out(find_model(parameters.model))):
                print(f"{folder.name}: left out: {others}")
            _execute_all(notebooks, parameters, folder, fresh, jobs, prompts)
            executed = [folder / f"{notebook.name}.ipynb" for notebook in notebooks]
            title = f"memsub: {folder.name}" if len(names) > 1 else f"memsub: {parameters.model}"
            reports.append(write_report(executed, folder / "report.html", title, parameters.dump(), notice))
    if len(wanted) > 1:
        table = compared(list(wanted))
        print(table.to_string())
        save_text(table.to_csv(), (out or Path("runs")) / "comparison.csv")
    return reports


def _save_inputs(parameters: Parameters, prompts: dict[str, Any], folder: Path) -> None:
    """Writes `parameters.json`, and for lists with kinds `prompts.json`: the rows that the run takes."""
    save_json(parameters.dump(), folder / "parameters.json")
    if prompts:
        save_json(prompts, folder / "prompts.json")


def _leave_group() -> None:
    """Removes this process from its group, because its child processes are not part of the group."""
    for name in GROUP:
        os.environ.pop(name, None)


def _folder(parameters: Parameters, stem: str, out: Path | None, names: int) -> Path:
    if out:
        return (out if names == 1 else out / stem).expanduser().resolve()
    if "folder" in parameters.model_fields_set:
        return (project() / "notebooks" / parameters.folder).resolve()  # where a notebook finds it
    return (Path("runs") / stem).resolve()


def _named_files(parameters: Parameters) -> dict[str, Path]:
    """The files and folders that parameters name, by key, with paths as notebooks resolve them."""
    p = parameters
    named = {"model": p.model, "data.real": p.data.real, "metrics.copy": p.metrics.copy_, "data.types": p.data.types}
    named |= {"metrics.prompt": p.metrics.prompt, "data.images": p.data.images}
    lists = p.data.prompts if isinstance(p.data.prompts, dict) else {"list": p.data.prompts}
    named |= {f"data.prompts.{kind}": path for kind, path in lists.items()}
    named |= {f"deletion.edits.{name}": path for name, path in p.deletion.edits.items()}
    return {key: project() / "notebooks" / path for key, path in named.items() if path}


def _check_files(parameters: Parameters, notebooks: Sequence[str] = ()) -> dict[str, Any]:
    """Raises ValueError or FileNotFoundError for problems that a run would meet after hours: missing files, too few
    captions or images for these notebooks, missing consent. Returns the prompts that it takes, for lists with kinds.
    """
    if missing := parameters.missing_images():
        raise ValueError(f"{missing}.")
    for key, path in _named_files(parameters).items():
        if key.startswith("deletion.edits."):
            if not path.is_file():
                raise FileNotFoundError(f"{printable(key)} names {path}, where no file is.")
            check_artifact(path, "Edit")
    prompt = parameters.metrics.prompt
    if prompt and prompt not in CLIPS and "/" not in prompt and not (project() / "notebooks" / prompt).is_dir():
        raise ValueError(
            f"metrics.prompt: no CLIP named {prompt!r}; expected {', '.join(CLIPS)}, a folder, or a hub id."
        )
    if types := _named_files(parameters).get("data.types"):
        read_types(types)
    if copy := parameters.metrics.copy_:
        sscd_file(copy if copy in SSCD else project() / "notebooks" / copy)
    data = inputs.data_of(parameters, project() / "notebooks")
    if problem := next(inputs.problems(data, notebooks), ""):
        raise ValueError(problem)
    return {} if inputs.is_world(data) else taken(data)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Locks a run folder, because two runs in it would mix their results. The lock ends with the process.

    Raises:
        BlockingIOError: another process has the lock; the message says which.
    """
    lock = folder / "run.lock"
    folder.mkdir(parents=True, exist_ok=True)
    lock.touch()
    with exclusive(lock) as mine:
        if mine is False:
            raise BlockingIOError(
                f"{folder} is used by another run ({printable(lock.read_text(errors='replace'))[:200].strip()}): wait "
                "for its end, or name another folder by --out."
            )
        lock.write_text(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M')}\n")
        yield


# --- executing -------------------------------------------------------------------------------------------------------


def _execute_all(
    notebooks: list[Notebook], parameters: Parameters, folder: Path, fresh: bool, jobs: int, prompts: dict[str, Any]
) -> None:
    content = _content(parameters) | ({"prompts": prompts} if prompts else {})
    digest, due = _digest(VERSION, parameters.dump(), content), dict[str, str]()
    for notebook in notebooks:
        digest = _digest(digest, _code(nbformat.read(_file(notebook), as_version=4)))
        if due or fresh or _made_of(folder, notebook.name) != digest:
            due[notebook.name] = digest
    if not due:
        print(f"{folder.name}: nothing to execute, all is there as it was (--fresh executes it again)")
        return
    waiting = [notebook for notebook in notebooks if notebook.name in due]
    steps = known_work(parameters, list(due)).groupby("notebook")["steps"].sum().to_dict()
    print(expected_time(waiting, steps, parameters, jobs))
    bar = tqdm(total=len(notebooks), initial=len(notebooks) - len(due), desc=folder.name, unit="notebook")
    with bar, closing(_executed(waiting, steps, parameters, folder, jobs)) as executed:
        for notebook in executed:
            _sign(folder, notebook.name, due[notebook.name])
            bar.write(found_in_a_line(notebook.name, folder))
            bar.update()


def _sign(folder: Path, name: str, digest: str) -> None:
    """Writes into an executed notebook its digest, and which findings belong to it."""
    path = folder / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["memsub"] = {"digest": digest, "findings": digest_of(folder / "findings" / f"{name}.json")}
    write_atomically(path, lambda temporary: nbformat.write(notebook, temporary))


def _made_of(folder: Path, name: str) -> str:
    """The digest of an executed notebook; "" if there is none, or if its findings were replaced."""
    try:
        made = load_json(folder / f"{name}.ipynb")["metadata"]["memsub"]
        return made["digest"] if made["findings"] == digest_of(folder / "findings" / f"{name}.json") else ""
    except (FileNotFoundError, ValueError, LookupError, TypeError):  # an invalid file is made again
        return ""


def _content(parameters: Parameters) -> dict[str, Any]:
    """The contents of the files that parameters name; for folders and large files, times and sizes."""
    content: dict[str, Any] = {}
    for key, path in _named_files(parameters).items():
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        for file in files:
            about = file.stat()
            small = path.is_file() and about.st_size < LARGE
            content[f"{key}: {file.relative_to(path)}"] = (
                hashlib.sha256(file.read_bytes()).hexdigest() if small else [about.st_size, about.st_mtime_ns]
            )
    return content


def expected_time(notebooks: list[Notebook], steps: Mapping[str, int], parameters: Parameters, jobs: int) -> str:
    """The expected time of notebooks, from a few timed network calls; without a time if the model is missing."""
    total = sum(steps.get(notebook.name, 0) for notebook in notebooks)
    summary = f"{Path(parameters.folder).name}: {len(notebooks)} notebooks, {total:,} guided steps of one image at most"
    if not at_hand(parameters.model):
        return f"{summary}; how long they take here is not known: the model has to be downloaded first"
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(_threads(jobs))
    try:
        seconds = seconds_per_step(load_pipeline(parameters.model), min(parameters.sampling.batch_size, 8))
    finally:
        torch.set_num_threads(threads)
    minutes = (total * seconds + OVERHEAD * len(notebooks)) / min(jobs, len(notebooks)) / 60
    return f"{summary}, {1000 * seconds:.1f} ms each here: about {max(1, round(minutes))} min"


def found_in_a_line(name: str, folder: Path) -> str:
    """The findings of a notebook in one line: verdicts, and its first facts."""
    file = folder / "findings" / f"{name}.json"
    if not file.is_file():
        return f"{name}: executed"
    findings = read_findings(file)
    verdicts = [claim["verdict"] for claim in findings["claims"].values()]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)) or "no claims"
    numbers = [f"{key} {value:.3g}" for key, value in numbers_of(findings["facts"]).items()]
    return f"{name}: {counts}" + (f"; {', '.join(numbers[:4])}" if numbers else "")


def _executed(
    waiting: list[Notebook], steps: Mapping[str, int], parameters: Parameters, folder: Path, jobs: int
) -> Generator[Notebook]:
    """Executes `jobs` notebooks at a time, and yields each when it has ended; raises as `execute`."""
    if jobs == 1:
        for notebook in waiting:
            execute(_file(notebook), folder / f"{notebook.name}.ipynb", parameters.dump())
            yield notebook
        return
    waiting, running = list(waiting), dict[Future, Notebook]()
    # Spawned, not forked, because this process has threads. Kernels inherit their number of threads.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, begin, (_threads(jobs),)) as pool:
        try:
            while waiting or running:
                unfinished = {notebook.name for notebook in (*waiting, *running.values())}
                ready = [notebook for notebook in waiting if unfinished.isdisjoint(notebook.needs)]
                # The longest begin first, so that the last ones end at about the same time.
                for notebook in sorted(ready, key=lambda notebook: -steps.get(notebook.name, 0)):
                    out = folder / f"{notebook.name}.ipynb"
                    running[pool.submit(execute, _file(notebook), out, parameters.dump(), bar=False)] = notebook
                    waiting.remove(notebook)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    yield running.pop(future)
        except BrokenProcessPool:
            raise NotebookError(
                "the process of a notebook was killed, perhaps for want of memory: run again with fewer --jobs."
            ) from None
        except (KeyboardInterrupt, SystemExit, GeneratorExit):  # no process continues to write
            for worker in multiprocessing.active_children():
                worker.terminate()  # and kernels end when their parents do
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _threads(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)


def _file(notebook: Notebook) -> Path:
    return project() / "notebooks" / f"{notebook.name}.ipynb"


def _code(notebook: NotebookNode) -> str:
    return json.dumps([cell.source for cell in notebook.cells])


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# --- several runs ----------------------------------------------------------------------------------------------------


def compared(folders: Sequence[Path]) -> pd.DataFrame:
    """The findings of several runs: a row for each number and count of verdicts, a column for each run."""
    columns: dict[str, dict[str, float]] = {}
    for folder in folders:
        column = columns.setdefault(folder.name, {})
        for file in sorted((folder / "findings").glob("*.json")):
            findings = read_findings(file)
            verdicts = [claim["verdict"] for claim in findings["claims"].values()]
            column |= {
                f"{file.stem[:2]} claims: {verdict}": verdicts.count(verdict) for verdict in sorted(set(verdicts))
            }
            column |= {f"{file.stem[:2]} {key}": value for key, value in numbers_of(findings["facts"]).items()}
    return pd.DataFrame(columns).sort_index()


def numbers_of(facts: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """The numbers in the findings of a notebook, by dotted names."""
    numbers: dict[str, float] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            numbers |= {before + key: value["value"]} if "value" in value else numbers_of(value, f"{before}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[before + key] = value
    return numbers
