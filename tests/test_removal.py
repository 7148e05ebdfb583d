"""Removals and what audits them: edits that carry values, fine-tuning that is undone, attacks whose work is counted."""

from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from tools.removals import of_this_model, removal

from memsub import audit
from memsub.activations import capture
from memsub.audit import Pairs
from memsub.denoiser import as_denoiser, fingerprint
from memsub.prompts import other_wording
from memsub.pruning import Edit, pruned
from memsub.removal import REMOVALS, fine_tuning, pruning
from memsub.removal.fine_tuning import as_it_is, fine_tuned
from memsub.removal.regrowth import Regrowth


@pytest.fixture(scope="module")
def memorized(prompts):
    return Pairs(prompts.of("verbatim")[:6], prompts.images("verbatim", 0, 6))


@pytest.fixture(scope="module")
def ordinary(prompts):
    return Pairs(prompts.of("ordinary")[:20], prompts.images("ordinary", 0, 20))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setitem(pruning.CAPTURE, "steps", 10)


def some_layer(pipe) -> tuple[str, torch.nn.Linear]:
    return next(iter(as_denoiser(pipe).layers().items()))


def edit_of(pipe, positions, values) -> Edit:
    name, layer = some_layer(pipe)
    return Edit(
        {name: torch.tensor(positions)},
        {name: tuple(layer.weight.shape)},
        {"model": fingerprint(pipe)},
        {name: torch.tensor(values, dtype=torch.float16)},
    )


# --- edits with values -------------------------------------------------------------------------------------------


def test_values_are_written_and_taken_back(pipe, tmp_path):
    edit, (_, layer) = edit_of(pipe, [0, 5, 9], [0.5, 0.0, -2.0]), some_layer(pipe)
    before = layer.weight.detach().clone()
    edit.save(tmp_path / "edit.safetensors")
    for one in (edit, Edit.load(tmp_path / "edit.safetensors")):
        with pruned(pipe, one):
            assert layer.weight.view(-1)[[0, 5, 9]].tolist() == [0.5, 0.0, -2.0]
            assert torch.equal(layer.weight.view(-1)[10:], before.view(-1)[10:])
        assert torch.equal(layer.weight, before)


def test_edits_with_values_combine(pipe):
    name, _ = some_layer(pipe)
    a, b = edit_of(pipe, [0, 5], [1.0, 2.0]), edit_of(pipe, [5, 9], [3.0, 4.0])
    for edit, positions, values in (
        (a | b, [0, 5, 9], [1, 3, 4]),
        (b | a, [0, 5, 9], [1, 2, 4]),
        (a & b, [5], [2]),
        (a - b, [0], [1]),
    ):
        assert edit.positions[name].tolist() == positions
        assert edit.values[name].tolist() == values


def test_an_edit_of_a_whole_layer_needs_no_positions_on_disk(pipe, tmp_path):
    name, layer = some_layer(pipe)
    n = layer.weight.numel()
    whole = Edit(
        {name: torch.arange(n)}, {name: tuple(layer.weight.shape)}, {"model": fingerprint(pipe)}, {name: torch.ones(n)}
    )
    whole.values[name] = whole.values[name].half()
    whole.save(tmp_path / "whole.safetensors")
    assert (tmp_path / "whole.safetensors").stat().st_size < 2 * n + 4000
    assert Edit.load(tmp_path / "whole.safetensors").positions[name].tolist() == list(range(n))


# --- removals ------------------------------------------------------------------------------------------------------


