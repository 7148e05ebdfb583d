"""What runs on other machines found, as files that anybody may send: docs/results/ (its README says how).

    python -m tools.results runs/sd14-quick --out docs/results/sd14-quick-gpu.json      # of a run that has finished
    python -m tools.results --check                                 # are all files as they should be?
    python -m tools.results --schema                                # writes docs/results/schema.json

A file holds numbers, versions and settings; no captions, no images, no paths and no names of people.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memsub.io.files import load_json, save_json
from memsub_extra.notebooks.batch import project
from memsub_extra.notebooks.findings import VERDICTS, plain, read_findings
from memsub_extra.notebooks.published import Found, recorded
from memsub_extra.notebooks.report import LIBRARIES
from memsub_extra.run.parameters import Parameters

FOLDER, SCHEMA = "docs/results", "schema.json"
Text = Field(max_length=200, pattern=r"^[^<>\x00-\x1f]*$")
"""A line without tags, from anybody."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Machine(_Part):
    """What computed it.

    Attributes:
        hardware: the GPU's name, or threads of a CPU; system: operating system and architecture.
        versions: of memsub, torch and the other libraries that decide numbers.
    """

    hardware: str = Text
    system: str = Text
    python: str = Text
    versions: dict[str, str]


class Claim(_Part):
    """A claim of a notebook, as its findings record it."""

    verdict: Literal["holds", "fails", "inconclusive"]
    relation: Literal["at least", "at most", "exact"]
    value: float
    bound: float
    low: float | None = None
    high: float | None = None


class Result(_Part):
    """A file of docs/results/.

    Attributes:
        kind: "smoke": two captions and four steps, which show that the chain works; "run": notebooks.
        model: as memsub was asked for it, without folders; weights: what kind they are of.
        date: of the result, as 2026-11-30.
        settings: of a smoke run, or the parameters of a run that differ from the defaults.
        checks: what had to be true; quantities: what can stand beside published numbers; claims: of the notebooks.
        minutes: wall-clock; gigabytes: peak of the GPU, or of the process on a CPU.
    """

    kind: Literal["smoke", "run"]
    model: str = Text
    weights: Literal["published", "random", "embedded", "own"]
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    machine: Machine
    settings: dict[str, Any]
    checks: dict[str, bool] = {}
    quantities: list[Found] = []
    claims: dict[str, dict[str, Claim]] = {}
    minutes: float | None = Field(None, ge=0)
    gigabytes: float | None = Field(None, ge=0)
    remark: str = Field("", max_length=500, pattern=r"^[^<>\x00-\x1f]*$")

    def save(self, path: Path) -> None:
        """Writes the file."""
        save_json(plain(self.model_dump(mode="json")), path)

    @classmethod
    def load(cls, path: Path) -> Result:
        """A file of docs/results/.

        Raises:
            ValueError: it is not as this class says; names file and field.
        """
        try:
            return cls(**load_json(path))
        except (ValidationError, TypeError) as error:
            raise ValueError(f"{path} is no result: {error}") from None


def machine(hardware: str) -> Machine:
    """This machine."""
    return Machine(
        hardware=hardware,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: version(name) for name in LIBRARIES},
    )


def peak_gigabytes() -> float:
    """Of a GPU's memory for tensors, or of this process's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def weights_of(model: str) -> str:
    """What kind of weights a model has, by its name: a folder's are its owner's."""
    if model.startswith("tiny"):
        return "embedded"
    return "published" if model in ("sd14", "sd20") or not Path(model).exists() else "own"


def of_run(folder: Path, hardware: str, remark: str = "") -> Result:
    """The result of a run that has finished.

    Raises:
        FileNotFoundError: the folder holds no parameters, or no findings.
    """
    given = load_json(folder / "parameters.json")
    files = sorted((folder / "findings").glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no findings/*.json: name the folder of a run that has finished.")
    claims = {file.stem: _claims(read_findings(file)["claims"]) for file in files}
    return Result(
        kind="run",
        model=Path(given["model"]).name,
        weights=weights_of(given["model"]),
        date=time.strftime("%Y-%m-%d", time.localtime(files[-1].stat().st_mtime)),
        machine=machine(hardware),
        settings=changed(given),
        quantities=recorded(folder),
        claims=claims,
        remark=remark,
    )


def _claims(claims: Mapping[str, Mapping[str, Any]]) -> dict[str, Claim]:
    """Claims of one notebook, without those that are not a number."""
    known = {sentence: {k: claim[k] for k in Claim.model_fields} for sentence, claim in claims.items()}
    return {s: Claim(**c) for s, c in known.items() if c["value"] == c["value"] and c["verdict"] in VERDICTS}


def changed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that are not the defaults, but for names of files and folders."""
    defaults = Parameters().dump()
    different = {key: value for key, value in given.items() if value != defaults.get(key)}
    return {k: v for k, v in different.items() if k not in ("folder", "data", "model", "deletion")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.results", description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run that has finished")
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--remark", default="", help="a sentence of yours, without names")
    parser.add_argument("--check", action="store_true", help="read all files of docs/results; fail if one is not right")
    parser.add_argument("--schema", action="store_true", help="write docs/results/schema.json")
    args = parser.parse_args()
    folder = project() / FOLDER
    if args.schema:
        save_json(Result.model_json_schema(), folder / SCHEMA)
    if args.check:
        for file in sorted(folder.glob("*.json")):
            if file.name != SCHEMA:
                result = Result.load(file)
                print(f"{file.name}: {result.kind} of {result.model} ({result.weights}) on {result.machine.hardware}")
    if args.run:
        from memsub.io import distributed
        from memsub_extra.hardware import hardware

        result = of_run(args.run, hardware(distributed.device()), args.remark)
        if args.out:
            result.save(args.out)
        print(json.dumps(plain(result.model_dump(mode="json")), indent=1))


if __name__ == "__main__":
    main()
