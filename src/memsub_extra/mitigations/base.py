"""Baselines: mitigations at inference time, for each prompt, that do not change the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memsub.models import Pipeline, Sample, as_denoiser


@dataclass(frozen=True, eq=False)
class Context:
    """The inputs of a baseline.

    Attributes:
        pipe: the unedited model.
        sample: plain sampling with all options except prompts and seeds; a baseline calls it with changed prompts or
            embeddings.
        ordinary: captions that are not memorized.
        steps: number of sampling steps; it determines the first step of the schedule.
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
    """A mitigation with a strength.

    Attributes:
        changes: what it changes, for the table of methods.
        strength: what its strength means, with its unit.
        make: context and strength to a `Sample`.
        strengths: default strengths of the sweep, mildest first.
        label: formats a strength as text.
    """

    changes: str
    strength: str
    make: Callable[[Context, Any], Sample]
    strengths: tuple = ()
    label: Callable[[Any], str] = "{:g}".format


# --- cost estimates ---------------------------------------------------------------------------------------------------

GRADIENT_ROWS = 3
"""Cost of a row of a network call with a gradient (forward and backward), in rows without gradient."""


def declare(pipe: Pipeline, rows: int) -> None:
    """Declares to a cost estimate the largest number of rows of a loop that may end early.

    The estimate runs the loop on a denoiser that only counts, where it ends at once. Other denoisers ignore this call.

    Args:
        rows: rows in addition to those counted; a row with a gradient counts as `GRADIENT_ROWS`.
    """
    count = getattr(as_denoiser(pipe), "declare", None)
    if count is not None:
        count(rows)
