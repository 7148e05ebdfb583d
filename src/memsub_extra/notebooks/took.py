"""Time and memory of the notebooks of a run, and the hardware; stored beside the findings, for `tools.results`.

    note_took(run, "04_pruning")                # runs/<name>/took/04_pruning.json, by `findings.checks`
    read_took(folder)                           # name of the notebook to `Took`; empty for a run of an earlier version

These are no findings: another execution takes other times and has the same findings.
"""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memsub.io.files import load_json, save_json

if TYPE_CHECKING:
    from memsub_extra.run.run import Run

FOLDER = "took"
LIBRARIES = ("memsub", "torch", "diffusers", "transformers", "numpy")
"""Libraries whose versions affect numbers."""


class Took(BaseModel):
    """Time, memory and hardware of the execution of a notebook.

    Attributes:
        hardware: the GPU's name, or threads of a CPU; system: operating system and architecture.
        minutes: wall-clock time from the creation of its run to the call of `note_took`; gigabytes: peak memory of the
            GPU, or of the process on a CPU; rows: number of rows of its network calls.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    hardware: str
    system: str
    python: str
    versions: dict[str, str]
    date: str
    minutes: float = Field(ge=0)
    gigabytes: float = Field(ge=0)
    rows: int = Field(ge=0)


def system() -> str:
    """Operating system and architecture."""
    return f"{platform.system()} {platform.machine()}"


def versions() -> dict[str, str]:
    """Versions of `LIBRARIES`."""
    return {name: version(name) for name in LIBRARIES}


def note_took(run: Run, notebook: str) -> None:
    """Writes the time and memory of a notebook until now, unless an earlier execution made more network calls. (A later
    execution reads stored results, so its time is not that of the experiments.)"""
    from memsub_extra.hardware import hardware, peak_gigabytes  # imports torch, which is not required to read records

    path = run.folder / FOLDER / f"{notebook}.json"
    took = Took(
        hardware=hardware(run.denoiser.device),
        system=system(),
        python=platform.python_version(),
        versions=versions(),
        date=time.strftime("%Y-%m-%d"),
        minutes=round((time.monotonic() - run.began) / 60, 3),
        gigabytes=round(peak_gigabytes(), 3),
        rows=run.network_rows,
    )
    earlier = read_took(run.folder).get(notebook)
    if earlier is None or took.rows >= earlier.rows:
        save_json(took.model_dump(), path)


def read_took(folder: Path) -> dict[str, Took]:
    """The records of `note_took` in a run's folder, by notebook.

    Raises:
        ValueError: a file does not fit `Took`; the message names it, and says what to do.
    """
    read = {}
    for file in sorted((folder / FOLDER).glob("*.json")):
        try:
            read[file.stem] = Took(**load_json(file))
        except (ValidationError, TypeError) as error:
            raise ValueError(f"{file} does not say what a notebook took: {error}. Remove it.") from None
    return read
