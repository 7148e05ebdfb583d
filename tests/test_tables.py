"""The tables of the notebooks, and their cost: what they sample is what the estimate says, and what is registered
stands in them."""

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ONE_METHOD, SMALL
from memsub.measure.metrics import IMAGE_METRICS, load_metrics
from memsub.models import MODELS
from memsub_extra.mitigations import BASELINES, Baseline, detection
from memsub_extra.notebooks import batch, cost, notebook04, notebook05
from memsub_extra.notebooks import listing as notebooks
from memsub_extra.notebooks.listing import NOTEBOOKS, Notebook
from memsub_extra.notebooks.rows import OTHER, TWIN, Row, under_attack
from memsub_extra.run.parameters import Parameters


def test_every_experiment_is_in_the_estimate(run):
    table = cost.work(run.parameters)
    expected = [f"{n.name[:2]} {title}" for n in notebooks.of_model(run.info) for title in n.experiments]
    assert table["part"].tolist() == expected
    counted = table[table["part"] != "02 capture at all steps"]  # the grid of this run is captured at all
    assert (counted[["network calls", "rows", "steps"]] > 0).all(axis=None)


def test_the_estimate_of_a_model_without_a_world_needs_no_download():
    table = cost.work(Parameters.checked(SMALL | {"model": "sd14", "grid": {"memorized": 100, "subsets": 2}}))
    assert "00 replication" not in table["part"].tolist()
    assert (table.loc[table["part"] == "01 capture of the grid", "images"] == 201).all()


def test_a_gradient_costs_forward_and_backward():
    denoiser = cost.CountingDenoiser()
    conditioning, latents = denoiser.embed(["a", "b"]), torch.zeros(2, *denoiser.latent_shape)
    denoiser.predict(latents, torch.tensor(0), conditioning)
    assert denoiser.network.rows == 2
    tracked = conditioning.with_embeddings(conditioning.embeddings.requires_grad_())
    denoiser.predict(latents, torch.tensor(0), tracked).sum().backward()
    assert denoiser.network.rows == 2 + 2 * 3
    denoiser.declare(5)
    assert denoiser.network.rows == 2 + 2 * 3 + 5


def test_the_twin_and_what_is_registered_stand_in_the_tables(new_run, monkeypatch):
    """One run, as it is the tables that take the time."""

    def make(context, strength):
        return lambda prompts, *, seeds: context.sample([f"{p}, poster" for p in prompts], seeds=seeds)

    def dummy(images, prompts, references):
        return np.full(len(images), 7.0)

    monkeypatch.setitem(BASELINES, "dummy", Baseline("adds a word", "words", make, (1, 2)))
    monkeypatch.setitem(IMAGE_METRICS, "dummy", dummy)
    few = {"grid": SMALL["grid"] | {"subsets": 2, "sizes": [2]}, "sweep": {"sparsity": [0.3], "steps": [2]}}
    run = new_run(metrics={"more": ["exact_p", "dummy"]}, baselines=ONE_METHOD, **few)
    run.metrics = load_metrics("tiny", "cpu", more=run.parameters.metrics.more)
    models, baselines = notebook04.pruned_models(run, models=1), notebook05.baselines(run)
    for column, table in {"contrast": notebook04.sweep(run), "model": models, "method": baselines}.items():
        (row,) = table[table[column] == OTHER].to_dict("records")
        assert row["density"] == 0.0
        (row,) = table[table[column] == TWIN].to_dict("records")
        assert row["relative_alignment"] == row["relative_low"] == row["relative_high"] == pytest.approx(1)
        assert row["density"] == 0.0
    assert notebook04.wen(run, strengths=[]).empty
    assert notebook04.wen(run, strengths=[0.4])["strength"].tolist() == ["0.4"]
    assert set(notebook05.detection(run)[0]["model"]) == {"unedited", "pruned", TWIN, OTHER}
    attacked = notebook05.embeddings(run)
    assert {name for name, _, _ in attacked} == {"pruned", TWIN, OTHER}
    assert {name for name, target, _ in attacked if target == "never trained on"} == {"pruned"}
    assert baselines[baselines["method"] == "dummy"]["strength"].tolist() == ["1", "2"]
    assert baselines[baselines["method"] == "dummy"]["replication_rate"].notna().all()
    (chosen,) = baselines.loc[baselines["chosen"] & (baselines["method"] == "dummy"), "strength"]
    timed = notebook05.seconds(run)
    assert ("dummy", chosen) in timed.index and ("pruning", "1 %") in timed.index
    assert (timed["least"] <= timed["seconds"]).all() and (timed["seconds"] <= timed["most"]).all()
    assert (models["dummy"] == 7).all() and (baselines["dummy"] == 7).all()


