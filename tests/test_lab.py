"""The lab: what it computes, and the widgets that show it, driven from Python as a browser would."""

import threading

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from conftest import SMALL
from memsub.models import StableDiffusionDenoiser, find_model, fingerprint
from memsub.pruning import Edit
from memsub_extra.lab import Lab, explore, label
from memsub_extra.lab.still import FRAMES
from memsub_extra.lab.view import Explorer
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run
from memsub_extra.run.specs import EditSpec, Group
from micro import micro_pipeline


@pytest.fixture(scope="module")
def lab(tmp_path_factory, micro, prompts, metrics):
    run = Run(Parameters.checked(SMALL | {"folder": str(tmp_path_factory.mktemp("lab"))}))
    run.pipe, run.metrics = micro, metrics
    run.data.prompts = prompts
    return Lab(run)


@pytest.fixture
def calls(monkeypatch):
    """Images that are sampled."""
    sampled = []
    plain = StableDiffusionDenoiser.sample

    def counted(self, prompts, latents, *options):
        sampled.append(len(latents))
        return plain(self, prompts, latents, *options)

    monkeypatch.setattr(StableDiffusionDenoiser, "sample", counted)
    return sampled


def test_its_edit_is_the_runs(lab):
    spec = lab.spec.changed(sparsity=0.2, steps=2)
    ours, theirs = lab.edit(spec), lab.run.grid.edit(spec)
    assert all(ours.positions[n].equal(p) for n, p in theirs.positions.items())
    assert lab.edit(None) is None
    first_two = list(theirs.positions)[:2]
    part = lab.density(spec.changed(layers=tuple(first_two)))
    assert (part[first_two] > 0).all()
    assert part.drop(first_two).eq(0).all()
    random = lab.edit(spec.changed(random=0))
    assert {n: len(p) for n, p in random.positions.items()} == {n: len(p) for n, p in theirs.positions.items()}
    assert not all(random.positions[n].equal(p) for n, p in theirs.positions.items())


def test_captions_whose_training_image_is_known_come_first(lab):
    held_out = lab.captions["memorized, held out"]
    other = Lab(lab.run)
    other.__dict__["_references"] = {held_out[-1]: lab.reference(held_out[-1])[None]}
    assert other.captions["memorized, held out"] == [held_out[-1], *held_out[:-1]]


def test_every_field_of_a_spec_counts(lab):
    spec = lab.spec.changed(sparsity=0.3, steps=2)
    densities = {None: lab.edit(spec).density}
    for field, value in {"threshold": 0.5, "contrast": "ordinary", "located_on": Group.all("memorized")}.items():
        changed = spec.changed(**{field: value})
        densities[field] = lab.edit(changed).density
        theirs = lab.run.grid.edit(changed)
        assert all(lab.edit(changed).positions[n].equal(p) for n, p in theirs.positions.items())
    assert densities["threshold"] < densities[None]
    assert len(set(densities.values())) == 4


def test_a_spec_in_words():
    assert label(EditSpec(sparsity=0.2)) == "20 % against empty, 10 steps"
    short = EditSpec(sparsity=0.005, steps=2, contrast="ordinary", layers=("a",))
    assert label(short) == "0.5 % against ordinary, 2 steps, 1 layers"
    assert label(None) == "unedited"


def test_edits_can_be_located_on_every_memorized_group(lab):
    assert lab.groups[:2] == [Group.all("memorized"), Group.locating()]
    names = [str(group) for group in lab.groups]
    assert set(names) == {name for name in lab.run.grid.statistics.counts if name.startswith("memorized")}


def test_locating_again_samples_nothing_and_what_was_shown_is_kept(lab, calls):
    captions, before = lab.captions["memorized, held out"][:2], fingerprint(lab.run.pipe)
    spec = lab.spec.changed(sparsity=0.3, steps=2)
    lab.edit(spec)  # whichever test is the first one captures the contrast
    calls.clear()
    first = lab.images(captions, [0, 1], spec)
    assert first.shape == (2, 2, 32, 32, 3)
    assert sum(calls) == 4
    calls.clear()
    lab.edit(spec.changed(sparsity=0.25, steps=1, contrast="ordinary"))
    lab.overlap(spec.changed(sparsity=0.25, steps=1))
    assert np.array_equal(lab.images(captions[::-1], [1], spec)[:, 0], first[::-1, 1])
    assert not calls
    unedited = lab.images(captions, [0])
    assert np.array_equal(lab.images(captions, [0], None), unedited)
    assert sum(calls) == 2
    assert fingerprint(lab.run.pipe) == before


def test_verdicts_need_a_training_image(lab):
    memorized, other = lab.captions["memorized, held out"][0], "a red heart on a plain green background"
    images = np.stack([lab.reference(memorized), lab.reference(memorized)])
    verdicts = lab.verdicts(images, [memorized, other])
    assert verdicts.loc[0, "replicates"]
    assert verdicts.loc[0, "p"] == 1 / 256
    assert verdicts.loc[1].isna().all()
    assert lab.reference(other) is None


def test_the_attack_leaves_the_pipeline_as_it_was_between_its_steps(lab):
    before, caption = fingerprint(lab.run.pipe), lab.captions["memorized, held out"][0]
    seen = []
    for step in lab.attack(caption, lab.spec.changed(sparsity=0.3, steps=2), iterations=2, every=1):
        assert fingerprint(lab.run.pipe) == before
        seen.append(step["iteration"])
    assert seen == [0, 1, 2]
    with pytest.raises(ValueError, match="'a heart' has no training image to attack"):
        next(lab.attack("a heart"))


