"""A run: which prompts locate, choose and report; artifacts made once; other content, other artifacts."""

import diffusers
import numpy as np
import pandas as pd
import pytest
import torch
import transformers

import memsub
from memsub.controls import random_masks
from memsub.io.images import save_image
from memsub.measure.metric import CopyMetric
from memsub.measure.metrics import Metrics
from memsub.measure.verdict import Judge
from memsub.models import StableDiffusionDenoiser, fingerprint
from memsub.overlap import disjoint_pairs, subsets
from memsub.prompts import Prompts
from memsub_extra.notebooks import notebook03, notebook04, rows
from memsub_extra.run.model import Model
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run, _without_bars
from memsub_extra.run.scores import Scores
from memsub_extra.run.specs import EditSpec, Group

THIRD = Group.subset("memorized", 3, 1)


def again(run: Run) -> Run:
    """Another run in the same folder."""
    other = Run(run.parameters)
    other.pipe, other.control_pipes, other.metrics = run.pipe, run.control_pipes, run.metrics
    other.data.prompts = run.data.prompts
    return other


def test_a_model_that_is_not_there_is_an_error_at_once():
    with pytest.raises(ValueError, match=r"unknown model 'tinny'\. Did you mean 'tiny'"):
        Run(Parameters(model="tinny"))


def test_more_prompts_than_there_are(new_run):
    with pytest.raises(ValueError, match="5000 prompts of each kind were asked for, but only 100 are memorized"):
        new_run(grid={"memorized": 5000}).data.captions("memorized")


def test_another_precision_is_another_model(tmp_path):
    """Its artifacts have keys of their own, by the fingerprint."""
    run = Run(Parameters.checked({"folder": str(tmp_path), "dtype": "bfloat16"}))
    assert run.pipe.unet.dtype == run.twin_pipe.unet.dtype == torch.bfloat16
    assert run.unedited.fingerprint != Run(Parameters(folder=str(tmp_path))).unedited.fingerprint
    with pytest.raises(ValueError, match="dtype"):
        Parameters.checked({"dtype": "int8"})


def test_network_calls_are_counted_by_rows(tmp_path):
    run = Run(Parameters.checked({"folder": str(tmp_path), "sampling": {"steps": 2}}))
    run.scores.images(run.unedited, ["a red heart on a plain green background"] * 3, [0, 1, 2])
    assert run.network_rows == 2 * 3 * 2  # both halves of a guided call


# --- which prompts --------------------------------------------------------------------------------------------


def test_subsets_share_as_little_as_possible():
    tens = subsets(100, 10, 10)
    assert sorted(i for part in tens for i in part) == list(range(100))
    assert len(disjoint_pairs(tens)) == 45
    fifties = subsets(100, 50, 10)
    assert len(disjoint_pairs(fifties)) == 5
    assert subsets(100, 10, 10) == tens != subsets(100, 10, 10, seed=1)
    with pytest.raises(ValueError, match="subsets of 11 prompts were asked for, but there are 10"):
        subsets(10, 11, 1)


def test_prompts_that_locate_choose_and_report_are_others():
    split = Run(Parameters()).data.split
    assert [len(part) for part in split.values()] == [34, 33, 33]
    assert sorted(i for part in split.values() for i in part) == list(range(100))
    assert split == Run(Parameters()).data.split != Run(Parameters(seed=1)).data.split


def test_an_edit_is_reported_on_prompts_that_neither_located_nor_chose_it(run):
    located_on = run.data.located_on(THIRD)
    held_out = run.data.held_out(located_on)
    assert set(held_out).isdisjoint(located_on)
    assert set(held_out) <= set(run.data.split["report"])
    assert run.data.located_on(Group.locating()) == run.data.split["locate"]
    assert run.data.located_on(Group.all("ordinary")) == list(range(12))
    with pytest.raises(ValueError, match="only 0 of the 4 memorized prompts that report are held out"):
        run.data.held_out(range(12))


def test_the_sweep_and_what_is_reported_share_no_prompt(run, monkeypatch):
    asked = []
    monkeypatch.setattr(Scores, "evaluate", lambda self, model, places, *rest, **how: asked.append(set(places)) or {})
    monkeypatch.setattr(rows, "_intervals", lambda *asked_of: {})
    notebook04.sweep(run)
    swept = set.union(*asked)
    asked.clear()
    notebook04.pruned_models(run)
    assert swept.isdisjoint(set.union(*asked))
    assert swept.isdisjoint(run.data.split["locate"])


