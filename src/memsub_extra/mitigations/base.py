"""What a baseline is: something done at inference time, for each prompt, that leaves the weights alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memsub.models import Pipeline, Sample, as_denoiser


@dataclass(frozen=True, eq=False)
class Context:
    """What a baseline may use.

    Attributes:
        pipe: the unedited model.
        sample: plain sampling with everything but prompts and seeds filled in; a baseline hands it what it made of
            them.
        ordinary: captions that are not memorized.
        steps: of the schedule whose first step a baseline may look at.
        batch_size: prompts at a time; `gradient_rows`: rows of a network call that keeps its activations for a
            gradient.
    """

    pipe: Pipeline
    sample: Sample
    ordinary: list[str]
    steps: int
    batch_size: int
    gradient_rows: int


@dataclass(frozen=True)
class Baseline:
    """One way to keep a model from replicating, at a strength.

    Attributes:
        changes: what it changes, for the table of methods.
        strength: what its strength is, with its unit.
        make: context and strength to a `Sample`.
        strengths: the sweep, mildest first, unless the parameters give another.
        label: a strength as text.
    """

    changes: str
    strength: str
    make: Callable[[Context, Any], Sample]
    strengths: tuple = ()
    label: Callable[[Any], str] = "{:g}".format


# --- cost estimates ---------------------------------------------------------------------------------------------------

GRADIENT_ROWS = 3
"""What a row of a network call costs whose gradient is asked for, in rows: forward and backward."""


def declare(pipe: Pipeline, rows: int) -> None:
    """For loops that end early: tells a cost estimate the most rows of network calls that the loop could make.

    The estimate runs the loop on a denoiser that only counts, where it ends at once. Other denoisers ignore it.

    Args:
        rows: beside those counted; one whose gradient is asked for counts as `GRADIENT_ROWS`.
    """
    count = getattr(as_denoiser(pipe), "declare", None)
    if count is not None:
        count(rows)
