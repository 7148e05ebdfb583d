"""The findings of a notebook: claims with verdicts, and sentences with numbers.

    checks(run, "04_pruning", {
        "the edit replicates at most a third": at_most(hits(scored["replicated"]), 1 / 3, varies=0.03),
        "it keeps 80 % of the alignment": at_least(kept, 0.8, varies=0.01, interval=ratio_interval(a, b, paired=True)),
        "capture agrees with the sum by hand": at_most(apart, 1e-3, varies=1e-4, interval=None),
        "the weights are restored bit for bit": exactly(same),
    }, replication=fact(rate, varies=0.03))                          # prints and records them
    result("{rate:.0%} of {n} images replicate", rate=rate, n=n)     # shown as Markdown, also in the report

A claim says that a value lies on one side of a bound. It *holds* if the whole 95 % interval lies on that side, and the
distance of the value from the bound is at least three times its variation between machines (`varies`, measured by
`python -m tools.portability`). It *fails* if both are true for the other side. Otherwise it is *inconclusive*, and
requires more prompts or images. Intervals of means, differences and ratios are in `memsub_extra.notebooks.intervals`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import numpy as np
import pandas as pd

from memsub.io.files import as_written, load_json, printable
from memsub.measure.intervals import interval as wilson_interval
from memsub_extra.run.run import Run

from .intervals import Span
from .kinds import note_sets, notes_of
from .took import note_took

SAFETY = 3
"""A claim must clear its bound by this multiple of the variation between machines."""
VERDICTS = ("holds", "fails", "inconclusive")
"""The verdicts, in the order of counts."""
Hits = tuple[int, int]
"""Number of successes, and of trials."""


@dataclass(frozen=True)
class Claim:
    """A value, its 95 % interval, and the side of a bound on which it should lie.

    Attributes:
        sign: 1 if the value should be at least the bound, -1 if at most; 0 for a claim of whole numbers or bits.
        varies: variation of the value between kinds of CPU, kernels and numbers of threads.
        interval: ends of the 95 % interval; None if nothing was sampled, so that there is no sampling error.
    """

    value: float
    bound: float
    sign: int
    varies: float
    interval: tuple[float, float] | None = None

    @property
    def relation(self) -> str:
        return {1: "at least", -1: "at most", 0: "exact"}[self.sign]

    @property
    def margin(self) -> float:
        """Distance of the value from the bound; negative on the wrong side."""
        return self._beyond(self.value)

    def _beyond(self, value: float) -> float:
        """Distance of a value from the bound; negative on the wrong side."""
        if self.sign:
            return self.sign * (value - self.bound)
        return 0.0 if value == self.bound else -np.inf

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`; a value or an interval that is not a number is inconclusive."""
        ends = [self._beyond(end) for end in self.interval or (self.value, self.value)]
        between_machines = SAFETY * self.varies
        if all(end >= 0 for end in ends) and self.margin >= between_machines:
            return "holds"
        if all(end < 0 for end in ends) and self.margin <= -between_machines:
            return "fails"
        return "inconclusive"

    def __str__(self) -> str:
        if not self.sign:
            return "exact"
        sampled = f"; 95 % interval {self.interval[0]:.4g} to {self.interval[1]:.4g}" if self.interval else ""
        return (
            f"{self.value:.4g}, {self.relation} {self.bound:.4g}{sampled}; "
            f"margin {self.margin:.3g}, varies by {self.varies:.2g}"
        )


Sampled = tuple[float, float] | Literal["Wilson"] | None
"""A 95 % interval; "Wilson": of hits; None: nothing was sampled."""


def at_least(value: float | Hits | Span, bound: float, *, varies: float, interval: Sampled = "Wilson") -> Claim:
    """The value is at least the bound.

    Args:
        value: a number, (successes, n) of a rate, or a number with its interval.
        varies: variation of the value between machines.
        interval: the 95 % interval of the value. Default for (successes, n): Wilson's. None: nothing was sampled, and
            the value is exact for these weights.

    Raises:
        ValueError: a number without its interval.
    """
    return _claim(value, bound, 1, varies, interval)


def at_most(value: float | Hits | Span, bound: float, *, varies: float, interval: Sampled = "Wilson") -> Claim:
    """The value is at most the bound; arguments as in `at_least`."""
    return _claim(value, bound, -1, varies, interval)


def exactly(truth: object) -> Claim:
    """A claim without rounding or sampling error: on bits, counts, names."""
    return Claim(float(bool(truth)), 1.0, 0, 0.0)


def _claim(value: float | Hits | Span, bound: float, sign: int, varies: float, interval: Sampled) -> Claim:
    if isinstance(value, Span):
        interval = (value.low, value.high)
        value = value.value
    elif isinstance(value, tuple):
        successes, n = value
        value = successes / n if n else np.nan
        if interval == "Wilson":
            interval = wilson_interval(successes, n) if n else (np.nan, np.nan)
    elif interval == "Wilson":
        raise ValueError(
            f"a claim of the number {value:.4g} without its interval: give interval=(low, high), hits as (successes, "
            "n), or interval=None if nothing was sampled."
        )
    ends = None if interval is None else (float(interval[0]), float(interval[1]))
    return Claim(float(value), float(bound), sign, float(varies), ends)


