"""A run: one set of parameters, the data and models they name, and a folder of results.

run = Run.from_notebook(globals())          # in the second cell of a notebook
run = Run(Parameters.load("papermill_params/tiny.yaml"))
run.data                                    # prompts, training images, splits
run.unedited, run.twin, run.controls        # models; run.model(spec): with an edit
run.grid                                    # statistics of all subsets, and the edits that they locate
run.scores                                  # generated images and their scores
"""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from memsub.io.files import save_json
from memsub.measure.metrics import Metrics, load_metrics
from memsub.measure.verdict import Judge, judge
from memsub.models import Denoiser, ModelInfo, Pipeline, as_denoiser, find_model, load_pipeline
from memsub_extra.store import Store

from ..hardware import decode_one_by_one
from .data import Data
from .grid import Grid
from .model import Model
from .parameters import Parameters
from .scores import Scores
from .specs import EditSpec

TWIN = "twin"
"""The name in tables of the control that was trained on no memorized pairs."""
OTHER = "other"
"""The name of the control that memorized other pairs, and the kind of these pairs in the ground truth."""


class Run:
    """A run. Everything is loaded on first use.

    Attributes:
        parameters: validated parameters.
        info: registry row of the model.
        folder: folder of artifacts, notebooks, findings and report.
        network_rows: number of rows of network calls so far (a guided call has two rows an image): the cost of a
            notebook, independent of the machine.
        began: clock time of its creation in seconds; the time of a notebook is counted from it.
        by_kind: tables by kind of memorized caption of the experiments so far (`memsub_extra.notebooks.kinds`).

    Raises:
        ValueError, FileNotFoundError: the model is missing. This is checked before anything is loaded.
    """

    def __init__(self, parameters: Parameters):
        self.parameters = parameters
        self.folder = Path(parameters.folder)
        self.store = Store(self.folder / "artifacts")
        self.data = Data(parameters, lambda: self.denoiser.image_shape[0])
        self.info: ModelInfo = self.data.info
        self.grid, self.scores = Grid(self), Scores(self)
        self.network_rows = 0
        self.began = time.monotonic()
        self.by_kind: dict[str, pd.DataFrame] = {}

    @classmethod
    def from_notebook(cls, variables: MutableMapping[str, Any]) -> Run:
        """The run with the parameters of a notebook (its parameters cell, and the cell that papermill injected).

        Args:
            variables: `globals()`. See `Parameters.from_notebook`.
        """
        # Progress bars of loading are no output of a notebook.
        from diffusers.utils import logging as of_diffusers
        from transformers.utils import logging as of_transformers

        of_diffusers.disable_progress_bar()
        of_transformers.disable_progress_bar()
        return cls(Parameters.from_notebook(variables))

    # --- models -------------------------------------------------------------------------------------------------

    @cached_property
    def pipe(self) -> Pipeline:
        """The unedited pipeline of the model."""
        return self._load(self.parameters.model)

    @cached_property
    def control_pipes(self) -> dict[str, Pipeline]:
        """Pipelines of the control models by name. Most models have none."""
        return {name: self._load(model) for name, model in self.info.controls.items()}

    @property
    def controls(self) -> dict[str, Model]:
        """The control models as `Model`: the twin, and others if there are any."""
        return {name: Model(name, pipe) for name, pipe in self.control_pipes.items()}

    @property
    def twin_pipe(self) -> Pipeline:
        """The pipeline of the twin, if the model has one."""
        return self.control_pipes[TWIN]

    def _load(self, name: str) -> Pipeline:
        dtype = getattr(torch, self.parameters.dtype) if self.parameters.dtype else None
        at_hand = Path(find_model(name).source).exists()
        with _without_bars() if at_hand else nullcontext():  # a download keeps its bar
            pipe = load_pipeline(name, dtype=dtype)
        if self.data.world is None:
            decode_one_by_one(pipe)

        def count(network: torch.nn.Module, args: tuple) -> None:
            self.network_rows += len(args[0])

        as_denoiser(pipe).network.register_forward_pre_hook(count)
        return pipe

    @property
    def denoiser(self) -> Denoiser:
        return as_denoiser(self.pipe)

    @property
    def unedited(self) -> Model:
        return Model("unedited", self.pipe)

    @property
    def twin(self) -> Model | None:
        """The twin as a `Model`; None if there is none."""
        return self.controls.get(TWIN) if self.info.twin else None

    def model(self, spec: EditSpec | None = None, name: str = "pruned") -> Model:
        """The model with the edit of a spec (default: that of the parameters)."""
        return Model(name, self.pipe, self.grid.edit(spec))

    # --- measures -----------------------------------------------------------------------------------------------

    @cached_property
    def metrics(self) -> Metrics:
        names = self.parameters.metrics
        metrics = load_metrics(self.parameters.model, self.denoiser.device, names.copy_, names.prompt, names.more)
        if self.info.scorers == "published":  # large networks: the batch size of sampling
            metrics.copy.batch_size = metrics.prompt.batch_size = self.parameters.sampling.batch_size
        return metrics

    @property
    def judge(self) -> Judge:
        """Whether images replicate their training images: the exact test of a world, else the copy threshold."""
        return judge(self.data.world, self.metrics.copy)

    def record(self, notebook: str, **values: Any) -> None:
        """Writes the findings of a notebook to `findings/<notebook>.json`, for README, model card and report."""
        save_json(values, self.folder / "findings" / f"{notebook}.json")


@contextmanager
def _without_bars() -> Iterator[None]:
    """Within it, diffusers and transformers show no progress bars for loading a pipeline."""
    import diffusers
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    shown = [logging for logging in libraries if logging.is_progress_bar_enabled()]
    for logging in shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging in shown:
            logging.enable_progress_bar()