def test_unseen_captions_that_choose_are_none_of_those_that_report(run):
    listed = run.data.prompts.of("heldout")
    assert run.data.unseen(3) == (0, listed[:3])
    assert run.data.unseen(3, "choose") == (len(listed) - 3, listed[-3:])
    with pytest.raises(ValueError, match=rf"but the list holds {len(listed)}: give {2 * len(listed)} of them"):
        run.data.unseen(len(listed), "choose")
    chosen_on = run.scores.unseen(run.unedited, 2, part="choose")
    assert chosen_on["prompt"].tolist() == listed[-2:]


def test_groups_are_values_with_labels():
    assert str(Group.all("memorized")) == "memorized all"
    assert str(Group.locating()) == "memorized locate"
    assert str(Group.subset("ordinary", 10, 3)) == "ordinary 10/3"
    assert len({Group.subset("ordinary", 10, 3), Group.subset("ordinary", 10, 3), Group.all("ordinary")}) == 2


def test_a_spec_changes_by_fields_that_are_checked():
    spec = EditSpec(sparsity=0.1)
    changed = spec.changed(located_on=THIRD, layers=["down_block"], random=3)
    assert (changed.sparsity, changed.located_on, changed.layers, changed.random) == (0.1, THIRD, ("down_block",), 3)
    assert len({spec, EditSpec(sparsity=0.1), changed}) == 2
    for wrong in ({"sparsity": 2}, {"steps": 0}, {"contrast": "emtpy"}, {"tau": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            spec.changed(**wrong)


# --- models ---------------------------------------------------------------------------------------------------


def test_a_model_s_edit_is_in_place_only_while_it_is_used(run):
    model, before = run.model(), fingerprint(run.pipe)
    layer, positions = next((n, p) for n, p in model.edit.positions.items() if len(p))
    with pytest.raises(RuntimeError, match="planted"), model.applied() as pipe:
        assert not pipe.unet.get_submodule(layer).weight.flatten()[positions].any()
        raise RuntimeError("planted")
    assert fingerprint(run.pipe) == before
    captions = run.data.captions("memorized")[:2]
    edited, unedited = (run.scores.images(m, captions, [0, 1]) for m in (model, run.unedited))
    assert (edited != unedited).any()
    assert fingerprint(run.pipe) == before


def test_models_of_equal_weights_share_what_is_stored(run):
    edit = run.grid.edit()
    same, other = Model("a", run.pipe, edit), Model("b", run.pipe, run.grid.edit(run.parameters.spec.changed(random=0)))
    assert same.fingerprint == run.model().fingerprint
    assert len({same.fingerprint, other.fingerprint, run.unedited.fingerprint, run.twin.fingerprint}) == 4
    assert same.density == other.density > run.unedited.density == 0


def test_the_twin_keeps_all_of_its_alignment(run):
    entries = run.scores.evaluate(run.twin, run.data.held_out([]))
    assert entries["relative_alignment"] == 1
    assert entries["density"] == 0


def test_the_verdict_is_the_exact_test_where_there_is_a_world_else_the_threshold(run, tmp_path):
    assert run.judge.column == "exact"
    other = again(run)
    other.data.world = None
    assert isinstance(other.judge, Judge)
    assert other.judge.column == "replication"


# --- artifacts ------------------------------------------------------------------------------------------------


def test_the_grid_is_captured_once_and_equals_separate_captures(new_run, exact_micro, monkeypatch):
    run = new_run()
    run.pipe = exact_micro
    captions = [run.data.captions("ordinary")[i] for i in run.data.members(3)[1]]
    statistics = run.grid.statistics
    alone = memsub.capture(exact_micro, captions, steps=2, guidance_scale=3.0, progress=False)
    for name, norms in alone.norms().items():
        torch.testing.assert_close(statistics.norms("ordinary 3/1")[name], norms, rtol=1e-5, atol=1e-8)
    spec = run.parameters.spec.changed(located_on=THIRD)
    masks, edit = run.grid.masks(THIRD), run.grid.edit(spec)
    monkeypatch.setattr(StableDiffusionDenoiser, "sample", lambda *a, **k: pytest.fail("captured twice"))
    other = again(run)
    for name, sums in statistics.sums.items():
        assert torch.equal(other.grid.statistics.sums[name], sums)
    assert torch.equal(other.grid.masks(THIRD).density(), masks.density())
    assert other.grid.edit(spec).density == edit.density > 0
    assert run.grid.edit(spec.changed(contrast="ordinary")).density > 0


def test_overlap_is_that_of_subsets_without_a_common_prompt_and_made_once(run, monkeypatch):
    masks = [run.grid.masks(Group.subset("memorized", 2, i)) for i in range(3)]
    ordinary = [run.grid.masks(Group.subset("ordinary", 2, i)) for i in range(3)]
    pairs = disjoint_pairs(run.data.members(2))
    expected = memsub.pairwise_iou(masks, pairs=pairs).numpy()
    across = memsub.pairwise_iou(masks, ordinary).numpy()
    random = notebook03.random_overlap(masks)
    assert random.values.shape == (3, *across.shape[1:])
    assert 0 < random.values.mean() < across.mean()
    overlaps = notebook03.overlaps(run.grid.smallest(), pairs)
    np.testing.assert_array_equal(overlaps["memorized – memorized"].values, expected)
    np.testing.assert_array_equal(overlaps["memorized – ordinary"].values, across)
    assert overlaps["memorized – ordinary"].units[:2] == [(0, 0), (0, 1)]
    first = notebook03.overlap(run.grid, "memorized", 2)
    monkeypatch.setattr(notebook03, "pairwise_iou", None)
    for own in first, notebook03.overlap(run.grid, "memorized", 2):
        np.testing.assert_array_equal(own.values, expected)
        assert own.units == pairs


def test_other_models_and_other_captures_have_grids_of_their_own(run, other_micro):
    """Same captions, same noise: only the smallest subsets, at the steps that edits unite."""
    control, again = run.grid.in_model(run.controls["twin"]), run.grid.again(seed=1)
    assert list(control.statistics.counts) == [f"{kind} 2/{i}" for kind in ("memorized", "ordinary") for i in range(3)]
    captions = [run.data.captions("memorized")[i] for i in run.data.members(2)[0]]
    alone = memsub.capture(other_micro, captions, steps=2, guidance_scale=3.0, progress=False)
    for name, norms in alone.norms().items():
        torch.testing.assert_close(control.statistics.norms("memorized 2/0")[name], norms, rtol=1e-4, atol=1e-6)
    assert again.null().provenance["seed"] == again.statistics.provenance["seed"] == 1
    assert (run.grid.all_steps, run.grid.again(first=None).statistics.counts) == (run.grid, control.statistics.counts)
    same = notebook03.with_itself(run.grid.smallest(), again.smallest())
    assert same["ordinary"].values.shape == (3, 2, 4)
    assert 0 < same["ordinary"].values.mean() < 1


def test_the_grid_ends_after_the_steps_that_edits_unite(new_run):
    run = new_run(capture={"steps": 3}, captured={"first": 2, "subsets": 2})
    assert run.grid.masks(THIRD).steps == run.grid.null().provenance["first"] == 2
    assert run.grid.all_steps.masks(Group.subset("ordinary", 2, 1)).steps == 3
    assert len(run.grid.all_steps.statistics.counts) == 2 * 2
    with pytest.raises(ValueError, match=r"edit\.steps unites 3 steps, but captured\.first ends after 2"):
        new_run(capture={"steps": 3}, captured={"first": 2}, edit={"steps": 3})


def test_ordinary_prompts_match_memorized_ones_where_the_world_tells(run):
    chosen, listed = run.data.captions("ordinary"), run.data.prompts.ordinary
    assert all(" and " in caption and ", " in caption for caption in chosen)
    assert chosen == [caption for caption in listed if caption in set(chosen)]
    table = run.data.prompts.table.copy()
    rows = table.index[table["kind"] == "ordinary"]
    table.loc[rows, "group"], table.loc[rows[-3:], "group"] = "", "matched"
    run.data.prompts = Prompts(table)
    assert run.data.matched("ordinary") == listed[-3:] != listed[:3]
    run.data.world = None  # as they are listed
    assert run.data.captions("ordinary") == listed[: len(chosen)]


def test_control_models_are_named_and_a_model_may_have_none(run, micro):
    assert list(run.controls) == ["twin", "other"] == list(run.info.controls)
    run.control_pipes = {}
    assert (run.controls, run.twin) == ({}, None)
    run.control_pipes = {"twin": micro, "other": micro}
    assert [model.name for model in run.controls.values()] == ["twin", "other"]


def test_images_are_judged_once(run, monkeypatch):
    captions, images = run.data.prompts.memorized[:2], run.data.prompts.images("verbatim", 0, 2)
    assert run.scores.replicated(images, captions, images).tolist() == [True, True]
    assert run.scores.replicated(images[::-1], captions, images).tolist() == [False, False]
    monkeypatch.setattr("memsub.measure.verdict.exact_p", None)
    assert run.scores.replicated(images, captions, images).tolist() == [True, True]


def test_a_truncated_file_does_not_go_unnoticed(run):
    run.grid.statistics  # noqa: B018
    (path,) = (run.store.folder / "grid").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{path.name} is truncated"):
        again(run).grid.statistics  # noqa: B018


def test_other_content_gives_other_scores(run, metrics, monkeypatch):
    """Captions, training images, metrics, weights: a change in any is not served what was there."""
    places = run.data.held_out([])
    first = run.scores.memorized(run.unedited, places)

    def files() -> int:
        return len(list((run.store.folder / "memorized").glob("*.parquet")))

    pd.testing.assert_frame_equal(again(run).scores.memorized(run.unedited, places), first)
    assert files() == 1
    other = again(run)
    other.metrics = Metrics(CopyMetric(metrics.copy.embed, 0.5, metrics.copy.identity), metrics.prompt)
    other.scores.memorized(other.unedited, places)
    assert files() == 2
    other = again(run)
    other.data.training_images = {i: images[:, ::-1].copy() for i, images in run.data.training_images.items()}
    changed = other.scores.memorized(other.unedited, places)
    assert not np.allclose(changed["copy_similarity"], first["copy_similarity"])
    assert files() == 3
    again(run).scores.memorized(run.model(), places)
    assert files() == 4
    again(run).scores.memorized(run.unedited, places[:2])
    assert files() == (5 if len(places) > 2 else 4)


def test_an_edit_that_removes_much_is_seen(tmp_path):
    """On the embedded model: it is about memory."""
    parameters = {"grid": {"memorized": 12, "subsets": 2, "sizes": [2]}, "edit": {"steps": 2}, "sweep": {"steps": [2]}}
    parameters |= {"capture": {"steps": 2}, "evaluation": {"captions": 4}, "folder": str(tmp_path)}
    run = Run(Parameters.checked(parameters))
    places = run.data.held_out([])
    edit = run.model(run.parameters.spec.changed(sparsity=1.0))
    whole, edited = (run.scores.memorized(model, places) for model in (run.unedited, edit))
    assert edit.density > 0.3
    assert edited["copy_similarity"].mean() < whole["copy_similarity"].mean() - 0.2


def test_training_images_of_a_published_list(new_run, tmp_path):
    """Lists have addresses, not images: those in the folder are used, prompts without one are left out."""
    run = new_run(data={"images": str(tmp_path / "gt")})
    table = pd.DataFrame({"prompt": list("abcdefghijkl"), "kind": "memorized", "index": range(7, 19), "url": "x"})
    run.data.prompts = memsub.Prompts(table, ("memorized",))
    (tmp_path / "gt").mkdir()
    with pytest.raises(ValueError, match="holds no training image of these 12 captions"):
        run.data.references  # noqa: B018
    report = run.data.split["report"]
    for i in report[:2]:
        save_image(np.random.default_rng(i).integers(0, 256, (20, 10, 3), np.uint8), tmp_path / "gt" / f"{7 + i}/0.png")
    assert sorted(run.data.references) == sorted(report[:2])
    assert run.data.references[report[0]].shape == (32, 32, 3)
    assert run.data.held_out([]) == report[:2]
    with pytest.raises(ValueError, match=r"data\.real: a folder of images"):
        run.data.real_images()


def test_random_masks_have_the_same_counts_a_row(run):
    masks = run.grid.masks(Group.subset("memorized", 3, 0))
    control = random_masks(masks, 1)
    np.testing.assert_array_equal(control.density(), masks.density())
    name = next(iter(masks.layers))
    np.testing.assert_array_equal(control.dense(name, 1).sum(1), masks.dense(name, 1).sum(1))
    assert not torch.equal(control.dense(name, 1), random_masks(masks, 2).dense(name, 1))


def test_two_runs_with_one_seed_give_the_same_artifacts(new_run):
    files, group = [], Group.subset("memorized", 3, 0)
    for name in ("one", "two"):
        run = new_run(name)
        run.grid.masks(group)
        run.grid.edit(run.parameters.spec.changed(located_on=group)).save(run.folder / "edit.safetensors")
        files.append({p.relative_to(run.folder): p for p in run.folder.rglob("*.safetensors")})
    assert files[0].keys() == files[1].keys()
    assert len(files[0]) == 4
    for name, one in files[0].items():
        two = files[1][name]
        if name.parts[-1] == "edit.safetensors" or name.parts[-2] == "edits":  # whole numbers: to the byte
            assert one.read_bytes() == two.read_bytes(), name
        else:  # sums of floats: threads may add in another order
            a, b = (memsub.ActivationStats.load(p) for p in (one, two))
            assert (a.counts, a.provenance, a.prompts) == (b.counts, b.provenance, b.prompts)
            for layer, sums in a.sums.items():
                torch.testing.assert_close(sums, b.sums[layer], rtol=1e-5, atol=1e-8)


def test_no_bars_are_shown_while_a_model_is_read_and_afterwards_they_are_back():
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [logging.is_progress_bar_enabled() for logging in libraries]
    with pytest.raises(ValueError, match="unreadable"), _without_bars():
        assert not any(logging.is_progress_bar_enabled() for logging in libraries)
        raise ValueError("unreadable")
    assert [logging.is_progress_bar_enabled() for logging in libraries] == before
