"""docs/what-works.md, made from what the tests try: `python -m tools.what_works [--check]`."""

from __future__ import annotations

import sys
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