# --- widgets ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explorer(lab):
    shown = Explorer(lab)
    shown.wait(120)
    return shown


def test_a_slider_changes_the_images(explorer):
    explorer.sparsity.value = 0.5
    explorer.wait(120)
    strong, status = explorer.images.value, explorer.status.value
    assert strong.count("<img") == 3 * 3  # three captions: training image, before, after
    assert status.startswith("50 % against empty, 2 steps: ")
    explorer.sparsity.value = 0.1
    explorer.wait(120)
    assert explorer.images.value != strong
    assert bytes(explorer.weights.value).startswith(b"\x89PNG")
    assert bytes(explorer.scores.value).startswith(b"\x89PNG")
    explorer.sparsity.value = 0.0
    explorer.wait(120)
    assert explorer.spec is None
    assert explorer.images.value.count("<img") == 2 * 3
    assert "after" not in explorer.images.value
    assert explorer.status.value.startswith("unedited: 0.00 %")


def test_a_layer_that_is_clicked_is_left_out(explorer):
    explorer.sparsity.value = 0.5
    name, button = next(iter(explorer.layers.items()))
    button.click()
    explorer.wait(120)
    assert name not in explorer.spec.layers
    assert "3 layers" in explorer.status.value
    assert "left out" in button.tooltip
    button.click()
    explorer.wait(120)
    assert explorer.spec.layers is None


def test_the_still_shows_what_the_widgets_show(explorer, calls):
    explorer.sparsity.value = 0.25
    name, button = next(iter(explorer.layers.items()))
    button.click()
    explorer.wait(120)
    calls.clear()
    figure = explorer.still()
    assert not calls  # it shows what the widgets show
    images, frames, texts = (figure.findobj(kind) for kind in (AxesImage, Rectangle, Text))
    assert len(images) == 3 * 3  # training image, before, after
    shown = [text.get_text().replace("\n", " ") for text in texts]
    assert explorer.status.value in shown
    assert {"25 %", "before, seed 0", "after, seed 0", "memorized, held out", "unedited", "pruned"} <= set(shown)
    verdicts = [text for text in shown if text.startswith(("training layout", "other layout"))]
    assert len(verdicts) == 2 * 3
    edges = [to_hex(frame.get_edgecolor()) for frame in frames]
    copies = sum(text.startswith("training layout") for text in verdicts)
    assert edges.count(FRAMES[True]) == copies
    assert edges.count(FRAMES[False]) == len(verdicts) - copies
    boxes = [to_hex(frame.get_facecolor()) for frame in frames]
    assert boxes.count("#eeeeee") == 1, name  # the layer that is left out
    button.click()
    explorer.wait(120)


def test_captions_that_are_written_and_those_of_a_kind(explorer):
    explorer.written.value = "a red heart on a plain green background"
    explorer.kind.value = "heldout"
    explorer.wait(120)
    assert explorer.shown[0] == "a red heart on a plain green background"
    assert len(explorer.shown) == 4
    assert "training image" not in explorer.images.value
    explorer.written.value = ""
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


def test_a_request_leaves_a_core_to_the_notebook_and_no_thread_behind(explorer):
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
    assert saved.density == pytest.approx(explorer.lab.edit(explorer.spec).density)
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
    monkeypatch.setattr("memsub_extra.run.run.load_pipeline", lambda *args, **options: micro_pipeline())
    shown = explore(run)
    shown.wait(120)
    assert shown.lab.run.pipe is not run.pipe
    assert shown.lab.run.folder == run.folder
    monkeypatch.chdir(tmp_path)
    made = {}
    monkeypatch.setattr("memsub_extra.lab.view.Explorer", lambda lab: made.setdefault("lab", lab))
    monkeypatch.setattr("memsub_extra.lab.model_of", lambda pipe: find_model("tiny"))
    explore(run.pipe)
    assert made["lab"].run.pipe is run.pipe
    assert made["lab"].run.parameters.model == "tiny"
    made.clear()
    explore("tiny")
    assert str(made["lab"].run.folder) == "runs/tiny"


def test_photographs_are_judged_by_the_copy_metric(lab, monkeypatch):
    monkeypatch.setattr(lab.run.data, "world", None)
    memorized = lab.captions["memorized, held out"][0]
    verdict = lab.verdicts(np.stack([lab.reference(memorized)]), [memorized]).loc[0]
    assert verdict["replicates"]
    assert np.isnan(verdict["p"])
    shown = Explorer(lab)
    shown.wait(120)
    assert "copy (" in shown.images.value
    assert "layout" not in shown.images.value


def test_training_images_from_a_folder_are_shown(lab, tmp_path, monkeypatch, prompts):
    """Where the list of prompts has no images: those in the folder that the parameters name, if there is one."""
    from memsub.io.images import save_image
    from memsub.prompts import Prompts

    memorized, image = lab.captions["memorized, held out"], lab.reference(lab.captions["memorized, held out"][0])
    for folder, known in ((tmp_path / "images", True), (tmp_path / "none", False)):
        images = {"data": {"images": str(folder)}}
        run = Run(Parameters.checked(SMALL | {"folder": str(tmp_path / "run")} | images))
        run.pipe = lab.run.pipe
        table = prompts.table.drop(columns=["image", "exposures"]).assign(index=range(len(prompts.table)))
        run.data.prompts = Prompts(table, prompts.memorized_kinds)
        place = run.data.captions("memorized").index(memorized[0])
        if known:
            save_image(image, folder / str(run.data.prompts.memorized_rows["index"].iloc[place]) / "0.png")
        reference = Lab(run).reference(memorized[0])
        assert np.array_equal(reference, image) if known else reference is None
