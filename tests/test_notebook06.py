"""What notebook 06 computes: attack work beside the twin, price, and zeros that are filled."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from memsub.measure.verdict import Judge, exact_in
from memsub.models import StableDiffusionDenoiser, fingerprint
from memsub_extra.mitigations.base import GRADIENT_ROWS
from memsub_extra.notebooks import cost, notebook01
from memsub_extra.notebooks.listing import NOTEBOOKS
from memsub_extra.run.run import Run
from memsub_extra.unlearning import notebook06, shipped
from memsub_extra.unlearning.pairs import FORGET_SET, UNSEEN


@pytest.fixture
def rows(monkeypatch):
    """Rows of network calls."""
    counts = []
    plain = StableDiffusionDenoiser.predict, StableDiffusionDenoiser.sample

    def predict(self, latents, t, conditioning):
        counts.append(len(latents))
        return plain[0](self, latents, t, conditioning)

    def sample(self, prompts, latents, steps, guidance_scale, *options):
        counts.append(2 * len(latents) * steps)
        return plain[1](self, prompts, latents, steps, guidance_scale, *options)

    monkeypatch.setattr(StableDiffusionDenoiser, "predict", predict)
    monkeypatch.setattr(StableDiffusionDenoiser, "sample", sample)
    return counts


@pytest.fixture
def without_shipped(monkeypatch):
    """What ships is of the embedded model's weights, and these runs have the micro pipeline's."""
    monkeypatch.setattr(shipped, "belongs_to", lambda info: False)


@pytest.fixture
def estimated(monkeypatch):
    """Rows of network calls by experiment, as the estimate has them; of this notebook and of the one it reads."""
    monkeypatch.setattr(cost, "of_model", lambda info: [notebook01.NOTEBOOK, notebook06.NOTEBOOK])
    return lambda parameters: cost.work(parameters).set_index("part")["rows"]


def names(run):
    return [model.name for model in notebook06.models(run)]


def test_it_is_listed():
    assert NOTEBOOKS["06_deletion"] is notebook06.NOTEBOOK


def test_the_edits_that_ship_are_attacked_in_float32(new_run):
    assert names(new_run()) == ["unedited", *shipped.edits(), "twin", "other"]
    assert names(new_run(dtype="float32")) == ["unedited", *shipped.edits(), "twin", "other"]
    assert names(new_run(dtype="bfloat16")) == ["unedited", "pruned", "twin", "other"]


def test_edits_made_elsewhere_are_attacked(new_run, tmp_path):
    run = new_run()
    run.grid.edit().save(tmp_path / "edit.safetensors")
    files = {"mine": str(tmp_path / "edit.safetensors")}
    other = new_run("other", deletion={"targets": 2, "iterations": [0, 1], "noises": 1, "edits": files})
    assert set(notebook06.work(other)["model"]) == {"unedited", "mine", "twin", "other"}


def test_attack_work_of_every_model_and_kind_of_pairs(new_run, rows, estimated, without_shipped):
    run = new_run()
    run.grid.edit()
    estimate, p, before = estimated(run.parameters), run.parameters.deletion, fingerprint(run.pipe)
    rows.clear()
    work = notebook06.work(run)
    models = names(run)
    assert models == ["unedited", "pruned", "twin", "other"]
    assert work.groupby(["model", "pairs"]).size().to_dict() == {
        (model, pairs): 2 for model in models for pairs in (FORGET_SET, UNSEEN)
    }
    assert work["last"].eq(2).all()
    assert fingerprint(run.pipe) == before
    # Random weights replicate nothing: every attack goes to its end, and its cost is the estimate.
    assert np.isinf(work["iterations"]).all()
    gradients = 2 * len(models) * p.targets * p.noises * p.iterations[-1]
    assert sum(rows) == estimate["06 attack work"] - (GRADIENT_ROWS - 1) * gradients
    rows.clear()
    assert notebook06.work(run).equals(work)
    assert not rows, "it is computed once"


def test_an_image_that_is_sampled_is_attacked_no_further(new_run, rows, estimated, without_shipped, monkeypatch):
    always = Judge("exact", "always", lambda images, prompts, references: np.ones(len(images), bool), exact_in)
    monkeypatch.setattr(Run, "judge", always)
    run = new_run()
    run.grid.edit()
    rows.clear()
    assert notebook06.work(run)["iterations"].eq(0).all()
    assert 0 < sum(rows) < estimated(run.parameters)["06 attack work"] / 2


def test_every_edit_of_a_file_counts_in_the_estimate(new_run, estimated, without_shipped, tmp_path):
    """Edits of the model itself do not fit a model that only counts."""
    edit = new_run().grid.edit()
    files = {name: str(tmp_path / f"{name}.safetensors") for name in ("one", "two")}
    for file in files.values():
        edit.save(Path(file))

    def attack_work(edits):
        deletion = {"targets": 2, "iterations": [0, 2], "noises": 2, "edits": edits}
        return estimated(new_run(deletion=deletion).parameters)["06 attack work"]

    one, several = attack_work(dict([*files.items()][:1])), attack_work(files)
    assert several / one == (3 + len(files)) / 4  # beside the unedited model and both controls


def attacks_of(parts):
    """Work by model and kind of pairs: iterations of each target."""
    rows = [
        {"model": model, "pairs": kind, "target": i, "iterations": at, "last": 100, "start": "its caption"}
        for (model, kind), needed in parts.items()
        for i, at in enumerate(needed)
    ]
    return pd.DataFrame(rows)


def test_an_attack_is_read_beside_the_twin():
    never, always = [np.inf] * 40, [5.0] * 40
    parts = {("twin", FORGET_SET): never, ("twin", UNSEEN): never, ("a", FORGET_SET): always, ("a", UNSEEN): never}
    work = attacks_of(parts | {("b", FORGET_SET): never, ("b", UNSEEN): never})
    table = notebook06.attack_table(work, "twin")
    assert table["memorized"].tolist() == [0, 1, 0]
    assert table.loc["a", "memorized_low"] > 0.9 and table.loc["twin", "memorized_high"] > 0, "no interval is a point"
    assert table["verdict"].tolist()[1:] == ["different", "inconclusive"], "of 40 pairs none decides five points"
    assert table.loc["a", "log_rank"] < 1e-6 < table.loc["b", "log_rank"] == 1
    alone = notebook06.attack_table(work[work["model"] == "a"], None)
    assert alone.loc["a", "log_rank"] < 1e-6, "without a twin unseen images are the control"
    assert "verdict" not in alone
    both = notebook06.at_last(work[work["pairs"] == FORGET_SET].query("model != 'twin'"))
    assert (both["value"], both["n"]) == (0.5, 40), "two models, and targets that they share"


def test_the_price_is_a_share_of_training_and_the_twin_is_that_training(monkeypatch):
    costs = {"a": {"minutes": 5.0, "threads": 2, "bytes": 3e6, "name": "a"}}
    monkeypatch.setattr(shipped, "costs", lambda: costs)
    monkeypatch.setattr(shipped, "training_minutes", lambda: 40.0)
    table = notebook06.priced(pd.DataFrame({"alignment": [1.0, 0.9, 0.8]}, index=["twin", "a", "unmeasured"]))
    assert table["compute"].to_dict() == {"twin": 100.0, "a": 25.0}
    assert table.loc["a", "megabytes"] == 3
    monkeypatch.setattr(shipped, "training_minutes", lambda: np.nan)
    assert notebook06.priced(pd.DataFrame({"alignment": [1.0]}, index=["twin"])).empty


def test_ordinary_pairs_have_training_images_or_what_the_model_samples(new_run):
    run = new_run()
    pairs = notebook06.ordinary_pairs(run, 2)
    assert (pairs.images == run.data.prompts.images("ordinary", 0, 2)).all()
    run.data.prompts = replace(run.data.prompts, table=run.data.prompts.table.drop(columns="image"))
    sampled = notebook06.ordinary_pairs(run, 2)
    assert sampled.captions == pairs.captions
    assert not (sampled.images == pairs.images).all()


def test_zeros_that_are_filled_are_evaluated_beside_the_pruned_model(new_run, rows, estimated):
    run = new_run()
    edit = run.grid.edit()
    rows.clear()
    table = notebook06.revival(run).set_index("model")
    assert list(table.index) == ["unedited", "pruned", "pruned, zeros imputed", "pruned, zeros revived"]
    assert table["density"].tolist() == pytest.approx([0.0, edit.density, edit.density, edit.density])
    assert (table["relative_low"] <= table["relative_high"]).all()
    assert sum(rows) == estimated(run.parameters)["06 revival of zeros"]
    again = run.grid.edit()
    assert not any(values.any() for values in again.values.values()), "METHOD's edit itself is one of zeros"
