"""Removals and what audits them: edits that carry values, fine-tuning that is undone, attacks whose work is counted."""

from collections import Counter
from copy import deepcopy
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from tools.removals import MADE, of_this_model, removal

from memsub.activations import capture
from memsub.measure.exact import LEVEL
from memsub.measure.intervals import interval
from memsub.measure.verdict import by_exact_test
from memsub.models import Conditioning, as_denoiser, fingerprint, generate
from memsub.pruning import Edit, pruned
from memsub.testbed.world import WORLD
from memsub_extra.attacks import EmbeddingAttack
from memsub_extra.notebooks.equivalence import MARGINS, verdict
from memsub_extra.prompt_lists.wordings import wordings_of
from memsub_extra.unlearning import audit, fine_tuning, plots, pruning, shipped
from memsub_extra.unlearning.attack_work import attack_curve, attack_work, log_rank, starts
from memsub_extra.unlearning.fine_tuning import dropped, either, fine_tuned, teacher_of
from memsub_extra.unlearning.losses import Encoded
from memsub_extra.unlearning.pairs import SAMPLING, Pairs, Subjects
from memsub_extra.unlearning.price import OF_A_STEP, price
from memsub_extra.unlearning.recognition import denoising_error
from memsub_extra.unlearning.regrowth import Regrowth, block_edit, reinitialized
from memsub_extra.unlearning.relearning import relearning
from memsub_extra.unlearning.relearning import shares as relearning_shares
from memsub_extra.unlearning.removals import REMOVALS, displayed
from memsub_extra.unlearning.revival import imputed, revived
from micro import micro_pipeline

JUDGE = by_exact_test(WORLD)


@pytest.fixture(scope="module")
def memorized(prompts):
    return Pairs(
        prompts.of("verbatim")[:6], prompts.images("verbatim", 0, 6), wordings_of(prompts.rows("verbatim")[:6])
    )


@pytest.fixture(scope="module")
def ordinary(prompts):
    return Pairs(prompts.of("ordinary")[:20], prompts.images("ordinary", 0, 20))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setitem(pruning.CAPTURE, "steps", 10)
    # Rows of 64 weights: the paper's 1 % of them is none.
    monkeypatch.setattr(fine_tuning, "prune", partial(pruning.prune, sparsity=0.1))


def first_layer(pipe) -> tuple[str, torch.nn.Linear]:
    return next(iter(as_denoiser(pipe).layers().items()))


def edit_of(pipe, positions, values) -> Edit:
    name, layer = first_layer(pipe)
    return Edit(
        {name: torch.tensor(positions)},
        {name: tuple(layer.weight.shape)},
        {"model": fingerprint(pipe)},
        {name: torch.tensor(values, dtype=torch.float16)},
    )


# --- edits with values -------------------------------------------------------------------------------------------


def test_values_are_written_and_taken_back(micro, tmp_path):
    edit, (_, layer) = edit_of(micro, [0, 5, 9], [0.5, 0.0, -2.0]), first_layer(micro)
    before = layer.weight.detach().clone()
    edit.save(tmp_path / "edit.safetensors")
    for one in (edit, Edit.load(tmp_path / "edit.safetensors")):
        with pruned(micro, one):
            assert layer.weight.view(-1)[[0, 5, 9]].tolist() == [0.5, 0.0, -2.0]
            assert torch.equal(layer.weight.view(-1)[10:], before.view(-1)[10:])
        assert torch.equal(layer.weight, before)


def test_edits_with_values_combine(micro):
    name, _ = first_layer(micro)
    a, b = edit_of(micro, [0, 5], [1.0, 2.0]), edit_of(micro, [5, 9], [3.0, 4.0])
    for edit, positions, values in (
        (a | b, [0, 5, 9], [1, 3, 4]),
        (b | a, [0, 5, 9], [1, 2, 4]),
        (a & b, [5], [2]),
        (a - b, [0], [1]),
    ):
        assert edit.positions[name].tolist() == positions
        assert edit.values[name].tolist() == values


def test_an_edit_of_a_whole_layer_needs_no_positions_on_disk(micro, tmp_path):
    name, layer = first_layer(micro)
    n, shape = layer.weight.numel(), tuple(layer.weight.shape)
    whole = Edit({name: torch.arange(n)}, {name: shape}, {"model": fingerprint(micro)}, {name: torch.ones(n).half()})
    whole.save(tmp_path / "whole.safetensors")
    assert (tmp_path / "whole.safetensors").stat().st_size < 2 * n + 4000
    assert Edit.load(tmp_path / "whole.safetensors").positions[name].tolist() == list(range(n))


# --- removals ------------------------------------------------------------------------------------------------------


