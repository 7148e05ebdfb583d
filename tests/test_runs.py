"""A run: which prompts locate, choose and report; artifacts made once; other content, other artifacts."""

import numpy as np
import pandas as pd
import pytest
import torch

import memsub
from memsub import experiments, runs
from memsub.controls import random_masks
from memsub.denoiser import StableDiffusionDenoiser
from memsub.files import save_image
from memsub.metrics import CopyMetric, Metrics
from memsub.parameters import Parameters
from memsub.prompts import disjoint_pairs, subsets
from memsub.runs import Run


def again(run: Run) -> Run:
    """Another run in the same folder."""
    other = Run(run.parameters)
    other.pipe, other.prompts, other.metrics = run.pipe, run.prompts, run.metrics
    return other


def test_a_model_that_is_not_there_is_told_at_once():
    with pytest.raises(ValueError, match=r"unknown model 'tinny'\. Did you mean 'tiny'"):
        Run(Parameters(model="tinny"))


def test_more_prompts_than_there_are(new_run):
    with pytest.raises(ValueError, match="5000 prompts of each kind were asked for, but only 100 are memorized"):
        new_run(grid={"memorized": 5000}).captions("memorized")


def test_another_precision_is_another_model(tmp_path):
    """Its artifacts have keys of their own (the fingerprint), and edits of float32 are not taken."""
    run = Run(Parameters.checked({"folder": str(tmp_path), "dtype": "bfloat16"}))
    assert run.pipe.unet.dtype == run.twin.unet.dtype == torch.bfloat16
    assert [c.labels["model"] for c in experiments.deletion_conditions(run.parameters)] == [
        "unedited",
        "pruned",
        "twin",
    ]
    assert "regrowth" in [c.labels["model"] for c in experiments.deletion_conditions(Parameters(dtype="float32"))]
    with pytest.raises(ValueError, match="dtype"):
        Parameters.checked({"dtype": "int8"})


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
    split = Run(Parameters()).split
    assert [len(part) for part in split.values()] == [34, 33, 33]
    assert sorted(i for part in split.values() for i in part) == list(range(100))
    assert split == Run(Parameters()).split != Run(Parameters(seed=1)).split


def test_an_edit_is_reported_on_prompts_that_neither_located_nor_chose_it(run):
    located_on = run.located_on("memorized 3/1")
    held_out = run.held_out(located_on)
    assert set(held_out).isdisjoint(located_on)
    assert set(held_out) <= set(run.split["report"])
    assert run.located_on("memorized locate") == run.split["locate"]
    with pytest.raises(ValueError, match="only 0 of the 4 memorized prompts that report are held out"):
        run.held_out(range(12))


def test_the_sweep_and_what_is_reported_share_no_prompt(run, monkeypatch):
    asked = []
    monkeypatch.setattr(Run, "evaluate", lambda self, edit, chosen: asked.append(set(chosen)) or {})
    experiments.sweep(run)
    swept = set.union(*asked)
    asked.clear()
    experiments.models(run)
    assert swept.isdisjoint(set.union(*asked))
    assert swept.isdisjoint(run.split["locate"])


# --- artifacts ------------------------------------------------------------------------------------------------


def test_the_grid_is_captured_once_and_equals_separate_captures(new_run, exact_pipe, monkeypatch):
    run = new_run()
    run.pipe = exact_pipe
    stats, group = run.grid, run.members(3)[1]
    captions = [run.captions("ordinary")[i] for i in group]
    alone = memsub.capture(exact_pipe, captions, steps=2, guidance_scale=3.0, progress=False)
    for name, norms in alone.norms().items():
        torch.testing.assert_close(stats.norms("ordinary 3/1")[name], norms, rtol=1e-5, atol=1e-8)
    masks, edit = run.masks("memorized", 3, 1), run.edit("memorized 3/1")
    monkeypatch.setattr(StableDiffusionDenoiser, "sample", lambda *a, **k: pytest.fail("captured twice"))
    other = again(run)
    for name, sums in stats.sums.items():
        assert torch.equal(other.grid.sums[name], sums)
    assert torch.equal(other.masks("memorized", 3, 1).density(), masks.density())
    assert other.edit("memorized 3/1").density == edit.density > 0
    assert run.edit("memorized 3/1", contrast="ordinary").density > 0


def test_overlap_is_that_of_subsets_without_a_common_prompt_and_made_once(run, monkeypatch):
    masks = [run.masks("memorized", 2, i) for i in range(3)]
    pairs = disjoint_pairs(run.members(2))
    expected = memsub.pairwise_iou(masks, pairs=pairs).numpy()
    across = memsub.pairwise_iou(masks, [run.masks("ordinary", 2, i) for i in range(3)]).numpy()
    first = run.overlap("memorized", 2), run.overlap_control(2)
    monkeypatch.setattr("memsub.runs.pairwise_iou", None)
    for own, control in (first, (run.overlap("memorized", 2), run.overlap_control(2))):
        np.testing.assert_array_equal(own, expected)
        np.testing.assert_array_equal(control["across"], across)
        assert control["random"].shape == (3, *across.shape[1:])
        assert 0 < control["random"].mean() < across.mean()


