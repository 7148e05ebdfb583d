"""docs/what-works.md and docs/bad-inputs.md, made from what the tests try: `python -m tools.what_works [--check]`.

`--check` compares the first alone; `tests/test_inputs.py` tries the rows of the second.
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

What people do to a pipeline before they bring it, and what becomes of `capture`, `locate`, `pruned` and `generate`.
Every row is a test (`tests/test_weights.py`), and this page is written from them: `python -m tools.what_works`.

"The same" means the sums, the edit and the fingerprint of the plain pipeline. "Of its own" means that numbers change,
as they must: capture and edit are those of the pipeline as it is now, and `pruned` restores its weights bit for bit.

One network call calls every layer once. `memsub` checks it at every call, joins the parts of chunked feed-forward
layers (rows one after the other, tokens added up), and runs compiled networks as they were written while it looks.

| what you do | capture and edit | the sentence |
| --- | --- | --- |
"""
FOOT = """
Samplers: the seed of an image also fixes the noise that a sampler draws at its steps (Euler ancestral, DDPM, LCM, DPM++
SDE, KDPM2 ancestral, ...), and samplers that draw from no generator (`DPMSolverSDEScheduler`) are refused by name.
"First ten steps" are steps: of Heun and KDPM2, which call the network twice a step, the squares of both calls add up
(`tests/test_samplers.py`).

Where memory ends, a batch is halved and repeated, with one warning; results stay the same to rounding.
"""


BAD_INPUTS = ROOT / "docs" / "bad-inputs.md"
BAD_HEAD = """# Bad inputs, and how they end

Things that nobody should bring and somebody will, beside those that the tests of each part name. "Right" means that it
works, and what came out is shown; all else ends with one sentence, before anything expensive. Every row is a test
(`tests/test_inputs.py`), and this page is written from what came out: `python -m tools.what_works`.
"""


def bad_inputs() -> str:
    """The text of the page of bad inputs: every row is tried."""
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
    """The page's text."""
    sys.path.insert(0, str(ROOT / "tests"))
    from kinds import KINDS

    rows = []
    for kind in KINDS:
        verdict = "refused" if kind.refused else "the same" if kind.same else "of its own"
        sentence = f"… {kind.refused} …".replace("|", "\\|") if kind.refused else ""
        rows.append(f"| {kind.what} | {verdict} | {sentence} |".replace("  |", " |"))
    return HEAD + "\n".join(rows) + "\n" + FOOT


def main() -> int:
    """Writes the page, or says whether it is what it would write."""
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page() else 1
    PAGE.write_text(page(), encoding="utf-8")
    BAD_INPUTS.write_text(bad_inputs(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
