"""The lab: what it computes, and the widgets that show it, driven from Python as a browser would."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import memsub
from conftest import SMALL
from memsub.models import StableDiffusionDenoiser, fingerprint
from memsub_extra.lab import Lab, Setting
from memsub_extra.lab.view import Explorer
from memsub.run.parameters import Parameters
from memsub.pruning import Edit
from memsub.run.run import Run


@pytest.fixture(scope="module")
def lab(tmp_path_factory, pipe, prompts, metrics):
    run = Run(Parameters.checked(SMALL | {"folder": str(tmp_path_factory.mktemp("lab"))}))
    run.pipe, run.prompts, run.metrics = pipe, prompts, metrics
    return Lab(run)


@pytest.fixture
def calls(monkeypatch):
    """Images that are sampled."""
    found = []
    plain = StableDiffusionDenoiser.sample

    def counted(self, prompts, latents, *options):
        found.append(len(latents))
        return plain(self, prompts, latents, *options)

    monkeypatch.setattr(StableDiffusionDenoiser, "sample", counted)
    return found


def test_its_edit_is_the_runs(lab):
    setting = Setting(0.2, steps=2)
    ours, theirs = lab.edit(setting), lab.run.edit("memorized locate", sparsity=0.2, steps=2)
    assert all(ours.positions[n].equal(p) for n, p in theirs.positions.items())
    assert lab.edit(Setting(0.0)) is None
    some = tuple(list(theirs.positions)[:2])
    part = lab.density(Setting(0.2, steps=2, layers=some))
    assert (part[list(some)] > 0).all()
    assert part.drop(list(some)).eq(0).all()


def test_a_setting_says_what_it_is():
    assert str(Setting(0.2)) == "20 % against empty, 10 steps"
    assert str(Setting(0.005, 2, "ordinary", layers=("a",))) == "0.5 % against ordinary, 2 steps, 1 layers"
    assert str(Setting(0.0)) == "unedited"


def test_locating_again_samples_nothing_and_what_was_shown_is_kept(lab, calls):
    captions, before = lab.captions["memorized, held out"][:2], fingerprint(lab.run.pipe)
    first = lab.pictures(captions, [0, 1], Setting(0.3, steps=2))
    assert first.shape == (2, 2, 32, 32, 3)
    assert sum(calls) == 4
    calls.clear()
    lab.edit(Setting(0.25, steps=1, contrast="ordinary"))
    lab.overlap(Setting(0.25, steps=1))
    assert np.array_equal(lab.pictures(captions[::-1], [1], Setting(0.3, steps=2))[:, 0], first[::-1, 1])
    assert not calls
    lab.pictures(captions, [0], Setting(0.0, steps=1))
    lab.pictures(captions, [0])
    assert sum(calls) == 2  # no edit is no edit, whatever else is set
    assert fingerprint(lab.run.pipe) == before


def test_verdicts_need_a_training_image(lab):
    memorized, own = lab.captions["memorized, held out"][0], "a red heart on a plain green background"
    images = np.stack([lab.reference(memorized), lab.reference(memorized)])
    told = lab.verdicts(images, [memorized, own])
    assert told.loc[0, "replicates"]
    assert told.loc[0, "p"] == 1 / 256
    assert told.loc[1].isna().all()
    assert lab.reference(own) is None


def test_the_attack_leaves_the_pipeline_as_it_was_between_its_steps(lab):
    before, caption = fingerprint(lab.run.pipe), lab.captions["memorized, held out"][0]
    seen = []
    for step in lab.attack(caption, Setting(0.3, steps=2), iterations=2, every=1):
        assert fingerprint(lab.run.pipe) == before
        seen.append(step["iteration"])
    assert seen == [0, 1, 2]
    with pytest.raises(ValueError, match="'a heart' has no training image to attack"):
        next(lab.attack("a heart"))


# --- widgets ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explorer(lab):
    found = Explorer(lab)
    found.wait(120)
    return found


def test_a_slider_changes_the_pictures(explorer):
    explorer.sparsity.value = 0.5
    explorer.wait(120)
    strong, told = explorer.pictures.value, explorer.status.value
    assert strong.count("<img") == 3 * 3  # three captions: training image, before, after
    assert told.startswith("50 % against empty, 2 steps: ")
    explorer.sparsity.value = 0.01
    explorer.wait(120)
    assert explorer.pictures.value != strong
    assert bytes(explorer.weights.value).startswith(b"\x89PNG")
    assert bytes(explorer.scores.value).startswith(b"\x89PNG")
    explorer.sparsity.value = 0.0
    explorer.wait(120)
    assert explorer.pictures.value.count("<img") == 2 * 3
    assert "after" not in explorer.pictures.value


def test_a_layer_that_is_clicked_is_left_out(explorer):
    explorer.sparsity.value = 0.5
    name, button = next(iter(explorer.layers.items()))
    button.click()
    explorer.wait(120)
    assert name not in explorer.setting.layers
    assert "15 layers" in explorer.status.value
    assert "left out" in button.tooltip
    button.click()
    explorer.wait(120)
    assert explorer.setting.layers is None


def test_own_captions_and_those_of_a_kind(explorer):
    explorer.own.value = "a red heart on a plain green background"
    explorer.kind.value = "heldout"
    explorer.wait(120)
    assert explorer.shown[0] == "a red heart on a plain green background"
    assert len(explorer.shown) == 4
    assert "training image" not in explorer.pictures.value
    explorer.own.value = ""
    explorer.captions.value = ()
    explorer.wait(120)
    assert "no caption is chosen" in explorer.status.value
    explorer.kind.value = "memorized, held out"
    explorer.wait(120)


def test_the_attack_runs_until_it_is_cancelled(explorer):
    explorer.attack.click()
    while not explorer.curve.value:
        explorer._running.join(0.1)
        assert explorer.curve.value or explorer._running.is_alive(), explorer.status.value
    explorer.cancel.click()
    explorer.wait(120)
    assert bytes(explorer.curve.value).startswith(b"\x89PNG")
    assert explorer.cancel.disabled
    explorer.captions.value = ()
    explorer.attack.click()
    explorer.wait(120)
    assert "no caption is chosen" in explorer.status.value
    explorer.kind.value = "memorized, locating the edit"
    explorer.wait(120)


def test_a_wish_leaves_a_core_to_the_notebook_and_no_thread_behind(explorer):
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        explorer._submit(lambda stop: seen.append(torch.get_num_threads()))
        explorer.wait(120)
        assert seen == [2]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert not [t for t in threading.enumerate() if t.name == "lab"]
    held = threading.Event()
    explorer._submit(lambda stop: held.wait(60))
    with pytest.raises(TimeoutError, match=r"still computes after 0\.1 s"):
        explorer.wait(0.1)
    held.set()
    explorer.wait(120)


def test_the_edit_is_saved_as_it_is_shown(explorer, tmp_path):
    explorer.sparsity.value, explorer.file.value = 0.25, str(tmp_path / "edit.safetensors")
    explorer.wait(120)
    explorer.save.click()
    saved = Edit.load(tmp_path / "edit.safetensors")
    assert saved.density == pytest.approx(explorer.lab.edit(explorer.setting).density)
    assert "saved" in explorer.status.value
    explorer.file.value = str(tmp_path / "edit.safetensors" / "x")
    explorer.save.click()
    assert "not saved" in explorer.status.value
    explorer.sparsity.value = 0.0
    explorer.wait(120)
    explorer.save.click()
    assert "nothing to save" in explorer.status.value


def test_a_run_is_explored_by_a_pipeline_of_the_labs_own(lab, tmp_path, monkeypatch):
    run = lab.run
    found = memsub.explore(run)
    found.wait(120)
    assert found.lab.run.pipe is not run.pipe
    assert found.lab.run.folder == run.folder
    monkeypatch.chdir(tmp_path)
    shown = {}
    monkeypatch.setattr("memsub.lab.view.Explorer", lambda lab: shown.setdefault("lab", lab))
    memsub.explore(run.pipe)
    assert shown["lab"].run.pipe is run.pipe
    assert shown["lab"].run.parameters.model == "tiny"
    shown.clear()
    memsub.explore("tiny")
    assert str(shown["lab"].run.folder) == "runs/tiny"


def test_photographs_are_judged_by_the_copy_metric(lab, monkeypatch):
    monkeypatch.setattr(lab.run, "model", replace(lab.run.model, drawn=False))
    memorized = lab.captions["memorized, held out"][0]
    told = lab.verdicts(np.stack([lab.reference(memorized)]), [memorized]).loc[0]
    assert told["replicates"]
    assert np.isnan(told["p"])
    found = Explorer(lab)
    found.wait(120)
    assert "copy (" in found.pictures.value
    assert "layout" not in found.pictures.value