def test_fine_tuning_reaches_what_its_loss_asks_for_and_leaves_the_network_as_it_was(
    micro, memorized, ordinary, tmp_path, monkeypatch
):
    name, layer = first_layer(micro)
    before, required = fingerprint(micro), [p.requires_grad for p in micro.unet.parameters()]
    only = edit_of(micro, [3, 7], [0, 0])
    monkeypatch.setattr(fine_tuning, "prune", lambda *args, **options: only)

    def objective(pipe, memorized, ordinary, *, located, seed):
        def loss(step, rng, parameters):
            return (layer.weight.view(-1)[[3, 7, 8]] - 1).square().sum()

        return loss

    def trained(where):
        options = {"name": "to one", "folder": tmp_path, "epochs": 60, "lr": 0.3, "where": where}
        return fine_tuned(micro, memorized, ordinary, objective, **options)

    edit = trained("located")
    assert edit.positions[name].tolist() == [3, 7]
    assert edit.values[name].tolist() == pytest.approx([1, 1], abs=0.05)
    assert fingerprint(micro) == before
    assert [p.requires_grad for p in micro.unet.parameters()] == required
    everything = trained("all")
    assert everything.values[name][[3, 7, 8]].tolist() == pytest.approx([1, 1, 1], abs=0.05)
    assert len(everything.positions) > len(as_denoiser(micro).layers())
    assert len(list((tmp_path / "unfinished").glob("*.safetensors"))) == 2  # a checkpoint for each
    again = trained("located")  # from its checkpoint
    assert torch.equal(again.values[name], edit.values[name])
    with pytest.raises(ValueError, match="unknown where 'some'; expected one of all"):
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
        ("training anew", {"steps": 2}),
        ("further training", {"epochs": 2}),
    ],
)
def test_every_removal_makes_an_edit(micro, memorized, ordinary, quick, tmp_path, name, options):
    before = fingerprint(micro)
    edit = REMOVALS[name].edit(micro, memorized, ordinary, folder=tmp_path, progress=False, **options)
    assert fingerprint(micro) == before
    assert edit.provenance["model"] == before
    assert sum(map(len, edit.positions.values())) > 100
    if "weights" in REMOVALS[name].changes and "trains" in REMOVALS[name].changes:
        assert any(v.any() for v in edit.values.values())
    if "half" in name:
        assert sum(len(p) > 0 for p in edit.positions.values()) == 2
    edit.save(tmp_path / "edit.safetensors")
    with pruned(micro, Edit.load(tmp_path / "edit.safetensors")):
        assert fingerprint(micro) != before


def test_adversarial_pruning_resumes_where_it_was_killed(micro, memorized, ordinary, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "TOGETHER", 4)  # of six: two parts in each of two rounds
    attacked, attack = [], pruning.embedding_attack

    def counted(pipe, images, *args, **options):
        if len(attacked) == stop:
            raise KeyboardInterrupt
        attacked.append(len(images))
        return attack(pipe, images, *args, **options)

    monkeypatch.setattr(pruning, "embedding_attack", counted)

    def made(folder: str) -> bytes:
        attacked.clear()
        options = {"sparsity": 0.1, "rounds": 2, "iterations": 1, "progress": False}
        edit = REMOVALS["adversarial pruning"].edit(micro, memorized, ordinary, folder=tmp_path / folder, **options)
        edit.save(tmp_path / "edit.safetensors")
        return (tmp_path / "edit.safetensors").read_bytes()

    stop, before = None, fingerprint(micro)
    whole = made("whole")
    assert attacked == [4, 2, 4, 2]
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        made("killed")
    assert fingerprint(micro) == before
    stop = None
    assert made("killed") == whole
    assert attacked == [2]
    assert made("killed") == whole and not attacked


@pytest.mark.parametrize("name", OF_A_STEP)
def test_a_price_knows_the_rows_of_a_step(micro, prompts, ordinary, quick, tmp_path, monkeypatch, name):
    rows, within, fit, step, kept = Counter(), [], fine_tuning.fit, EmbeddingAttack._step, Encoded.rows

    def only_of_steps(module, loss, **options):
        rows.clear()  # of what is made before the training
        return fit(module, loss, **options)

    def attacked(self, part):
        within.append(part)
        step(self, part)
        within.pop()

    def count(module, args, kwargs):
        kind = "attacked" if within else "trained" if torch.is_grad_enabled() else "watched"
        rows[kind] += len(args[0] if args else kwargs["sample"])

    def chosen(self, n, rng):
        rows["ordinary"] += n
        return kept(self, n, rng)

    monkeypatch.setattr(fine_tuning, "fit", only_of_steps)
    monkeypatch.setattr(EmbeddingAttack, "_step", attacked)
    monkeypatch.setattr(Encoded, "rows", chosen)
    n, options = fine_tuning.BATCH, {"steps": 1}
    if name == "regrowth":
        options = {"steps": 2, "alone": 1}  # the blocks alone beside the teacher, then all of them together
    pairs = Pairs(
        prompts.of("verbatim")[:n], prompts.images("verbatim", 0, n), wordings_of(prompts.rows("verbatim")[:n])
    )
    hook = micro.unet.register_forward_pre_hook(count, with_kwargs=True)
    try:
        REMOVALS[name].edit(micro, pairs, ordinary, folder=tmp_path, progress=False, **options)
    finally:
        hook.remove()
    known = OF_A_STEP[name]
    expected = {"trained": known.trained, "attacked": known.attacked, "watched": known.watched}
    if name == "regrowth":
        expected |= {"watched": 1800 / 400 * known.watched}
        rows["ordinary"] /= 2
    assert rows == {key: count for key, count in (expected | {"ordinary": known.ordinary}).items() if count}