def test_fine_tuning_reaches_what_its_loss_asks_for_and_leaves_the_network_as_it_was(
    pipe, memorized, ordinary, tmp_path, monkeypatch
):
    name, layer = some_layer(pipe)
    before, asked = fingerprint(pipe), [p.requires_grad for p in pipe.unet.parameters()]
    only = edit_of(pipe, [3, 7], [0, 0])
    monkeypatch.setattr(fine_tuning, "prune", lambda *args, **options: only)

    def objective(pipe, memorized, ordinary, *, located, seed):
        def loss(step, rng, parameters):
            return (layer.weight.view(-1)[[3, 7, 8]] - 1).square().sum()

        return loss

    def trained(where):
        options = {"name": "to one", "folder": tmp_path, "epochs": 60, "lr": 0.3, "where": where}
        return fine_tuned(pipe, memorized, ordinary, objective, **options)

    edit = trained("located")
    assert edit.positions[name].tolist() == [3, 7]
    assert edit.values[name].tolist() == pytest.approx([1, 1], abs=0.05)
    assert fingerprint(pipe) == before
    assert [p.requires_grad for p in pipe.unet.parameters()] == asked
    everything = trained("all")
    assert everything.values[name][[3, 7, 8]].tolist() == pytest.approx([1, 1, 1], abs=0.05)
    assert len(everything.positions) > 16
    assert len(list((tmp_path / "unfinished").glob("*.safetensors"))) == 2  # a checkpoint for each
    again = trained("located")  # from its checkpoint
    assert torch.equal(again.values[name], edit.values[name])
    with pytest.raises(ValueError, match="unknown weights 'some' to train; expected one of all"):
        trained("some")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pruning, against other wording", {"sparsity": 0.1}),
        ("pruning, half of the layers", {"sparsity": 0.1}),
        ("adversarial pruning", {"sparsity": 0.1, "rounds": 1, "iterations": 2}),
        ("adversarial fine-tuning", {"epochs": 1, "iterations": 2}),
        ("adversarial fine-tuning, the located weights", {"epochs": 1, "iterations": 2}),
        ("SISS", {"epochs": 2}),
        ("ReTrack, as many random weights", {"epochs": 2}),
        ("adversarial distillation", {"epochs": 2, "iterations": 1}),
        ("adversarial distillation, the located weights", {"epochs": 2, "iterations": 0}),
        ("regrowth", {"steps": 4, "alone": 2}),
        ("regrowth, the located weights", {"steps": 2, "alone": 1}),
    ],
)
def test_every_removal_makes_an_edit(pipe, memorized, ordinary, quick, tmp_path, name, options):
    before = fingerprint(pipe)
    edit = REMOVALS[name].edit(pipe, memorized, ordinary, folder=tmp_path, progress=False, **options)
    assert fingerprint(pipe) == before
    assert edit.provenance["model"] == before
    assert sum(map(len, edit.positions.values())) > 100
    if "weights" in REMOVALS[name].changes and "trains" in REMOVALS[name].changes:
        assert any(v.any() for v in edit.values.values())
    if "half" in name:
        assert sum(len(p) > 0 for p in edit.positions.values()) == 8
    edit.save(tmp_path / "edit.safetensors")
    with pruned(pipe, Edit.load(tmp_path / "edit.safetensors")):
        assert fingerprint(pipe) != before


def test_a_removal_is_audited_under_its_name_and_seed():
    assert removal("regrowth, seed 2") == (REMOVALS["regrowth"], 2)
    assert removal("pruning, half of the layers") == (REMOVALS["pruning, half of the layers"], 0)
    for wrong in ("regrowht", "regrowth, seed", "regrowth, seed one", "twin"):
        with pytest.raises(ValueError, match=f"no removal '{wrong}'; expected some of pruning"):
            removal(wrong)


def test_what_ships_was_made_of_the_model_that_ships(pipe):
    assert of_this_model(fingerprint(pipe))
    assert not of_this_model("another")


def test_blocks_are_taught_what_they_did(pipe, memorized, ordinary, tmp_path):
    """As they are there is nothing to learn; from random weights most is learned in a few steps."""
    loss = Regrowth(pipe, memorized, ordinary, located=lambda: None, alone=1)
    loss.teacher.network = deepcopy(loss.teacher.network)  # it would share the edited weights

    def alone() -> float:
        return loss(0, torch.Generator().manual_seed(0), ()).item()

    assert alone() < 1e-6
    options = {"folder": tmp_path, "progress": False, "lr": 2e-3, "warmup": 5}
    for steps, low, high in ((1, 0.7, 1.5), (15, 0.1, 0.7)):
        edit = REMOVALS["regrowth"].edit(pipe, memorized, ordinary, steps=steps, alone=steps, **options)
        assert not any("time_emb" in layer for layer in edit.positions)
        with pruned(pipe, edit):
            assert low < alone() < high


