"""What runs of the shipped parameter files cost, for `memsub check`: `python -m tools.costs`, five minutes of one core.

    python -m tools.costs sd14-quick            # this file alone

It counts the calls of every experiment (`memsub_extra.notebooks.cost.work`), and computes the memory of each part from
shapes. Time and memory of a step on a GPU are those that `tools.gpu` and `tools.fullsize_removals` measured. It writes
`costs.json` beside the module `cost`.
"""

from __future__ import annotations

import argparse
from typing import Any

from memsub.io.files import load_json, save_json
from memsub_extra.full_size import memory
from memsub_extra.notebooks.batch import find_parameters, project
from memsub_extra.notebooks.cost import KNOWN, digest, work

FILES = ("quick", "tiny", "sd14-quick", "sd20-quick", "sd14", "sd20")


def cost_of(name: str) -> dict[str, Any]:
    """The cost of a run of a parameter file, for `costs.json`."""
    parameters, _ = find_parameters(name)
    peak = memory.of_run(parameters)
    return {
        "digest": digest(parameters),
        "work": work(parameters).to_dict("list"),
        "memory": None if peak is None else peak.round(2).to_dict(),
    }


def measured() -> dict[str, Any]:
    """The GPU whose measurements are in docs/figures.json, and milliseconds of a guided step on it by model."""
    gpu = load_json(project() / "docs" / "figures.json")["gpu"]
    return {"name": gpu["gpu"], "step_ms": {m: row["step_ms"] for m, row in gpu.items() if isinstance(row, dict)}}


def of_removals() -> dict[str, dict[str, float]]:
    """Gigabytes of a step of each removal on a GPU, by model, from the measurements of `tools.fullsize_removals`."""
    rows = load_json(project() / "docs" / "figures.json")["fullsize"]
    peak: dict[str, dict[str, float]] = {}
    for row in rows:
        if "thread" not in row["on"]:
            peak.setdefault(row["model"], {})[row["removal"]] = round(row["gigabytes"], 1)
    return peak


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(prog="python -m tools.costs", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *FILES], help=f"which (default: all): {', '.join(FILES)}")
    args = parser.parse_args()
    known: dict[str, Any] = {"gpu": measured(), "removals": of_removals()}
    known["runs"] = load_json(KNOWN)["runs"] if args.names else {}
    for name in args.names or FILES:
        known["runs"][name] = cost_of(name)
        print(f"{name}: {sum(known['runs'][name]['work']['steps']):,} guided steps", flush=True)
        save_json(known, KNOWN)


if __name__ == "__main__":
    main()