def test_pictures_are_put_to_the_exact_test_once(run, monkeypatch):
    captions, images = run.prompts.memorized[:2], run.prompts.images("verbatim", 0, 2)
    assert run.replicated(images, captions, images).tolist() == [True, True]
    assert run.replicated(images[::-1], captions, images).tolist() == [False, False]
    monkeypatch.setattr(runs, "by_exact_test", None)
    assert run.replicated(images, captions, images).tolist() == [True, True]


def test_a_truncated_file_does_not_go_unnoticed(run):
    run.grid  # noqa: B018
    (path,) = (run.store.folder / "grid").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{path.name} is truncated"):
        again(run).grid  # noqa: B018


def test_other_content_gives_other_scores(run, metrics, monkeypatch):
    """Captions, training images, metrics, sampling, weights: a change in any is not served what was there."""
    chosen = run.held_out([])
    first = run.scored_memorized(chosen)
    assert first["seed"].tolist() == list(range(len(chosen)))  # one noise for all would make rates hang together
    sampled = []
    real = type(run).sample.fget
    monkeypatch.setattr(type(run), "sample", property(lambda self: sampled.append(1) or real(self)))

    def files() -> int:
        return len(list((run.store.folder / "memorized").glob("*.parquet")))

    pd.testing.assert_frame_equal(again(run).scored_memorized(chosen), first)
    assert files() == 1
    other = again(run)
    other.metrics = Metrics(CopyMetric(metrics.copy.embed, 0.5, metrics.copy.identity), metrics.prompt)
    other.scored_memorized(chosen)
    assert files() == 2
    other = again(run)
    other.references = {i: image[::-1].copy() for i, image in run.references.items()}
    assert not np.allclose(other.scored_memorized(chosen)["copy_similarity"], first["copy_similarity"])
    assert files() == 3
    with memsub.pruned(run.pipe, run.edit("memorized locate")):
        again(run).scored_memorized(chosen)
    assert files() == 4
    Run.scored_memorized(again(run), chosen[:2])
    assert files() == (5 if len(chosen) > 2 else 4)


def test_the_twin_keeps_all_of_its_alignment(run):
    own = run.pipe
    with run.as_twin():
        assert run.denoiser.source.endswith("twin")
        found = run.evaluate(None, run.held_out([]))
    assert run.pipe is own
    assert found["relative_alignment"] == 1


def test_an_edit_that_removes_much_is_seen(new_run):
    run = new_run(sampling={"steps": 10, "batch_size": 6})
    found = run.evaluate(None, run.held_out([]))
    assert found["density"] == 0
    edited = run.evaluate(run.edit("memorized locate", sparsity=1.0), run.held_out([]))
    assert edited["density"] > 0.3
    assert edited["copy_similarity"] < found["copy_similarity"]


def test_training_images_of_a_published_list(new_run, tmp_path):
    """Lists have addresses, not images: those in the folder are used, prompts without one are left out."""
    run = new_run(data={"images": str(tmp_path / "gt")})
    table = pd.DataFrame({"prompt": list("abcdefghijkl"), "kind": "memorized", "index": range(7, 19), "url": "x"})
    run.prompts = memsub.Prompts(table, ("memorized",))
    (tmp_path / "gt").mkdir()
    with pytest.raises(ValueError, match="holds no training image of these prompts"):
        run.references  # noqa: B018
    report = run.split["report"]
    for i in report[:2]:
        save_image(np.full((20, 10, 3), 9, np.uint8), tmp_path / "gt" / str(7 + i) / "0.png")
    assert sorted(run.references) == sorted(report[:2])
    assert run.references[report[0]].shape == (32, 32, 3)
    assert run.held_out([]) == report[:2]
    with pytest.raises(ValueError, match=r"data\.real: a folder of pictures"):
        run.real_images()


def test_random_masks_have_the_same_counts_a_row(run):
    masks = run.masks("memorized", 3, 0)
    control = random_masks(masks, 1)
    np.testing.assert_array_equal(control.density(), masks.density())
    name = next(iter(masks.layers))
    np.testing.assert_array_equal(control.dense(name, 1).sum(1), masks.dense(name, 1).sum(1))
    assert not torch.equal(control.dense(name, 1), random_masks(masks, 2).dense(name, 1))


def test_two_runs_with_one_seed_give_the_same_artifacts(new_run):
    files = []
    for name in ("one", "two"):
        run = new_run(name)
        run.masks("memorized", 3, 0)
        run.edit("memorized 3/0").save(run.folder / "edit.safetensors")
        files.append({p.relative_to(run.folder): p for p in run.folder.rglob("*.safetensors")})
    assert files[0].keys() == files[1].keys()
    assert len(files[0]) == 5
    for name, one in files[0].items():
        two = files[1][name]
        if name.parts[-1] == "edit.safetensors" or name.parts[-2] in ("masks", "edits"):  # whole numbers: to the byte
            assert one.read_bytes() == two.read_bytes(), name
        else:  # sums of floats: threads may add in another order
            a, b = (memsub.ActivationStats.load(p) for p in (one, two))
            assert (a.counts, a.provenance, a.prompts) == (b.counts, b.provenance, b.prompts)
            for layer, sums in a.sums.items():
                torch.testing.assert_close(sums, b.sums[layer], rtol=1e-5, atol=1e-8)
