"""Writes docs/what-works.md and docs/bad-inputs.md from lists in tests: `python -m tools.what_works [--check]`.

`--check` writes nothing and compares docs/what-works.md alone; `tests/test_inputs.py` checks the rows of the other.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "what-works.md"
HEAD = """# What works on your pipeline

The table lists common changes to a pipeline, and says whether `capture`, `locate`, `pruned` and `generate` still work
after each of them. Every row is a test in `tests/test_weights.py`. `python -m tools.what_works` writes this page from
the same list.

- **the same**: the edit and the fingerprint equal those of the unchanged pipeline, and so do the sums of squares, to
  rounding.
- **of its own**: the change alters the numbers that the network computes, so the sums and the edit may differ.
  They describe the changed pipeline, and `pruned` restores its weights bit for bit.
- **refused**: `capture` raises an error. The last column quotes its message.

The method requires that each network call calls every layer once. `memsub` checks this at every call. Two kinds of
pipeline are handled specially: the parts of chunked feed-forward layers are joined, and compiled networks run
uncompiled while `memsub` captures.

| what you do | capture and edit | the sentence |
| --- | --- | --- |
"""
FOOT = """
## Samplers

Some samplers add noise at their steps (Euler ancestral, DDPM, LCM, DPM++ SDE, KDPM2 ancestral). The seed of an image
fixes this noise as well as the initial noise. `DPMSolverSDEScheduler` takes its noise from no generator, so no seed can
fix it: `memsub` refuses such samplers and names them in the error.

`union(steps=10)` takes ten steps also of Heun and KDPM2, which call the network twice a step: the squares of both calls
are added up. `tests/test_samplers.py` tests these statements.

## Memory

A batch that does not fit into memory is halved and repeated, with one warning. The results stay the same, to rounding.
"""


BAD_INPUTS = ROOT / "docs" / "bad-inputs.md"
BAD_HEAD = """# Bad inputs, and how they end

The tables list unusual or broken inputs, and what `memsub` does with each of them.

- **right**: the input is accepted. The last column shows the result.
- **refused**: the input raises an error. The last column quotes its message.

Every row is a test in `tests/test_inputs.py`. `python -m tools.what_works` runs the same list and writes the results
into this page. The tests of each module try further inputs.
"""


def bad_inputs() -> str:
    """The text of docs/bad-inputs.md; runs every row of the list."""
    sys.path.insert(0, str(ROOT / "tests"))
    from inputs import INPUTS, Box, cells, outcome
    from micro import micro_pipeline

    text, before = BAD_HEAD, Path.cwd()
    for kind, rows in INPUTS.items():
        text += f"\n## {kind}\n\n| what | ends | how |\n| --- | --- | --- |\n"
        for row in rows:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
                os.chdir(folder)
                text += cells(row, outcome(row, Box(Path(folder), micro_pipeline()))[1]) + "\n"
                os.chdir(before)
    return text


def page() -> str:
    """The text of docs/what-works.md."""
    sys.path.insert(0, str(ROOT / "tests"))
    from kinds import KINDS

    rows = []
    for kind in KINDS:
        verdict = "refused" if kind.refused else "the same" if kind.same else "of its own"
        sentence = f"… {kind.refused} …".replace("|", "\\|") if kind.refused else ""
        rows.append(f"| {kind.what} | {verdict} | {sentence} |".replace("  |", " |"))
    return HEAD + "\n".join(rows) + "\n" + FOOT


def main() -> int:
    """Writes both pages; with `--check`, returns 1 if docs/what-works.md is out of date."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page() else 1
    PAGE.write_text(page(), encoding="utf-8")
    BAD_INPUTS.write_text(bad_inputs(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