def test_adversarial_pruning_is_priced_by_its_attacks():
    cost = price("adversarial pruning", "sd14", 500)
    assert (cost.steps, cost.pairs, cost.ordinary, cost.wordings) == (150, 500, 0, False)
    attacks = 150 * 500 * 4 * 3  # iterations, pairs, noises, and a row's gradient with checkpointing
    assert cost.minutes == pytest.approx((attacks + 4 * 500 * 20) * 6.25 / 2 / 60_000, rel=0.01)


def test_pairs_that_a_removal_cannot_take_are_refused_before_anything_runs(micro, memorized, ordinary, monkeypatch):
    monkeypatch.setattr(fine_tuning, "fingerprint", lambda pipe: pytest.fail("began"))
    large = Pairs(ordinary.captions, np.zeros((20, 64, 64, 3), np.uint8))
    with pytest.raises(
        ValueError, match="the images of the ordinary pairs have 64 x 64 pixels, those of the model 32 x 32"
    ):
        REMOVALS["regrowth"].edit(micro, memorized, large, folder="x")
    both = Pairs(ordinary.captions[:19] + memorized.captions[:1], ordinary.images)
    with pytest.raises(ValueError, match="1 captions are both to remove and among the ordinary pairs"):
        REMOVALS["regrowth"].edit(micro, memorized, both, folder="x")


def test_removals_are_found_by_their_names():
    assert list(REMOVALS)[:5] == [
        "pruning",
        "pruning, against ordinary",
        "pruning, against other wording",
        "pruning, half of the layers",
        "adversarial pruning",
    ]
    assert len(REMOVALS) == 25
    assert REMOVALS["pruning at 1 %"].options == {"sparsity": 0.01}
    assert REMOVALS["SISS"].options["where"] == "all"
    assert REMOVALS["SISS, the located weights"].changes == "trains the located weights"
    assert REMOVALS["regrowth, as many random weights"].options == REMOVALS["regrowth"].options | {"where": "random"}
    assert set(shipped.whole(REMOVALS)) >= {"pruning", "regrowth", "training anew", "further training"}
    assert displayed("training anew") == "training, re-initialized"
    assert displayed("SISS, as many random weights") == "SISS, density-matched random weights"
    with pytest.raises(ValueError, match=r"unknown removal 'regrowht'\. Did you mean 'regrowth'"):
        REMOVALS.find("regrowht")


def test_a_removal_is_audited_under_its_name_and_seed():
    assert removal("regrowth, seed 2") == (REMOVALS["regrowth"], 2)
    assert removal("pruning, half of the layers") == (REMOVALS["pruning, half of the layers"], 0)
    assert [removal(name)[1] for name in MADE].count(0) == len(MADE) - 2
    assert not [name for name in MADE if "weights" in name]  # variants that no document shows
    for wrong in ("regrowht", "regrowth, seed", "regrowth, seed one", "twin"):
        with pytest.raises(ValueError, match=f"no removal '{wrong}'; expected some of pruning"):
            removal(wrong)


def test_what_ships_was_made_of_the_model_that_ships(pipe):
    assert of_this_model(fingerprint(pipe))
    assert not of_this_model("another")
    assert list(shipped.audits())[:3] == ["twin", "other", "unedited"]
    assert list(shipped.edits()) == ["pruning"], "what takes minutes to make does not ship"
    assert set(shipped.audits()) - {"twin", "other", "unedited"} == set(shipped.costs())
    assert all(image.dtype == np.uint8 for image in shipped.images().values())
    by_model = dict(iter(shipped.long_attack().groupby("model")))  # as a second `ship` reads it, also where none ships
    assert set(by_model) <= set(shipped.audits())