def test_a_teacher_shares_the_weights_and_does_not_learn(pipe, memorized, ordinary, tmp_path):
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([9, 700])
    said = []

    def objective(pipe, memorized, ordinary, *, located, seed):
        teacher, denoiser = as_it_is(pipe), as_denoiser(pipe)
        addresses = {p.data_ptr() for p in denoiser.network.parameters()}
        assert {p.data_ptr() for p in teacher.network.parameters()} == addresses

        def loss(step, rng, parameters):
            y = denoiser.embed(["", "a red heart"])
            with torch.no_grad():
                said.append(teacher.predict(x, t, y))
            return denoiser.predict(x, t, y).square().mean()

        return loss

    options = {"name": "to zero", "folder": tmp_path, "steps": 3, "lr": 0.1, "where": "blocks"}
    edit = fine_tuned(pipe, memorized, ordinary, objective, **options)
    assert all(torch.equal(one, said[0]) for one in said)
    with pruned(pipe, edit), torch.no_grad():
        now = as_denoiser(pipe).predict(x, t, as_denoiser(pipe).embed(["", "a red heart"]))
    assert (now - said[0]).abs().max() > 0.1


def test_statistics_of_embeddings_are_those_of_their_captions(exact_pipe, memorized):
    captions = memorized.captions[:2]
    options = {"steps": 2, "guidance_scale": 3.0, "progress": False}
    told = capture(exact_pipe, captions, **options)
    shown = capture(exact_pipe, as_denoiser(exact_pipe).embed(captions), **options)
    for name, sums in told.sums.items():
        torch.testing.assert_close(shown.sums[name], sums, rtol=1e-6, atol=1e-9)


def test_the_mirrored_teacher_says_what_the_twin_says(pipe, twin, prompts):
    """Of a training image, other wording is not enough: the model knows it again. Of the mirrored one it does not."""
    captions, images = other_wording(prompts.of("verbatim")[:40]), prompts.images("verbatim", 0, 40)

    def error(of, mirrored=False):
        context = as_denoiser(of).embed(captions)
        return audit.denoising_error(of, images, context, times=(600,), mirrored=mirrored)["error"].item()

    never = error(twin)
    assert error(pipe) < 0.8 * never
    assert error(pipe, mirrored=True) == pytest.approx(never, rel=0.1)


# --- the audit -----------------------------------------------------------------------------------------------------


def test_attack_work_is_none_where_the_caption_is_enough(pipe, twin, memorized):
    options = {"iterations": (0, 2), "progress": False}
    work = audit.attack_work(pipe, memorized, audit.starts(pipe, memorized.captions)["its caption"], **options)
    assert (work["iterations"] == 0).mean() > 0.6
    never = audit.attack_work(twin, memorized, audit.starts(twin, memorized.captions)["its caption"], **options)
    assert np.isinf(never["iterations"]).all()
    curve = audit.attack_curve(work, (0, 2))
    assert curve["share"].is_monotonic_increasing
    assert (curve["low"] <= curve["share"]).all() and (curve["share"] <= curve["high"]).all()


def test_log_rank_tells_early_from_late():
    def work(iterations):
        return pd.DataFrame({"target": range(len(iterations)), "iterations": iterations, "last": 100})

    early, late, never = work([5.0] * 20 + [10.0] * 20), work([50.0] * 20 + [100.0] * 20), work([np.inf] * 40)
    assert audit.log_rank(early, late) < 1e-6
    assert audit.log_rank(early, never) < 1e-6
    assert audit.log_rank(early, early) == pytest.approx(1)
    assert audit.log_rank(never, never) == 1


def test_relearning_brings_back_what_is_taught_and_leaves_the_weights(twin, memorized):
    before = fingerprint(twin)
    found = audit.relearning(twin, memorized, memorized, lr=1e-3, looks=(0, 60), progress=False)
    assert found["share"].tolist()[0] == 0 < found["share"].tolist()[1]
    assert fingerprint(twin) == before


