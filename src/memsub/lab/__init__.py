"""The lab: change an edit, see what it does.

memsub.explore("tiny")                  # in a notebook: sliders, pictures, verdicts, an attack as it runs
memsub.explore(run)                     # the same on a run's artifacts
lab = memsub.Lab(run)                   # what it computes, without widgets
lab.pictures(captions, [0, 1], Setting(sparsity=0.2))
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..denoiser import Pipeline
from ..models import find_model, model_of
from ..parameters import Parameters
from ..runs import Run
from .session import Lab, Setting

if TYPE_CHECKING:
    from .view import Explorer

__all__ = ["Lab", "Setting", "explore"]


def explore(model: str | Path | Pipeline | Run) -> Explorer:
    """The lab as a widget: sparsity, contrast, layers and captions to set, and what the edit does to the pictures.

    Args:
        model: a run; or the name of a model, or a pipeline, which then is a run of the model's own parameter file, in
            `runs/<name>`. Of a run or a name the lab loads a pipeline of its own, so that nobody else sees its edits;
            a pipeline that is given is edited while something is computed, and restored.

    Raises:
        ImportError: ipywidgets is not installed.
        ValueError, FileNotFoundError: there is no such model.
    """
    try:
        from .view import Explorer
    except ImportError as error:
        raise ImportError(f"the lab needs ipywidgets: pip install 'memsub[notebooks]' ({error}).") from None
    if isinstance(model, Run):
        return Explorer(Lab(Run(model.parameters)))
    if isinstance(model, (str, Path)):
        return Explorer(Lab(Run(_parameters(str(model)))))
    run = Run(_parameters(model_of(model).name))
    run.pipe = model
    return Explorer(Lab(run))


def _parameters(model: str) -> Parameters:
    """Of the model's own file, where it has one and this is a checkout; else the defaults."""
    from ..batch import find_parameters

    found, folder = find_model(model), f"runs/{Path(model).name}"
    try:
        return find_parameters(found.name)[0].model_copy(update={"folder": folder})
    except FileNotFoundError:
        return Parameters(model=model, folder=folder)