def test_the_membership_test_that_ships_says_what_its_intervals_say():
    table, p = shipped.membership(), shipped.membership_p()
    assert table["model"].unique().tolist()[:3] == ["twin", "other", "unedited"]
    assert set(table["model"]) >= {*shipped.edits()}
    assert table["caption"].unique().tolist() == list(shipped.GIVEN)
    assert table.groupby("caption")["model"].apply(list).map(tuple).nunique() == 1, "each caption asks all models"
    others = table[table["model"] != "twin"]
    bounds = zip(others["against_twin_low"], others["against_twin_high"], strict=True)
    assert others["verdict"].tolist() == [verdict(*each, MARGINS["mean p"]) for each in bounds]
    assert (table["holm"] >= table["ks"]).all()
    assert p["p"].between(audit.SMALLEST, 1).all()


def test_a_membership_test_ships_with_its_p_values(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "folder", lambda: tmp_path)
    for read in (shipped.membership, shipped.membership_p):
        read.cache_clear()
    try:
        assert shipped.membership().empty, "none ships yet"
        shipped.membership.cache_clear()
        p = pd.DataFrame({"model": "twin", "caption": "its own", "target": [0, 1], "p": [0.5, 1.0]})
        shipped.ship_membership([{"model": "twin", "caption": "its own", "mean": 0.75}], p)
        assert shipped.membership()["mean"].tolist() == [0.75]
        pd.testing.assert_frame_equal(shipped.membership_p(), p)
    finally:
        for read in (shipped.membership, shipped.membership_p):
            read.cache_clear()


def test_rows_of_two_conditionings_are_chosen_one_by_one():
    first, second = (Conditioning(torch.full((n, 1, 1), value)) for n, value in ((1, 0.0), (3, 5.0)))
    wanted = torch.tensor([True, False, True])
    assert either(first, second, wanted).embeddings.flatten().tolist() == [0, 5, 0]
    assert either(second, first, wanted).embeddings.flatten().tolist() == [5, 0, 5]
    many = Conditioning(torch.ones(400, 1, 1))
    kept = dropped(many, Conditioning(torch.zeros(1, 1, 1)), torch.Generator().manual_seed(0)).embeddings.mean().item()
    assert kept == pytest.approx(0.9, abs=0.05)


def test_a_block_is_reinitialized_and_put_in_place(micro):
    name = next(name for name in fine_tuning.blocks(as_denoiser(micro)) if "attentions" in name)
    block, before = fine_tuning.blocks(as_denoiser(micro))[name], fingerprint(micro)
    student = reinitialized(block, torch.Generator().manual_seed(0))
    trained = [weight.shape for weight in student.parameters() if weight.requires_grad]
    edit = block_edit(micro, name, student)
    assert list(edit.shapes.values()) == [tuple(shape) for shape in trained]
    layer, values = next(iter(edit.values.items()))
    with pruned(micro, edit):
        weight = dict(as_denoiser(micro).network.named_modules())[layer].weight
        assert torch.equal(weight.reshape(-1).half(), values)
    assert fingerprint(micro) == before
    assert torch.equal(
        block_edit(micro, name, reinitialized(block, torch.Generator().manual_seed(0))).values[layer], values
    )


def test_blocks_are_taught_what_they_did(micro, memorized, ordinary, tmp_path):
    """As they are there is nothing to learn; from random weights most is learned in a few steps."""
    loss = Regrowth(micro, memorized, ordinary, located=lambda: None, alone=1)
    loss.teacher.network = deepcopy(loss.teacher.network)  # it would share the edited weights

    def alone() -> float:
        return loss(0, torch.Generator().manual_seed(0), ()).item()

    assert alone() < 1e-6
    options = {"folder": tmp_path, "progress": False, "lr": 3e-2, "warmup": 3}
    for steps, low, high in ((1, 0.7, 2.5), (8, 0.1, 0.7)):
        edit = REMOVALS["regrowth"].edit(micro, memorized, ordinary, steps=steps, alone=steps, **options)
        assert not any("time_emb" in layer for layer in edit.positions)
        with pruned(micro, edit):
            assert low < alone() < high


def test_a_teacher_shares_the_weights_and_does_not_learn(micro, memorized, ordinary, tmp_path):
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([9, 700])
    said = []

    def objective(pipe, memorized, ordinary, *, located, seed):
        teacher, denoiser = teacher_of(pipe), as_denoiser(pipe)
        addresses = {p.data_ptr() for p in denoiser.network.parameters()}
        assert {p.data_ptr() for p in teacher.network.parameters()} == addresses

        def loss(step, rng, parameters):
            y = denoiser.embed(["", "a red heart"])
            with torch.no_grad():
                said.append(teacher.predict(x, t, y))
            return denoiser.predict(x, t, y).square().mean()

        return loss

    options = {"name": "to zero", "folder": tmp_path, "steps": 3, "lr": 0.1, "where": "blocks"}
    edit = fine_tuned(micro, memorized, ordinary, objective, **options)
    assert all(torch.equal(one, said[0]) for one in said)
    with pruned(micro, edit), torch.no_grad():
        now = as_denoiser(micro).predict(x, t, as_denoiser(micro).embed(["", "a red heart"]))
    assert (now - said[0]).abs().max() > 0.1


