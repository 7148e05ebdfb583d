"""What a notebook says of its run: sentences made of numbers, and claims with their margins.

    say(f"Edits leave {percent(rate)} of the pictures.")             # shown as Markdown, also in the report
    checks(run, "04_pruning", {
        "the edit replicates at most a third": at_most(rate, 1 / 3, varies=0.03),
        "the weights are restored to the bit": exactly(same),
    }, replication=rate)                                             # prints, and records for README and report

A claim *holds* if its value lies beyond the bound by three times what it varies by between machines (`varies`: measured
by `python -m tools.portability`), *fails* if it lies as far on the other side, and is *open* in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .evaluation import interval
from .runs import Run

SAFETY = 3
"""How many times what varies between machines a claim must clear its bound by."""


@dataclass(frozen=True)
class Claim:
    """A value and the side of a bound that it should lie on.

    Attributes:
        sign: 1 if the value should be at least the bound, -1 if at most; 0 for a claim of whole numbers or bits.
        varies: how much the value differs between CPU kinds, kernels and numbers of threads.
    """

    value: float
    bound: float
    sign: int
    varies: float

    @property
    def margin(self) -> float:
        """How far the value lies on the right side of the bound."""
        return self.sign * (self.value - self.bound) if self.sign else 0.0 if self.value == self.bound else -np.inf

    @property
    def verdict(self) -> str:
        if self.margin >= SAFETY * self.varies:
            return "holds"
        return "FAILS" if self.margin <= -SAFETY * self.varies else "open"

    def __str__(self) -> str:
        if not self.sign:
            return "exact"
        relation = "at least" if self.sign > 0 else "at most"
        return f"{self.value:.4g}, {relation} {self.bound:.4g}; margin {self.margin:.3g}, varies by {self.varies:.2g}"


def at_least(value: float, bound: float, *, varies: float) -> Claim:
    """The value is at least the bound."""
    return Claim(float(value), float(bound), 1, varies)


def at_most(value: float, bound: float, *, varies: float) -> Claim:
    """The value is at most the bound."""
    return Claim(float(value), float(bound), -1, varies)


def exactly(truth: object) -> Claim:
    """Something that no rounding touches: bits, counts, names."""
    return Claim(float(bool(truth)), 1.0, 0, 0.0)


def checks(run: Run, notebook: str, claims: Mapping[str, Claim], **facts: Any) -> None:
    """Prints each claim, whether it holds, and [value, bound, margin]; records claims and facts in the run's folder."""
    for told, claim in claims.items():
        print(f"{claim.verdict}: {told} [{claim}]")
    values = {
        name: {"verdict": c.verdict, "value": c.value, "bound": c.bound, "varies": c.varies}
        for name, c in claims.items()
    }
    plainly = {name: plain(value) for name, value in facts.items()}
    run.record(notebook, claims=values, facts=plainly, network_rows=run.network_rows)


def fact(value: float, *, varies: float) -> dict[str, float]:
    """A number for README or report that another machine finds again within three times `varies`."""
    return {"value": float(value), "varies": varies}


def plain(value: Any) -> Any:
    """Numbers of numpy and pandas as those of Python, for JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def say(*sentences: str) -> None:
    """Shows sentences as a paragraph of Markdown."""
    from IPython.display import Markdown, display

    display(Markdown("*Seen:* " + " ".join(sentences)))


def percent(rate: float) -> str:
    """ "26 %"; a rate that is not quite none or all keeps a digit."""
    exact = 100 * float(rate)
    return f"{exact:.0f} %" if exact in (0.0, 100.0) or 1 <= exact <= 99 else f"{exact:.1f} %"


def share(value: float, low: float, high: float, n: float) -> str:
    """ "26 % (14 to 43 %, n = 34)": a rate with its 95 % interval."""
    return f"{percent(value)} ({100 * low:.0f} to {100 * high:.0f} %, n = {int(n)})"


def rate(found: Mapping[str, Any], name: str = "replication") -> str:
    """`share` of a rate in what `memsub.summary` returns."""
    return share(found[f"{name}_rate"], found[f"{name}_low"], found[f"{name}_high"], found["n"])


def counted(hits: Sequence[bool] | np.ndarray | pd.Series) -> str:
    """`share` of hits, with Wilson's interval."""
    count, n = int(np.sum(hits)), len(hits)
    return share(count / n, *interval(count, n), n)


def compared(a: float, b: float, margin: float, more: str = "more", less: str = "less", same: str = "as much") -> str:
    """A word for how a compares with b: `more` or `less` if they differ by at least the share `margin` of b."""
    if abs(a - b) < margin * abs(b):
        return same
    return more if a > b else less