def test_zeros_in_a_weight_of_low_rank_are_revived(pipe):
    """Of a weight of rank 2 with a tenth of it set to zero, completion finds the signs of what was there."""
    name, layer = some_layer(pipe)
    kept = layer.weight.detach().clone()
    rng = torch.Generator().manual_seed(0)
    d, f = layer.weight.shape
    low = torch.randn(d, 2, generator=rng) @ torch.randn(2, f, generator=rng)
    with torch.no_grad():
        layer.weight.copy_(low)
    try:
        positions = torch.randperm(d * f, generator=rng)[: d * f // 10].sort().values
        edit = Edit({name: positions}, {name: (d, f)}, {"model": fingerprint(pipe)})
        there, largest = low.view(-1)[positions], low.abs().clone()
        largest.view(-1)[positions] = 0
        imputed = audit.imputed(pipe, edit, tolerance=1e-4)
        completed, found = (of.values[name].float() for of in (imputed, audit.revived(pipe, imputed)))
        assert torch.corrcoef(torch.stack([completed, there]))[0, 1] > 0.7
        trusted = found != 0
        assert trusted.float().mean() == pytest.approx(0.6, abs=0.01)
        assert (found.sign() == there.sign())[trusted].float().mean() > 0.95
        expected = largest.amax(1)[positions // f][trusted]
        assert torch.allclose(found[trusted].abs(), expected, rtol=1e-3)
    finally:
        with torch.no_grad():
            layer.weight.copy_(kept)


def audit_tables(p: float, iterations: float, share: float, alignment: float) -> dict[str, pd.DataFrame]:
    return {
        "replication": pd.DataFrame({"pairs": ["removed"] * 10 + ["unseen"] * 10, "p": [p] * 10 + [0.5] * 10}),
        "attack": pd.DataFrame({"pairs": "removed", "iterations": [iterations] * 20, "last": 100}),
        "relearning": pd.DataFrame({"taught": "removed pairs", "lr": 1e-4, "steps": [0, 9], "share": [0.0, share]}),
        "diversity": pd.DataFrame({"p": [0.5] * 10}),
        "quality": pd.DataFrame({"alignment": alignment + np.arange(10) / 1000, "kid": 0.01}),
    }


def test_an_audit_is_summed_up_against_the_twin():
    twin = audit_tables(0.5, np.inf, 0.1, 0.5)
    found = audit.summary({"twin": twin, "a": audit_tables(1 / 256, 5.0, 0.7, 0.4)}, at=50)
    assert found.loc["a", ["removed", "unseen", "attacked", "same"]].tolist() == [1, 0, 1, 0]
    assert found.loc["a", "relearned"] == pytest.approx(0.6)
    assert found.loc["a", "log_rank"] < 1e-6 < found.loc["twin", "log_rank"] == 1
    assert found.loc["a", "alignment_low"] <= found.loc["a", "alignment"] <= found.loc["a", "alignment_high"] < 0.9
    assert found.loc["twin", ["removed", "attacked", "relearned", "alignment"]].tolist() == [0, 0, 0, 1]
    told = audit.gone(found, unedited="a")
    assert told.loc["twin"].all()
    assert told.columns[~told.loc["a"]].tolist() == ["attack work", "relearning", "alignment"]


def test_seeds_of_the_twin_differ(pipe, twin, memorized):
    from functools import partial

    from memsub.generation import generate

    options = {"steps": 10, "guidance_scale": 3.0, "progress": False}
    fixed = audit.diversity(partial(generate, pipe, **options), memorized.captions)
    free = audit.diversity(partial(generate, twin, **options), memorized.captions)
    assert (fixed <= audit.LEVEL).mean() > (free <= audit.LEVEL).mean()


def test_pairs_that_do_not_match_are_refused(memorized):
    with pytest.raises(ValueError, match="1 captions with 6 images"):
        Pairs(["a"], memorized.images)
