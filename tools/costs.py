"""What runs of the shipped parameter files cost, for `memsub check`: `python -m tools.costs`, two minutes of one core.

It counts the calls of every experiment anew (`memsub_extra.notebooks.cost.work`) and writes `costs.json` beside it.
"""

from __future__ import annotations

from memsub.io.files import save_json
from memsub_extra.notebooks.batch import find_parameters
from memsub_extra.notebooks.cost import KNOWN, digest, work

FILES = ("quick", "tiny", "sd14", "sd20")


def main() -> None:
    """Writes the file."""
    known = {}
    for name in FILES:
        parameters, _ = find_parameters(name)
        known[digest(parameters)] = work(parameters).to_dict("list")
        print(f"{name}: {sum(known[digest(parameters)]['steps']):,} guided steps", flush=True)
    save_json(known, KNOWN)


if __name__ == "__main__":
    main()