def test_a_model_without_controls_has_no_such_rows(new_run, monkeypatch):
    run = new_run()
    run.info, run.control_pipes = MODELS["sd14"], {}
    assert [model.name for model in under_attack(run)] == ["unedited", "pruned"]
    assert not {TWIN, OTHER} & {row.labels["method"] for row in notebook05.method_rows(run)}


def test_a_second_result_samples_nothing(new_run, rows):
    run = new_run()
    first = notebook04.pruned_models(run)
    rows.clear()
    assert notebook04.pruned_models(run).equals(first)
    assert not rows


# --- seams ----------------------------------------------------------------------------------------------------


def test_a_baseline_that_there_is_not_is_named(new_run):
    with pytest.raises(ValueError, match=r"baselines\.strengths: unknown 'random token'; expected some of"):
        notebook05.method_rows(new_run(baselines={"strengths": {"random token": [1]}}))


def test_a_registered_detection_score_stands_in_the_tables(run, monkeypatch):
    def dummy(start, unconditional, conditional):
        return torch.ones(len(start))

    monkeypatch.setitem(detection.SCORES, "dummy", dummy)
    areas, curves = notebook05.detection(run)
    assert areas.loc[areas["score"] == "dummy", "area"].tolist() == [0.5] * len(under_attack(run))
    assert ("unedited", "dummy") in curves


def test_a_method_is_compared_nearest_above_the_level():
    methods = pd.Series(["none", "a", "a", "a", "b", "b"])
    chosen = notebook05._at_level(methods, [1.0, 0.95, 0.86, 0.5, 0.7, 0.8])
    assert chosen.tolist() == [True, False, True, False, False, True]  # b never keeps enough: where it keeps most
    assert notebook05._at_level(methods[:3], [1.0, 0.95, 0.99]).tolist() == [True, True, False]


def test_targets_are_chosen_at_random_among_those_that_are_reported(run):
    places = notebook05.at_random(run, 2)
    assert set(places) <= set(run.data.held_out(run.data.split["locate"]))
    assert places == notebook05.at_random(run, 2)


def test_a_registered_notebook_is_run(monkeypatch):
    monkeypatch.setitem(NOTEBOOKS, "99_dummy", Notebook("99_dummy"))
    assert batch.find_notebooks(MODELS["sd14"])[-1].name == "99_dummy"


def test_the_rule_that_chooses_an_edit(run):
    table = pd.DataFrame(
        {
            "contrast": ["", "empty", "empty", "empty", "ordinary", "empty"],
            "steps": [0, 2, 2, 2, 2, 1],
            "sparsity": [0.0, 0.5, 0.1, 0.3, 0.05, 0.05],
            "replication_rate": [1.0, 0.1, 0.9, 0.4, 0.0, 0.0],
            "relative_alignment": [0.95, 0.8, 0.94, 0.9, 1.0, 1.0],
        }
    )
    assert notebook04.choose(table, run.parameters)["sparsity"] == 0.3  # 0.5 replicates less, and keeps too little
    exact = table.assign(exact_rate=[1.0, 0.9, 0.7, 0.7, 0.0, 0.0])
    assert notebook04.choose(exact, run.parameters)["sparsity"] == 0.1  # the sparsest of equals
    worse = table.assign(relative_alignment=[1.0] + [0.5] * 5)
    assert notebook04.choose(worse, run.parameters)["sparsity"] == 0.1  # none keeps enough: the sparsest


def test_a_run_without_real_images_has_no_kid_and_a_control_of_its_own(new_run, monkeypatch):
    run = new_run(evaluation={"captions": 2, "models": 1, "controls": 1, "real_images": 0, "seed_captions": 2})
    plain = Row({"method": "none", "strength": ""})
    monkeypatch.setattr(notebook05, "timed_rows", lambda run, compared: [plain])
    (row,) = notebook05.distances(run).to_dict("records")
    assert row.pop("n") == row.pop("fid_n") == 0
    assert list(row) == ["kid", "kid_deviation", "fid"] and np.isnan(list(row.values())).all()
    monkeypatch.setattr(notebook05, "has_real_images", lambda run: False)
    captions, images = notebook05.unseen_pairs(run, 2)
    assert captions == run.data.prompts.of("heldout")[:2]
    assert (images == run.scores.images(run.unedited, captions, [2000, 2001])).all()


def test_fid_has_a_number_of_images_of_its_own(new_run, monkeypatch):
    counts = {"captions": 2, "models": 1, "controls": 1, "real_images": 4, "fid_images": 6, "seed_captions": 2}
    run = new_run(evaluation=counts)
    monkeypatch.setattr(notebook05, "timed_rows", lambda run, compared: [Row({"method": "none", "strength": ""})])
    table = notebook05.distances(run)
    assert table.index.tolist() == [("real images", ""), ("none", "")]
    assert table[["n", "fid_n"]].to_numpy().tolist() == [[4, 6]] * 2
    assert table.notna().all(axis=None)