def hits(outcomes: Sequence[bool] | np.ndarray | pd.Series) -> Hits:
    """(successes, n) of independent outcomes: one image a prompt, not several seeds of a prompt."""
    return int(np.sum(outcomes)), len(outcomes)


def checks(run: Run, notebook: str, claims: Mapping[str, Claim], **facts: Any) -> None:
    """Prints each claim with its verdict, then counts them; records claims and facts in the run's folder."""
    for sentence, claim in claims.items():
        print(f"{claim.verdict}: {sentence} [{claim}]")
    print(tally(claim.verdict for claim in claims.values()))
    note_sets(run, notebook)
    run.record(
        notebook,
        claims={sentence: _recorded(claim) for sentence, claim in claims.items()},
        facts={name: plain(value) for name, value in facts.items()},
        network_rows=run.network_rows,
        **({"by_kind": _by_kind(run)} if run.by_kind else {}),
    )
    note_took(run, notebook)


def _by_kind(run: Run) -> dict[str, Any]:
    """The noted tables by kind of a notebook, with their limitations; NaN becomes None."""
    tables = {title: json.loads(table.to_json(orient="split", index=False)) for title, table in run.by_kind.items()}
    return {"notes": notes_of(run), "tables": tables}


def read_findings(path: Path) -> dict[str, Any]:
    """Reads what `checks` recorded; raises FileNotFoundError, or ValueError for an invalid file."""
    findings = load_json(path)
    with as_written(path, "record of findings"):
        for claim in findings["claims"].values():
            known = claim["verdict"] in VERDICTS and claim["relation"] in ("at least", "at most", "exact")
            numbers = [claim[name] for name in ("value", "bound", "low", "high")]
            if not known or any(not isinstance(n, (int, float)) for n in numbers if n is not None):
                raise ValueError("a claim of it is none; execute its notebook again.")
        findings["facts"].items()
        by_kind = findings.get("by_kind", {"notes": [], "tables": {}})
        for table in by_kind["tables"].values():
            if any(len(row) != len(table["columns"]) for row in table["data"]):
                raise ValueError("a table by kind of it is none; execute its notebook again.")
        "".join(by_kind["notes"])
    return findings


def digest_of(path: Path) -> str:
    """Digest of a file of findings; "" if there is none. Executed notebooks store the digest of their findings."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _recorded(claim: Claim) -> dict[str, Any]:
    """A claim for JSON; `low` and `high` are None if nothing was sampled."""
    low, high = claim.interval or (None, None)
    return {
        "verdict": claim.verdict,
        "relation": claim.relation,
        "value": claim.value,
        "low": low,
        "high": high,
        "bound": claim.bound,
        "varies": claim.varies,
    }


def tally(verdicts: Iterable[str]) -> str:
    """ "holds 5, fails 0, inconclusive 1"."""
    counts = Counter(verdicts)
    return ", ".join(f"{verdict} {counts[verdict]}" for verdict in VERDICTS)


def fact(value: float | Span, *, varies: float, n: float | None = None) -> dict[str, float]:
    """A number for README or report that other machines reproduce within three times `varies`.

    Args:
        value: a number, or a number with its interval; `n` then is the number of units.
    """
    of_units = {} if n is None else {"n": float(n)}
    if isinstance(value, Span):
        return {"value": value.value, "low": value.low, "high": value.high, "varies": varies} | of_units
    return {"value": float(value), "varies": varies} | of_units


def plain(value: Any) -> Any:
    """Converts numbers of numpy and pandas to those of Python, for JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def result(template: str, **values: Any) -> None:
    """Shows one line of Markdown, also in the report: `result("{rate:.0%} of {n} images replicate", rate=r, n=n)`.

    A template contains only names of values and their formats. Text values are escaped: they make no formula, tag or
    link.

    Raises:
        ValueError: a field of the template is no plain name, or a value is not used in it.
    """
    fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    if not all(name.isidentifier() for name in fields) or fields != set(values):
        raise ValueError(f"the template names {sorted(fields)}, the values are {sorted(values)}: each needs the other.")
    from IPython.display import Markdown, display

    text = printable(" ".join(template.format(**values).split())).replace("$", r"\$").replace("<", r"\<")
    text = text.replace("](", r"]\(")
    display(Markdown(f"*Here:* {text}"))


def percent(rate: float) -> str:
    """ "26 %"; a rate below 1 % or above 99 % keeps a decimal, except 0 and 100 %."""
    exact = 100 * float(rate)
    return f"{exact:.0f} %" if exact in (0.0, 100.0) or 1 <= exact <= 99 else f"{exact:.1f} %"


def share(value: float, low: float, high: float, n: float) -> str:
    """ "26 % (14 to 43 %, n = 34)": a rate with its 95 % interval."""
    return f"{percent(value)} ({100 * low:.0f} to {100 * high:.0f} %, n = {int(n)})"


def spanned(outcomes: Sequence[bool] | np.ndarray | pd.Series) -> Span:
    """The share of outcomes with Wilson's interval."""
    successes, n = hits(outcomes)
    return Span(successes / n, *wilson_interval(successes, n))


def counted(outcomes: Sequence[bool] | np.ndarray | pd.Series) -> str:
    """`share` of outcomes, with Wilson's interval."""
    return share(*spanned(outcomes), len(outcomes))
