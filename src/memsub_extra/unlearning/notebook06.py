"""Notebook 06: can somebody who holds the weights tell the edited model from one that never saw the images?

work(run)                                   # iterations of the attack until an image is sampled, by model
recognition(run)                            # how well memorized images are denoised, by model
revival(run)                                # zeros that are filled: what comes back?
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from memsub.models import as_denoiser, fingerprint
from memsub.pruning import Edit
from memsub_extra.run.model import Model
from memsub_extra.run.run import Run
from memsub_extra.store import Kind

from ..notebooks import notebook01
from ..notebooks.kinds import listed, note_evaluated, note_outcomes
from ..notebooks.listing import Notebook
from ..notebooks.notebook05 import memorized_pairs, unseen_pairs
from ..notebooks.rows import gradient_rows
from . import shipped
from .attack_work import attack_work
from .pairs import FORGET_SET, UNSEEN, Pairs
from .recognition import denoising_error
from .revival import imputed, revived

ATTACK_WORK = Kind("attack-work")
RECOGNITION = Kind("recognition")
IMPUTED = Kind("imputed")
FILLED = ("imputed", "revived")
"""What is put in the place of zeros: completed values, or their trusted signs with the largest magnitudes."""


def models(run: Run) -> list[Model]:
    """The unedited model, edited ones, and the twin where there is one.

    The edits are those of the parameter `deletion.edits`; else those that ship with the model (of its weights in
    float32); else that of notebook 04.
    """
    files: dict[str, Any] = dict(run.parameters.deletion.edits)
    if not files and shipped.belongs_to(run.info) and run.parameters.dtype in (None, "float32"):
        files = dict(shipped.edits())
    edited = [Model(name, run.pipe, _edit(run, file, place)) for place, (name, file) in enumerate(files.items())]
    return [run.unedited, *(edited or [run.model()]), *([run.twin] if run.twin else [])]


def _edit(run: Run, file: str | Path, place: int) -> Edit:
    """The edit in a file. A model that only counts (`notebooks.cost`) gets one of its own, of one weight."""
    if not hasattr(run.denoiser, "declare"):
        return Edit.load(file)
    name, layer = next(iter(run.denoiser.layers().items()))
    return Edit({name: torch.tensor([place])}, {name: tuple(layer.weight.shape)}, {"model": fingerprint(run.pipe)})


def removed(run: Run) -> Pairs:
    """The memorized pairs under attack: as many as the parameter `deletion.targets` says."""
    places = _attacked_places(run)
    return Pairs(*memorized_pairs(run, places), [run.data.memorized.wordings[place] for place in places])


def _attacked_places(run: Run) -> list[int]:
    return list(run.data.references)[: run.parameters.deletion.targets]


def work(run: Run) -> pd.DataFrame:
    """Work of the embedding attack until an image is sampled: `attack_work`, columns model and pairs more.

    Of memorized images (`pairs` is `FORGET_SET`) and of images the model was never trained on (`UNSEEN`), each from
    its caption.
    """
    p, memorized = run.parameters, removed(run)
    subjects = {FORGET_SET: memorized, UNSEEN: Pairs(*unseen_pairs(run, len(memorized)))}
    options: dict[str, Any] = {"iterations": p.deletion.iterations, "noises": p.deletion.noises}
    options["own_noise"] = p.evaluation.own_noise
    options["sampling"] = p.sampling.model_dump(exclude={"batch_size"})
    tables = []
    for model in models(run):
        for kind, pairs in subjects.items():
            make = partial(_attacked, run, model, pairs, options)
            content = {"model": model, "captions": pairs.captions, "images": pairs.images, "judge": run.judge}
            table = run.store.table(ATTACK_WORK, make, **content, **options)
            tables.append(table.assign(model=model.name, pairs=kind))
            if kind == FORGET_SET:
                sampled = dict(zip(_attacked_places(run), table["iterations"] < np.inf, strict=True))
                note_outcomes(run, "attack work", {"model": model.name}, sampled, "sampled", list(sampled))
    return pd.concat(tables, ignore_index=True)


def _attacked(run: Run, model: Model, pairs: Pairs, options: dict[str, Any]) -> pd.DataFrame:
    denoiser = as_denoiser(model.pipe)
    start = denoiser.embed(pairs.captions)
    rows = gradient_rows(denoiser, run.parameters.sampling.batch_size)
    with model.applied() as pipe:
        return attack_work(pipe, pairs, start, run.judge, batch_size=rows, **options)


def recognition(run: Run) -> pd.DataFrame:
    """How well memorized images are denoised (`denoising_error`): columns model, given, t, error.

    Given their captions, the same content in other words, and that for the mirrored image, which no model has seen.
    Where the prompt list lacks other wordings, the last two are left out, with a warning.
    """
    pairs, tables = removed(run), []
    questions = [("its caption", pairs.captions, False)]
    try:
        others = pairs.other_wording("recognition")
        questions += [("other wording", others, False), ("other wording, mirrored", others, True)]
    except ValueError as error:
        warnings.warn(f"{error} What it would show is left out.", stacklevel=2)
    for model in models(run):
        for given, captions, mirrored in questions:
            make = partial(_recognized, model, pairs, captions, mirrored)
            content = {"model": model, "captions": captions, "images": pairs.images, "mirrored": mirrored}
            table = run.store.table(RECOGNITION, make, **content)
            tables.append(table.assign(model=model.name, given=given))
    return pd.concat(tables, ignore_index=True)


def _recognized(model: Model, pairs: Pairs, captions: Sequence[str], mirrored: bool) -> pd.DataFrame:
    with model.applied() as pipe:
        return denoising_error(pipe, pairs.images, as_denoiser(pipe).embed(captions), mirrored=mirrored)


def revival(run: Run) -> pd.DataFrame:
    """METHOD's edit, and the same with other values where it has zeros (`imputed`, `revived`): what comes back?

    One row a model, as `Scores.evaluate` gives it.
    """
    located_on, pruned = run.data.split["locate"], run.model()
    places = run.data.held_out(located_on)[: run.parameters.evaluation.captions]
    assert pruned.edit is not None  # for the type checker: a model of a spec has one
    make = partial(imputed, run.pipe, pruned.edit)
    completed = run.store.get(IMPUTED, Edit, make, model=run.unedited, edit=pruned.edit.positions)
    filled = dict(zip(FILLED, (completed, revived(run.pipe, completed)), strict=True))
    compared = [run.unedited, pruned]
    compared += [Model(f"pruned, zeros {name}", run.pipe, edit) for name, edit in filled.items()]
    rows = []
    for model in compared:
        note_evaluated(run, "revival", {"model": model.name}, model, places, listed(run, located_on))
        rows.append({"model": model.name} | run.scores.evaluate(model, places))
    return pd.DataFrame(rows)


NOTEBOOK = Notebook(
    "06_deletion",
    experiments={"attack work": work, "recognition": recognition, "revival of zeros": revival},
    needs=(notebook01.NAME,),
)