def test_statistics_of_embeddings_are_those_of_their_captions(exact_micro, memorized):
    captions = memorized.captions[:2]
    options = {"steps": 2, "guidance_scale": 3.0, "progress": False}
    by_caption = capture(exact_micro, captions, **options)
    by_embedding = capture(exact_micro, as_denoiser(exact_micro).embed(captions), **options)
    for name, sums in by_caption.sums.items():
        torch.testing.assert_close(by_embedding.sums[name], sums, rtol=1e-6, atol=1e-9)


def test_the_mirrored_teacher_says_what_the_twin_says(pipe, twin, prompts):
    """Of a training image other wording is not enough: the model recognizes it. The mirrored one it does not."""
    captions, images = prompts.rows("verbatim")["content"].tolist()[:40], prompts.images("verbatim", 0, 40)

    def error(model, mirrored=False):
        context = as_denoiser(model).embed(captions)
        return denoising_error(model, images, context, times=(600,), mirrored=mirrored)["error"].item()

    never = error(twin)
    assert error(pipe) < 0.8 * never
    assert error(pipe, mirrored=True) == pytest.approx(never, rel=0.1)


# --- the audit -----------------------------------------------------------------------------------------------------


def test_attack_work_is_none_where_the_caption_is_enough(pipe, twin, memorized):
    few, options = memorized.first(2), {"iterations": (0, 1), "noises": 1, "progress": False}
    work = attack_work(pipe, few, starts(pipe, few.captions)["its caption"], JUDGE, **options)
    assert (work["iterations"] == 0).mean() > 0.6
    never = attack_work(twin, few, starts(twin, few.captions)["its caption"], JUDGE, **options)
    assert np.isinf(never["iterations"]).all()
    curve = attack_curve(work, (0, 1))
    assert curve["share"].is_monotonic_increasing
    assert (curve["low"] <= curve["share"]).all() and (curve["share"] <= curve["high"]).all()


def test_a_target_is_attacked_no_further_once_all_its_seeds_replicate(micro, memorized):
    """By a judge whose verdicts are known: target 0 at once, target 1 by one seed alone, the others at the end."""
    asked = []

    def judge(images, captions, references):
        asked.append(list(captions))
        late = len(asked) > 4  # the third look: two seeds a look
        return np.array([c == memorized.captions[0] or late for c in captions]) | (
            np.array([c == memorized.captions[1] for c in captions]) & (len(asked) % 2 == 0)
        )

    start = starts(micro, memorized.captions)["noise"]
    sampling = SAMPLING | {"steps": 1}
    options = {"iterations": (0, 1, 2), "sampling": sampling, "noises": 1, "progress": False}
    work = attack_work(micro, memorized, start, judge, **options)
    assert work["iterations"].tolist() == [0, 2, 2, 2, 2, 2]
    assert work["last"].eq(2).all()
    assert [len(captions) for captions in asked] == [6, 6, 5, 5, 5, 5]
    assert attack_curve(work, (0, 1, 2, 50))["share"].tolist() == pytest.approx([1 / 6, 1 / 6, 1])


def test_the_attack_begins_with_the_four_starts(micro, memorized):
    beginnings = starts(micro, memorized.captions)
    by_caption = beginnings["its caption"].embeddings
    assert torch.equal(beginnings["another caption"].embeddings, by_caption.roll(1, 0))
    assert torch.equal(beginnings["the empty prompt"].embeddings[3], as_denoiser(micro).embed([""]).embeddings[0])
    assert beginnings["noise"].embeddings.mean().item() == pytest.approx(by_caption.mean().item(), abs=0.02)
    assert beginnings["noise"].embeddings.std().item() == pytest.approx(by_caption.std().item(), rel=0.05)


def test_log_rank_tells_early_from_late():
    def work(iterations):
        return pd.DataFrame({"target": range(len(iterations)), "iterations": iterations, "last": 100})

    early, late, never = work([5.0] * 20 + [10.0] * 20), work([50.0] * 20 + [100.0] * 20), work([np.inf] * 40)
    assert log_rank(early, late) < 1e-6
    assert log_rank(early, never) < 1e-6
    assert log_rank(early, early) == pytest.approx(1)
    assert log_rank(never, never) == 1


