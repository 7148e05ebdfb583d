"""The lab: change an edit, and see its effect.

explore("tiny")                         # in a notebook: sliders, images, verdicts, an attack as it runs
explore(run)                            # the same with a run's artifacts
lab = Lab(run)                          # the computations, without widgets
lab.images(captions, [0, 1], lab.spec.changed(sparsity=0.2))
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memsub.models import Pipeline, find_model, model_of
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run

from .session import Lab, label

if TYPE_CHECKING:
    from .view import Explorer

__all__ = ["Lab", "explore", "label"]


def explore(model: str | Path | Pipeline | Run) -> Explorer:
    """The lab as a widget: set sparsity, contrast, layers and captions, and see the effect on images.

    Args:
        model: a run, the name of a model, or a pipeline. A name or a pipeline makes a run with the model's parameter
            file, in `runs/<name>`. For a run or a name the lab loads a separate pipeline, so that its edits affect
            nothing else. A given pipeline is edited only during computations, and restored afterwards.

    Raises:
        ImportError: ipywidgets is not installed.
        ValueError, FileNotFoundError: there is no such model.
    """
    try:
        from .view import Explorer
    except ImportError as error:
        raise ImportError(f"the lab requires ipywidgets: pip install 'memsub[notebooks]' ({error}).") from None
    if isinstance(model, Run):
        return Explorer(Lab(Run(model.parameters)))
    if isinstance(model, (str, Path)):
        return Explorer(Lab(Run(_parameters(str(model)))))
    run = Run(_parameters(model_of(model).name))
    run.pipe = model
    return Explorer(Lab(run))


def _parameters(model: str) -> Parameters:
    """The parameters in the model's file of this checkout; the defaults if there is no such file."""
    from ..notebooks.batch import find_parameters

    info, folder = find_model(model), f"runs/{Path(model).name}"
    try:
        return find_parameters(info.name)[0].model_copy(update={"folder": folder})
    except FileNotFoundError:
        return Parameters(model=model, folder=folder)
