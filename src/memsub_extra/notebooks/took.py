"""What the notebooks of a run took, and on what: written beside their findings, for `tools.results`.

    note_took(run, "04_pruning")                # runs/<name>/took/04_pruning.json, by `findings.checks`
    read_took(folder)                           # name of the notebook to `Took`; empty for a run of an earlier version

It is no finding: another execution takes other minutes and finds the same.
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
"""Whose versions decide numbers."""


class Took(BaseModel):
    """What the execution of a notebook took.

    Attributes:
        hardware: the GPU's name, or threads of a CPU; system: operating system and architecture.
        minutes: wall-clock, from the making of its run to its last cell but for what follows; gigabytes: peak of the
            GPU, or of the process on a CPU; rows: of network calls that it made.
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
    """Of `LIBRARIES`."""
    return {name: version(name) for name in LIBRARIES}


def note_took(run: Run, notebook: str) -> None:
    """Writes what a notebook took until now, unless an earlier execution made more network calls: a later one, which
    reads stored results, says nothing of what they took."""
    from memsub_extra.hardware import hardware, peak_gigabytes  # imports torch, which reading records does not need

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
    """By notebook, what `note_took` wrote into a run's folder.

    Raises:
        ValueError: a file is not as `Took` says; names it, and says what to do.
    """
    read = {}
    for file in sorted((folder / FOLDER).glob("*.json")):
        try:
            read[file.stem] = Took(**load_json(file))
        except (ValidationError, TypeError) as error:
            raise ValueError(f"{file} does not say what a notebook took: {error}. Remove it.") from None
    return read