def test_relearning_brings_back_what_is_taught_and_leaves_the_weights(pipe, prompts):
    """Three pairs that the shipped pruned model does not replicate come back in four steps."""
    audited = shipped.audits()["pruning"]["replication"].query("pairs == 'forget set' and seed == 0")
    places = audited.loc[audited["p"] > 0.05, "target"].tolist()[:3]
    captions, images = prompts.of("verbatim"), prompts.images("verbatim", 0, max(places) + 1)
    lost = Pairs([captions[i] for i in places], images[places])
    with pruned(pipe, Edit.load(shipped.edits()["pruning"])):
        before = fingerprint(pipe)
        table = relearning(pipe, lost, lost, JUDGE, lr=3e-4, looks=(0, 4), progress=False)
        assert fingerprint(pipe) == before
    share = relearning_shares(table)
    assert share["steps"].tolist() == [0, 4] and share["n"].tolist() == [3, 3]
    assert share["share"].tolist()[0] == 0 < share["share"].tolist()[1]


def test_zeros_in_a_weight_of_low_rank_are_revived(micro):
    """Of a weight of rank 2 with a tenth of it set to zero, completion finds the signs of what was there."""
    name, layer = first_layer(micro)
    kept = layer.weight.detach().clone()
    rng = torch.Generator().manual_seed(0)
    d, f = layer.weight.shape
    low = torch.randn(d, 2, generator=rng) @ torch.randn(2, f, generator=rng)
    with torch.no_grad():
        layer.weight.copy_(low)
    try:
        positions = torch.randperm(d * f, generator=rng)[: d * f // 10].sort().values
        edit = Edit({name: positions}, {name: (d, f)}, {"model": fingerprint(micro)})
        before, largest = low.view(-1)[positions], low.abs().clone()
        largest.view(-1)[positions] = 0
        filled = imputed(micro, edit, tolerance=1e-4)
        completed, back = (each.values[name].float() for each in (filled, revived(micro, filled)))
        assert torch.corrcoef(torch.stack([completed, before]))[0, 1] > 0.7
        trusted = back != 0
        assert trusted.float().mean() == pytest.approx(0.6, abs=0.01)
        assert (back.sign() == before.sign())[trusted].float().mean() > 0.95
        expected = largest.amax(1)[positions // f][trusted]
        assert torch.allclose(back[trusted].abs(), expected, rtol=1e-3)
    finally:
        with torch.no_grad():
            layer.weight.copy_(kept)


def audit_tables(p: float, iterations: float, share: float, alignment: float, n: int = 20) -> dict[str, pd.DataFrame]:
    """An audit of so many captions in which all of a kind are alike."""
    targets = np.arange(n)
    replicated = pd.DataFrame({"target": targets.repeat(2), "seed": [0, 1] * n})
    kinds = {"forget set": p, "held-out memorized": 0.5, "unseen": 0.5}
    spread = (targets - n / 2) / 1000
    again = pd.DataFrame({"taught": audit.TAUGHT, "lr": 1e-4, "steps": [0] * n + [9] * n, "target": [*targets] * 2})
    return {
        "replication": pd.concat([replicated.assign(pairs=kind, p=value) for kind, value in kinds.items()]),
        "attack": pd.DataFrame({"pairs": "forget set", "target": targets, "iterations": iterations, "last": 100}),
        "relearning": again.assign(replicated=[False] * n + [*(targets < share * n)]),
        "diversity": pd.DataFrame({"target": targets, "p": 0.5}),
        "quality": pd.concat(
            pd.DataFrame({"pairs": kind, "target": targets, "alignment": alignment + spread, "kid": 0.01})
            for kind in ("unseen", "forget set")
        ),
        "membership": pd.DataFrame({"target": targets, "p": p}),
    }


def test_an_audit_is_summed_up_against_the_twin():
    twin = audit_tables(0.5, np.inf, 0.1, 0.5)
    table = audit.summary({"twin": twin, "a": audit_tables(1 / 256, 5.0, 0.7, 0.4)}, at=50)
    rates = ["forget_set", "held_out", "unseen", "attacked", "same"]
    assert table.loc["a", rates].tolist() == [1, 0, 0, 1, 0]
    assert table.loc["a", [f"{name}_n" for name in rates]].tolist() == [20] * 5, "captions, not images"
    assert table.loc["a", "forget_set_low"] == pytest.approx(interval(20, 20)[0])
    assert table.loc["a", "relearned"] == pytest.approx(0.6)
    assert table.loc["a", "log_rank"] < 1e-6 < table.loc["twin", "log_rank"] == 1
    assert table.loc["a", "alignment_low"] <= table.loc["a", "alignment"] <= table.loc["a", "alignment_high"] < 0.9
    assert table.loc["twin", ["forget_set", "attacked", "alignment"]].tolist() == [0, 0, 1]
    assert set(audit.LABELS) <= set(table.columns)


def test_a_removal_is_equivalent_different_or_not_known():
    twin, alike, apart = (audit_tables(p, i, s, a, 200) for p, i, s, a in TWO_HUNDRED)
    verdicts = audit.gone({"twin": twin, "alike": alike, "apart": apart})
    assert list(verdicts.index) == ["alike", "apart"]
    assert verdicts.loc["alike"].eq("equivalent").all()
    different = verdicts.columns[verdicts.loc["apart"] == "different"].tolist()
    assert different == [
        "forget set replicated",
        "forget set sampled under attack",
        "relearned",
        "relative alignment",
        "relative alignment, forget set",
        "membership",
    ]
    assert (verdicts.loc["apart"].drop(different) == "equivalent").all()
    few = {name: audit_tables(0.5, np.inf, 0.1, 0.5) for name in ("twin", "a")}
    assert audit.gone(few).loc["a", "forget set replicated"] == "inconclusive"
    answers = audit.compared(few).set_index("question")
    assert answers.loc["forget set replicated", "n"] == 20 < answers.loc["forget set replicated", "needed"]


TWO_HUNDRED = ((0.5, np.inf, 0.1, 0.5), (0.5, np.inf, 0.1, 0.5), (1 / 256, 5.0, 0.7, 0.4))


def test_an_audit_has_a_table_for_each_question(micro, metrics, prompts, memorized, ordinary):
    few, unseen = memorized.first(2), Pairs(prompts.of("heldout")[:2], prompts.images("heldout", 0, 2))
    subjects = Subjects(few, memorized.only([2]), unseen, ordinary)
    options = {"targets": 2, "iterations": (0, 1), "begin": ("its caption",), "noises": 1, "taught": 1}
    options |= {"rates": (1e-4,), "looks": (0, 1), "seeds": 1, "membership_steps": 1, "progress": False}
    before = fingerprint(micro)
    tables = audit.audited(micro, subjects, metrics, WORLD, **options)
    assert list(tables) == list(shipped.TABLES)
    assert {name: len(table) for name, table in tables.items()} == {
        "replication": 2 + 1 + 2,
        "attack": 2 * 2,
        "relearning": 2 * 2,
        "diversity": 2,
        "quality": 2 + 2,
        "membership": 2,
    }
    assert tables["replication"]["pairs"].unique().tolist() == ["forget set", "held-out memorized", "unseen"]
    assert audit.compared({"twin": tables, "a": tables})["verdict"].isin(("equivalent", "inconclusive")).all()
    assert fingerprint(micro) == before
    again = audit.audited(micro, subjects, metrics, WORLD, **options, only=["diversity"])
    assert list(again) == ["diversity"]
    assert again["diversity"].equals(tables["diversity"])


def test_seeds_of_the_twin_differ(pipe, twin, memorized):
    captions = memorized.captions[:3]
    fixed, free = (audit.diversity(partial(generate, model, **SAMPLING), captions, WORLD) for model in (pipe, twin))
    assert (fixed <= LEVEL).mean() > (free <= LEVEL).mean()


def test_pairs_that_do_not_match_are_refused(memorized):
    with pytest.raises(ValueError, match="1 captions with 6 images"):
        Pairs(["a"], memorized.images)


# --- figures -------------------------------------------------------------------------------------------------------


def test_attack_curves_have_a_panel_for_each_kind_of_pairs():
    rows = [
        {"model": model, "pairs": pairs, "target": i, "iterations": at, "last": 10}
        for model in ("unedited", "twin")
        for pairs in ("forget set", "unseen")
        for i, at in enumerate((0, 5, np.inf) if model == "unedited" else (np.inf,) * 3)
    ]
    work = pd.DataFrame(rows)
    figure = plots.attack_curves(work, (0, 5, 10))
    assert len(figure.axes) == 2
    line = figure.axes[0].lines[0]
    assert line.get_ydata().tolist() == pytest.approx([100 / 3, 200 / 3, 200 / 3])
    assert "n = 3" in figure.axes[0].get_title()
    from_two = pd.concat([work.assign(start="its caption"), work.assign(start="noise")])
    assert len(plots.attack_curves(from_two, (0, 5, 10)).axes) == 4


def test_figures_of_an_audit():
    audits = {
        name: audit_tables(0.5, np.inf, again, 0.5)
        for name, again in (("twin", 0.1), ("other", 0.1), ("unedited", 1.0))
    }
    audits |= {name: audit_tables(1 / 256, 5.0, 0.7, 0.4) for name in ("pruning", "training anew")}
    learned = pd.concat([tables["relearning"].assign(model=name) for name, tables in audits.items()])
    panels = plots.beside_references(relearning_shares(learned), "steps", "steps", "replicated (%)").axes
    assert [axis.get_title() for axis in panels] == ["pruning", "training, re-initialized"]
    named = {text.get_text() for axis in panels for text in axis.texts}
    assert named == {"twin", "other", "unedited"}, "thin lines, beside every removal"
    figure = plots.intervals(audit.summary(audits), {"forget_set": "replicated (%)", "alignment": "alignment (%)"})
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][-1] == "training, re-initialized"


def test_membership_has_a_panel_for_each_caption_that_is_given():
    given = [pd.DataFrame({"model": ["twin", "a"], "caption": name}) for name in shipped.GIVEN]
    table = pd.concat(given).assign(n=9, mean=0.5, low=0.4, high=0.6, p=0.5)
    for axes in (plots.membership_means(table, 0.1).axes, plots.membership_curves(table).axes):
        titles = [axis.get_title().split(", n")[0] for axis in axes]
        assert titles == [f"given {words}" for words in shipped.GIVEN.values()]


def test_a_summary_is_read_in_percent_without_what_no_audit_asked():
    table = audit.summary({"twin": audit_tables(0.5, np.inf, 0.1, 0.5)}).drop(columns="forget_set_alignment")
    shown = audit.readable(table, {"alignment": "alignment (%)", "forget_set_alignment": "not asked"})
    assert shown.to_dict() == {"alignment (%), n = 20": {"twin": "100 (100 to 100)"}}


# --- what is brought --------------------------------------------------------------------------------------------------


def further(pipe, memorized, ordinary, folder, **options):
    given = {"folder": folder, "progress": False, "epochs": 2} | options
    return REMOVALS["further training"].edit(pipe, memorized, ordinary, **given)


def test_a_finished_edit_is_not_that_of_other_inputs(micro, memorized, ordinary, quick, tmp_path):
    first = further(micro, memorized, ordinary, tmp_path)
    assert further(micro, memorized, ordinary, tmp_path).fingerprint == first.fingerprint
    others = Pairs(ordinary.captions, ordinary.images[::-1].copy())
    v = micro_pipeline()
    v.scheduler.register_to_config(prediction_type="v_prediction")
    for pipe, kept, options in ((micro, others, {}), (micro, ordinary, {"warmup": 1}), (v, ordinary, {})):
        changed = further(pipe, memorized, kept, tmp_path, **options)
        assert changed.fingerprint != first.fingerprint
        assert changed.fingerprint == further(pipe, memorized, kept, tmp_path / "fresh", **options).fingerprint
    name, few = "adversarial distillation", {"epochs": 2, "iterations": 0, "folder": tmp_path, "progress": False}
    reworded = Pairs(memorized.captions, memorized.images, [["a blue fish"]] * len(memorized))
    edits = [REMOVALS[name].edit(micro, some, ordinary, **few) for some in (memorized, reworded)]
    assert edits[0].fingerprint != edits[1].fingerprint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "adamW"}, "unknown optimizer 'adamW'; expected one of adamw"),
        ({"lr": "1e-4"}, "lr must be a number above 0; got '1e-4'"),
        ({"warmup": 0}, "warmup must be a whole number of at least 1; got 0"),
        ({"epochs": 0}, "steps must be a whole number of at least 1; got 0"),
    ],
)
def test_options_of_a_training_are_checked_before_it(micro, memorized, ordinary, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        further(micro, memorized, ordinary, tmp_path, **options)


def test_a_training_that_diverges_is_no_edit(memorized, ordinary, tmp_path):
    with pytest.raises(FloatingPointError, match=r"diverged: .* Lower lr"):
        further(micro_pipeline(), memorized, ordinary, tmp_path, epochs=30, lr=1e6, warmup=1)


@pytest.mark.parametrize("how", ["adapter", "weight norm", "inference mode", "8 bits"])
def test_layers_that_do_not_train_are_refused_and_left_alone(how, memorized, ordinary, tmp_path):
    pipe = micro_pipeline()
    _, layer = first_layer(pipe)
    if how == "adapter":
        peft = pytest.importorskip("peft")
        pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    elif how == "weight norm":
        torch.nn.utils.parametrizations.weight_norm(layer)
    elif how == "8 bits":
        pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    else:
        with torch.inference_mode():
            layer.weight = torch.nn.Parameter(layer.weight.clone(), requires_grad=False)
    required = [p.requires_grad for p in pipe.unet.parameters()]
    with pytest.raises(ValueError, match=r"^layer .*(adapter|parametrized|inference_mode|8 bits)"):
        further(pipe, memorized, ordinary, tmp_path)
    assert [p.requires_grad for p in pipe.unet.parameters()] == required


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_removals_take_gradients_themselves(off, micro, memorized, ordinary, tmp_path):
    with off():
        edit = further(micro, memorized, ordinary, tmp_path)
    assert any(values.any() for values in edit.values.values())


def test_as_many_ordinary_captions_are_compared(micro, memorized, ordinary):
    few = Pairs(ordinary.captions[:2], ordinary.images[:2])
    with pytest.raises(ValueError, match="6 ordinary captions are needed, as many as memorized ones; got 2"):
        pruning.prune(micro, memorized, few, contrast="ordinary")
