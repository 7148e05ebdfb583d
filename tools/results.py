"""What runs on other machines found, as files that anybody may send: docs/results/ (its README says how).

    python -m tools.results runs/sd14-quick --out docs/results/sd14-quick-gpu.json      # of a run that has finished
    python -m tools.results --check                                 # are all files valid?
    python -m tools.results --schema                                # writes docs/results/schema.json

A file holds numbers, versions and settings; no captions, no images, no paths and no names of people. Machine, time and
memory are those that the run itself recorded, so this tool may be called on another machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from memsub.io.files import load_json, save_json
from memsub.measure.clip import CLIPS
from memsub.measure.sscd import SSCD
from memsub.models import MODELS, find_model
from memsub_extra.notebooks.batch import project
from memsub_extra.notebooks.findings import VERDICTS, plain, read_findings
from memsub_extra.notebooks.published import Found, recorded
from memsub_extra.notebooks.took import Took, read_took, system, versions
from memsub_extra.run.parameters import Parameters

FOLDER, SCHEMA = "docs/results", "schema.json"
Text = Field(max_length=200, pattern=r"^[^<>\x00-\x1f]*$")
"""A line of text without tags, because files may come from anybody."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Machine(_Part):
    """The machine that computed a result.

    Attributes:
        hardware: the GPU's name, or the number of CPU threads; system: operating system and architecture.
        versions: versions of memsub, torch and other libraries that results depend on.
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
        kind: "smoke" (two captions and four steps, which show that the chain works) or "run" (notebooks).
        model: the model's name as given to memsub, without folders; weights: their kind.
        date: date of the result, as 2026-11-30.
        settings: settings of a smoke run, or the parameters of a run that differ from the defaults.
        checks: checks of a smoke run; quantities: results to compare with published ones; claims: of the notebooks.
        minutes: wall-clock time; gigabytes: peak memory of the GPU, or of the process on a CPU.
        minutes_by_notebook: for runs; empty for runs of earlier versions.
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
    minutes_by_notebook: dict[str, float] = {}
    remark: str = Field("", max_length=500, pattern=r"^[^<>\x00-\x1f]*$")

    @field_validator("settings")
    @classmethod
    def _without_paths(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if found := next((text for text in _texts(settings) if is_path(text)), None):
            raise ValueError(f"settings hold {found!r}, which looks like a path: write {OWN!r} in its place.")
        return settings

    def save(self, path: Path) -> None:
        """Writes the file."""
        save_json(plain(self.model_dump(mode="json")), path)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Reads a file of docs/results/.

        Raises:
            ValueError: the file does not fit this class; the message names file and field.
        """
        try:
            return cls(**load_json(path))
        except (ValidationError, TypeError) as error:
            raise ValueError(f"{path} is no result: {error}") from None


OWN = "a file of one's own"
"""Text that replaces a path."""
PUBLISHED = {"sd14", "sd20", *(find_model(name).source for name in ("sd14", "sd20"))}
"""Models whose weights are published: memsub's names and the hub's."""
PUBLIC = {*SSCD, *CLIPS, *CLIPS.values(), "published", *PUBLISHED}
"""Names in settings that are no paths, although some contain a slash."""


def is_path(text: str) -> bool:
    """Whether a setting may be an address, or the path of a file or folder."""
    if text in PUBLIC:
        return False
    return "/" in text or "\\" in text or text.startswith(("~", ".")) or Path(text).suffix in FILES


FILES = {".pt", ".pth", ".onnx", ".safetensors", ".ckpt", ".bin", ".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet"}
"""Suffixes of files that a setting may name."""


def _texts(value: Any) -> Iterator[str]:
    """Yields all texts in settings, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)


def _without_paths(value: Any) -> Any:
    """Settings in which `OWN` replaces each path."""
    if isinstance(value, str):
        return OWN if is_path(value) else value
    if isinstance(value, Mapping):
        return {_without_paths(key): _without_paths(inner) for key, inner in value.items()}
    return [_without_paths(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def machine(hardware: str) -> Machine:
    """This machine."""
    return Machine(hardware=hardware, system=system(), python=platform.python_version(), versions=versions())


def weights_of(model: str) -> str:
    """The kind of a model's weights, by its name: "own" for all that memsub does not know as published.

    A hub id does not tell who may load it, and the path of a missing folder does not tell what it contained.
    """
    if model in PUBLISHED:
        return "published"
    return "embedded" if model in MODELS and MODELS[model].world == "testbed" else "own"


def of_run(folder: Path, remark: str = "") -> Result:
    """The result of a finished run: its findings, and its records of machine, minutes and memory.

    Raises:
        FileNotFoundError: the folder holds no parameters, or no findings.
        ValueError: the records are of several machines, or a record is invalid.
    """
    given = load_json(folder / "parameters.json")
    files = sorted((folder / "findings").glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no findings/*.json: name the folder of a run that has finished.")
    claims = {file.stem: _claims(read_findings(file)["claims"]) for file in files}
    took = {name: each for name, each in read_took(folder).items() if name in claims}
    minutes = {name: round(each.minutes, 2) for name, each in took.items()}
    complete = set(took) == set(claims)  # otherwise the sum would lack notebooks
    return Result(
        kind="run",
        model=Path(given["model"]).name,
        weights=weights_of(given["model"]),
        date=time.strftime("%Y-%m-%d", time.localtime(files[-1].stat().st_mtime)),
        machine=_machine_of(folder, took),
        settings=changed(given),
        quantities=recorded(folder),
        claims=claims,
        minutes=round(sum(minutes.values()), 2) if complete else None,
        gigabytes=round(max(each.gigabytes for each in took.values()), 2) if complete else None,
        minutes_by_notebook=minutes,
        remark=remark,
    )


def _machine_of(folder: Path, took: Mapping[str, Took]) -> Machine:
    """The machine that a run recorded; "not recorded" for runs of earlier versions."""
    machines = [Machine(**each.model_dump(include=set(Machine.model_fields))) for each in took.values()]
    if not machines:
        return Machine(hardware="not recorded", system="not recorded", python="not recorded", versions={})
    if other := next((each for each in machines if each != machines[0]), None):
        raise ValueError(
            f"the notebooks of {folder} were executed on different machines or versions ({machines[0].hardware}, "
            f"{other.hardware}): minutes and memory of one are expected. Execute all again on one by `memsub run "
            "--fresh`."
        )
    return machines[0]


def _claims(claims: Mapping[str, Mapping[str, Any]]) -> dict[str, Claim]:
    """Claims of one notebook, without those whose value is NaN or whose verdict is unknown."""
    known = {sentence: {k: claim[k] for k in Claim.model_fields} for sentence, claim in claims.items()}
    return {s: Claim(**c) for s, c in known.items() if c["value"] == c["value"] and c["verdict"] in VERDICTS}


def changed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that differ from the defaults, except folder, data, model and deletion; `OWN` replaces paths."""
    defaults = Parameters().dump()
    different = {key: value for key, value in given.items() if value != defaults.get(key)}
    kept = {key: value for key, value in different.items() if key not in ("folder", "data", "model", "deletion")}
    for key, names in {"copy": SSCD, "prompt": CLIPS}.items():  # a plain name may be a file here
        metrics = kept.get("metrics", {})
        if metrics.get(key) not in (None, "published", *names):
            kept["metrics"] = metrics | {key: OWN}
    return _without_paths(kept)


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
        result = of_run(args.run, args.remark)
        if args.out:
            result.save(args.out)
        print(json.dumps(plain(result.model_dump(mode="json")), indent=1))


if __name__ == "__main__":
    main()
