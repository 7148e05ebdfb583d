"""Experiments: what they sample is what they declare, and what is registered stands in their tables."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ONE_METHOD
from memsub import baselines, batch, detection, estimate, experiments, metrics
from memsub.baselines import Baseline
from memsub.denoiser import StableDiffusionDenoiser
from memsub.experiments import EXPERIMENTS
from memsub.models import MODELS
from memsub.parameters import Parameters
from memsub.testbed import widths


@pytest.fixture
def sampled(monkeypatch):
    """Images times steps that the model samples."""
    found = []
    plain = StableDiffusionDenoiser.sample

    def counted(self, prompts, latents, steps, *options):
        found.append(len(latents) * steps)
        return plain(self, prompts, latents, steps, *options)

    monkeypatch.setattr(StableDiffusionDenoiser, "sample", counted)
    return found


SAMPLING = (
    "capture",
    "sweep",
    "variants",
    "models",
    "seeds",
    "distances",
    "baselines",
    "seconds",
    "extraction",
    "revival",
)


@pytest.mark.parametrize("name", SAMPLING)
def test_the_estimate_is_what_is_sampled(new_run, sampled, name):
    """An experiment by itself, in an empty folder; the grid, which is another experiment, is there already."""
    four = {"capture": {"steps": 4}, "edit": {"steps": 4}, "sweep": {"sparsity": [0.1, 0.3], "steps": [1, 4]}}
    run = new_run(**four if name == "variants" else {})  # so that every threshold gives another edit
    if name != "capture":
        EXPERIMENTS["capture"].result(run)
        sampled.clear()
    EXPERIMENTS[name].result(run)
    declared = sum(w.images * w.steps for w in EXPERIMENTS[name].cost(run.parameters) if w.weight == 1)
    assert sum(sampled) == declared > 0


def test_the_embedding_attack_samples_what_it_declares(new_run, sampled):
    run = new_run()
    EXPERIMENTS["capture"].result(run)
    sampled.clear()
    EXPERIMENTS["embeddings"].result(run)
    images, attack = EXPERIMENTS["embeddings"].cost(run.parameters)
    assert sum(sampled) == images.images * images.steps
    assert attack.steps == run.parameters.embedding_attack.iterations


def test_a_picture_that_is_drawn_is_attacked_no_further(new_run, sampled):
    run = new_run()
    work = EXPERIMENTS["deletion"].result(run)
    looks, attack = EXPERIMENTS["deletion"].cost(run.parameters)
    assert 0 < sum(sampled) <= looks.images * looks.steps
    assert attack.steps == 2
    models = [c.labels["model"] for c in experiments.deletion_conditions(run.parameters)]
    assert models[0] == "unedited"
    assert models[-1] == experiments.TWIN
    assert work.groupby(["model", "pairs"]).size().to_dict() == {
        (m, k): 2 for m in models for k in ("removed", "fresh")
    }


def test_edits_made_elsewhere_are_attacked(new_run, tmp_path):
    run = new_run()
    run.edit("memorized locate").save(tmp_path / "edit.safetensors")
    files = {"mine": str(tmp_path / "edit.safetensors")}
    other = new_run("other", deletion={"targets": 2, "iterations": [0, 1], "noises": 1, "edits": files})
    assert set(experiments.deletion(other)["model"]) == {"unedited", "mine", experiments.TWIN}


def test_the_twin_stands_in_the_tables(run):
    tables = {
        "contrast": experiments.sweep(run),
        "model": experiments.models(run),
        "method": experiments.baselines(run),
    }
    for column, table in tables.items():
        (row,) = table[table[column] == experiments.TWIN].to_dict("records")
        assert row["relative_alignment"] == pytest.approx(1)
        assert row.get("density", 0.0) == 0.0
    assert experiments.TWIN in experiments.detection(run)[0].index
    assert {name for name, _, _ in experiments.embeddings(run)} >= {"unedited", experiments.TWIN}
    assert run.denoiser.source == run.model.source  # and the pipeline is the model again


def test_a_model_without_a_twin_has_no_such_row():
    found = experiments.conditions(Parameters(model="sd14"))
    assert experiments.TWIN not in [c.labels["model"] for c in found]


def test_a_second_result_samples_nothing(new_run, sampled):
    run = new_run()
    first = EXPERIMENTS["models"].result(run)
    sampled.clear()
    assert EXPERIMENTS["models"].result(run).equals(first)
    assert not sampled


def test_the_law_of_row_width_is_drawn_once(run, monkeypatch):
    monkeypatch.setattr(widths, "law", partial(widths.law, draws=3))
    first = experiments.width_law(run, [1280, 5120])
    assert first.equals(widths.law(widths.measured(), [1280, 5120]))
    monkeypatch.setattr(widths, "law", None)
    assert experiments.width_law(run, [1280, 5120]).equals(first)


def test_every_experiment_is_in_the_estimate(run):
    table = estimate.work(run.parameters)
    assert table["part"].tolist() == [f"{e.notebook} {e.title}" for e in EXPERIMENTS.values()]
    assert (table[["images", "network calls", "steps"]] > 0).all(None)


# --- seams: one file and one registry line ------------------------------------------------------------------------


def test_a_registered_baseline_stands_in_the_tables(new_run, monkeypatch):
    def make(context, strength):
        return lambda prompts, *, seeds: context.sample([f"{p}, poster" for p in prompts], seeds=seeds)

    dummy = Baseline("adds a word", "words", make, (1, 2))
    monkeypatch.setitem(baselines.BASELINES, "dummy", dummy)
    run = new_run(baselines=ONE_METHOD)
    table = experiments.baselines(run)
    assert table[table["method"] == "dummy"]["strength"].tolist() == ["1", "2"]
    assert table[table["method"] == "dummy"]["replication_rate"].notna().all()
    assert ("dummy", "1") in experiments.seconds(run).index
    assert ("dummy", 2) in experiments.method_names(run.parameters)


def test_a_baseline_that_there_is_not_is_named(new_run):
    with pytest.raises(ValueError, match=r"baselines\.strengths: unknown 'random token'; expected some of"):
        experiments.methods(new_run(baselines={"strengths": {"random token": [1]}}))


def test_a_registered_detection_score_stands_in_the_tables(run, monkeypatch):
    monkeypatch.setitem(detection.SCORES, "dummy", lambda start, unconditional, conditional: torch.ones(len(start)))
    areas, curves = experiments.detection(run)
    assert areas["dummy"].tolist() == [0.5] * len(experiments.conditions(run.parameters))
    assert "unedited, dummy: AUC 0.50" in curves


def test_a_registered_metric_stands_in_the_tables(new_run, monkeypatch):
    monkeypatch.setitem(metrics.IMAGE_METRICS, "dummy", lambda images, prompts, references: np.full(len(images), 7.0))
    run = new_run(metrics={"more": ["dummy"]}, baselines=ONE_METHOD)
    run.metrics = metrics.load_metrics("tiny", "cpu", more=run.parameters.metrics.more)
    assert (experiments.models(run)["dummy"] == 7).all()
    assert (experiments.baselines(run)["dummy"] == 7).all()


def test_a_registered_notebook_is_run(monkeypatch):
    monkeypatch.setitem(batch.NOTEBOOKS, "99_dummy", batch.of_any_model)
    assert batch.find_notebooks(MODELS["sd14"])[-1].name == "99_dummy.ipynb"


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
    assert experiments.choose(table, run.parameters)["sparsity"] == 0.3  # 0.5 replicates less, and keeps too little
    exact = table.assign(exact_rate=[1.0, 0.9, 0.7, 0.7, 0.0, 0.0])
    assert experiments.choose(exact, run.parameters)["sparsity"] == 0.1  # the sparsest of equals
    worse = table.assign(relative_alignment=[1.0] + [0.5] * 5)
    assert experiments.choose(worse, run.parameters)["sparsity"] == 0.1  # none keeps enough: the sparsest
