"""Capture, locate, overlap and edit against a deliberately naive reference: float64 numpy, Python loops."""

import copy

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from diffusers.models.attention import FeedForward

from memsub.activations import ActivationStats, capture
from memsub.controls import random_edit
from memsub.denoiser import as_denoiser
from memsub.generation import generate, initial_noise
from memsub.neurons import WeightMasks, importance, locate, memorized, memorized_at_steps, row_budget
from memsub.overlap import pairwise_iou
from memsub.pruning import Edit, pruned

STEPS = 3
OPTIONS = {"steps": STEPS, "guidance_scale": 5.0, "progress": False}


# --- the reference ------------------------------------------------------------------------------------------


def naive_norms(pipe, prompts, cfg_half):
    """a_j by layer, float64 (steps, neurons): keeps every activation, one prompt at a time."""
    squares = {}
    for prompt in prompts:
        kept = {name: [] for name in as_denoiser(pipe).layers()}
        handles = [
            linear.register_forward_hook(lambda m, args, out, store=kept[name]: store.append(args[0].double().numpy()))
            for name, linear in as_denoiser(pipe).layers().items()
        ]
        noise = initial_noise(pipe, [0])
        as_denoiser(pipe).sample([prompt], noise, STEPS, 5.0)
        for handle in handles:
            handle.remove()
        for name, calls in kept.items():
            for step, hidden in enumerate(calls):
                for row in hidden if cfg_half == "both" else hidden[1:]:
                    for token in row:
                        length = np.linalg.norm(token)
                        unit = token / length if length > 0 else token
                        squares[name, step] = squares.get((name, step), 0) + unit**2
    return {name: np.sqrt([squares[name, step] for step in range(STEPS)]) for name in as_denoiser(pipe).layers()}


def naive_mask(weight, ours, theirs, sparsity):
    """Boolean (d, f) of one step, by a full sort of each row."""
    mask = np.zeros(weight.shape, bool)
    k = max(1, int(np.floor(sparsity * weight.shape[1])))
    for i, row in enumerate(np.abs(weight)):
        for j in np.argsort(-row * ours, kind="stable")[:k]:
            mask[i, j] = row[j] * ours[j] > row[j] * theirs[j]
    return mask


def is_tie(weight, ours, theirs, sparsity, i, j):
    """Whether weight (i, j) lies on the edge of the top k, or prompts and contrast agree, to float32 accuracy."""
    importance = np.abs(weight[i]) * ours
    k = max(1, int(np.floor(sparsity * weight.shape[1])))
    edge = np.sort(importance)[::-1][k - 1 : k + 1]
    near_edge = np.abs(importance[j] - edge).min() < 1e-5 * importance[j]
    return near_edge or abs(ours[j] - theirs[j]) < 1e-5 * ours[j]


# --- against it -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four(prompts):
    return prompts.memorized[:4]


@pytest.mark.parametrize("cfg_half", ["both", "cond"])
@pytest.mark.parametrize("sparsity", [0.01, 0.1])
def test_masks_are_those_of_the_naive_reference(exact_pipe, four, cfg_half, sparsity):
    pipe = exact_pipe
    groups = {"A": [0, 1, 2], "B": [1, 2, 3]}
    stats = capture(pipe, four, groups=groups, cfg_half=cfg_half, **OPTIONS)
    null = capture(pipe, [""], cfg_half=cfg_half, **OPTIONS)
    theirs = naive_norms(pipe, [""] * 3, cfg_half)  # the empty prompt repeated, as METHOD has it
    located, reference = {}, {}
    for group, members in groups.items():
        located[group] = locate(pipe, stats, null, sparsity, group)
        ours = naive_norms(pipe, [four[i] for i in members], cfg_half)
        for name, linear in as_denoiser(pipe).layers().items():
            weight = linear.weight.detach().double().numpy()
            for step in range(STEPS):
                expected = naive_mask(weight, ours[name][step], theirs[name][step], sparsity)
                found = located[group].dense(name, step).numpy()
                for i, j in np.argwhere(found != expected):
                    assert is_tie(weight, ours[name][step], theirs[name][step], sparsity, i, j), (name, step, i, j)
                reference[group, name, step] = found
    overlap = pairwise_iou([located["A"], located["B"]])
    union = located["A"].union(steps=STEPS)
    voted = located["A"].union(steps=STEPS, threshold=0.5)
    for column, name in enumerate(as_denoiser(pipe).layers()):
        masks = [np.stack([reference[group, name, s] for s in range(STEPS)]) for group in groups]
        for step in range(STEPS):
            both, either = masks[0][step] & masks[1][step], masks[0][step] | masks[1][step]
            assert overlap[0, step, column] == (both.sum() / either.sum() if either.any() else 0)
        np.testing.assert_array_equal(union.positions[name], np.flatnonzero(masks[0].sum(0) > 0))
        np.testing.assert_array_equal(voted.positions[name], np.flatnonzero(masks[0].sum(0) > 0.5 * STEPS))
    np.testing.assert_allclose(
        located["A"].density().numpy(),
        [[reference["A", n, s].mean() for n in as_denoiser(pipe).layers()] for s in range(STEPS)],
        rtol=1e-6,
    )


def test_the_rule_is_that_of_the_naive_reference():
    rng = torch.Generator().manual_seed(1)
    weight, ours, theirs = torch.randn(9, 40, generator=rng), *torch.rand(2, 40, generator=rng)
    np.testing.assert_array_equal(importance(weight, ours), weight.abs() * ours)
    for sparsity in (0.01, 0.3, 1.0):
        expected = naive_mask(weight.numpy(), ours.numpy(), theirs.numpy(), sparsity)
        np.testing.assert_array_equal(memorized(weight, ours, theirs, sparsity), expected)


def test_the_share_of_a_row_is_rounded_down_and_never_nothing():
    assert [row_budget(s, 100) for s in (0.001, 0.01, 0.29, 0.999, 1.0)] == [1, 1, 29, 99, 100]


@pytest.mark.parametrize("drift", [0.02, 3.0])  # as captured norms do, and with nothing in common from step to step
@pytest.mark.parametrize("sparsity", [0.01, 0.3, 1.0])
def test_masks_over_many_steps_are_those_of_a_full_sort(drift, sparsity):
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 64, generator=rng)
    weight[2, 5:20] = 0
    ours, theirs = (
        (torch.randn(64, generator=rng) + drift * torch.randn(60, 64, generator=rng).cumsum(0)).exp() for _ in range(2)
    )
    ours[3] = 0  # an input that was never active
    mask = memorized_at_steps(weight, ours, theirs, sparsity)
    for step in range(60):
        expected = memorized(weight, ours[step], theirs[step], sparsity)
        np.testing.assert_array_equal(mask.flat(step), np.flatnonzero(expected), err_msg=str(step))


def test_equal_importances_go_to_the_leftmost():
    """Small integers tie all the time; rows of zeros, as pruning leaves them, hold fewer weights than may be marked."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-3, 4, (12, 40), generator=generator).float()
    weight[3], weight[4, 1:], weight[5, 5:] = 0, 0, 0
    ours, theirs = torch.randint(0, 4, (2, 25, 40), generator=generator).float()
    mask = memorized_at_steps(weight, ours, theirs, 0.2)
    found = WeightMasks({"layer": mask}, {})
    for step in range(25):
        expected = naive_mask(weight.numpy(), ours[step].numpy(), theirs[step].numpy(), 0.2)
        np.testing.assert_array_equal(found.dense("layer", step), expected)


def test_a_plain_activation_is_captured_like_a_gated_one(exact_pipe, four):
    plain = copy.copy(exact_pipe)
    plain.unet = copy.deepcopy(exact_pipe.unet)
    torch.manual_seed(0)
    for module in list(plain.unet.modules()):
        if isinstance(getattr(module, "ff", None), FeedForward):
            module.ff = FeedForward(module.ff.net[2].out_features, activation_fn="gelu").double()
    stats = capture(plain, four[:2], **OPTIONS)
    for name, norms in naive_norms(plain, four[:2], "both").items():
        np.testing.assert_allclose(stats.norms()[name] * 2**0.5, norms, rtol=1e-5, atol=1e-7)


def test_a_sampler_that_makes_one_call_more_than_steps(pipe, four):
    other = copy.copy(pipe)
    other.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    sums = capture(other, four[:1], **{**OPTIONS, "steps": 50}).sums
    assert {s.shape[1] for s in sums.values()} == {51}
    assert all((s.sum(2) > 0).all() for s in sums.values())


def test_sampling_ends_after_the_first_steps_that_are_wanted(pipe, four):
    whole = capture(pipe, four, **OPTIONS)
    rows = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        part = capture(pipe, four, first=2, **OPTIONS)
    finally:
        handle.remove()
    assert rows == [8, 8]
    assert all(torch.equal(part.sums[n], whole.sums[n][:, :2]) for n in whole.sums)
    assert part.provenance == whole.only(steps=2).provenance
    null = capture(pipe, [""], **OPTIONS)
    with pytest.raises(ValueError, match="made differently: first: 2 and None"):
        locate(pipe, part, null)
    with pytest.raises(ValueError, match="made differently: first: None and 2"):
        locate(pipe, whole, null.only(steps=2))
    ours, theirs = locate(pipe, part, null.only(steps=2)).union(2), locate(pipe, whole, null).union(2)
    assert all(torch.equal(ours.positions[n], theirs.positions[n]) for n in theirs.positions)


def assert_same_sums(a, b):
    assert a.counts == b.counts
    for name, sums in a.sums.items():
        torch.testing.assert_close(sums, b.sums[name], rtol=1e-5, atol=1e-9)


def test_batches_merges_and_repeats_equal_one_pass(exact_pipe, four):
    pipe = exact_pipe
    whole = capture(pipe, four, **OPTIONS)
    assert_same_sums(capture(pipe, four, batch_size=1, **OPTIONS), whole)
    assert_same_sums(capture(pipe, four[:1], **OPTIONS) + capture(pipe, four[1:], **OPTIONS), whole)
    once, thrice = capture(pipe, [""], **OPTIONS), capture(pipe, [""] * 3, **OPTIONS)
    for name, norms in once.norms().items():
        torch.testing.assert_close(norms, thrice.norms()[name], rtol=1e-5, atol=1e-9)


def test_a_killed_capture_goes_on_where_it_stopped(pipe, four, tmp_path, monkeypatch):
    options = {**OPTIONS, "batch_size": 1, "checkpoint": tmp_path / "part.safetensors"}
    whole = capture(pipe, four, **{**options, "checkpoint": None})
    calls = []
    encode = type(pipe).encode_prompt

    def kill_third(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe), "encode_prompt", kill_third)
    with pytest.raises(KeyboardInterrupt):
        capture(pipe, four, **options)
    with pytest.raises(ValueError, match="checkpoint of another capture"):
        capture(pipe, four[:3], **options)
    resumed = capture(pipe, four, **options)
    assert len(calls) == 5  # two prompts were left
    assert all(torch.equal(resumed.sums[n], whole.sums[n]) for n in whole.sums)
    assert not (tmp_path / "part.safetensors").exists()


def test_hooks_are_gone_after_an_exception(pipe, four, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(type(pipe.scheduler), "step", fail)
        with pytest.raises(RuntimeError, match="planted"):
            capture(pipe, four, **OPTIONS)
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())


def test_any_sampler(pipe, four):
    other = copy.copy(pipe)
    other.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    stats = capture(other, four[:1], steps=10, guidance_scale=1.0, progress=False)
    assert next(iter(stats.sums.values())).shape[1] == 11


# --- artifacts and edits ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masks(pipe, four):
    stats, null = capture(pipe, four, **OPTIONS), capture(pipe, [""], **OPTIONS)
    return locate(pipe, stats, null, sparsity=0.05)


def test_artifacts_come_back_as_they_were(pipe, four, masks, tmp_path):
    stats = capture(pipe, four[:2], groups={"x": [0], "y": [0, 1]}, **OPTIONS)
    stats.save(tmp_path / "stats.safetensors")
    again = ActivationStats.load(tmp_path / "stats.safetensors")
    assert (again.counts, again.provenance, again.prompts, list(again.sums)) == (
        stats.counts,
        stats.provenance,
        stats.prompts,
        list(stats.sums),
    )
    masks.save(tmp_path / "masks.safetensors")
    again = WeightMasks.load(tmp_path / "masks.safetensors")
    assert torch.equal(again.density(), masks.density()) and list(again.layers) == list(masks.layers)
    edit = masks.union(steps=2)
    edit.save(tmp_path / "edit.safetensors")
    again = Edit.load(tmp_path / "edit.safetensors")
    assert all(torch.equal(again.positions[n], p) for n, p in edit.positions.items())
    assert again.density == edit.density > 0
    whole = (tmp_path / "edit.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.safetensors is truncated"):
        Edit.load(tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="holds WeightMasks, expected Edit"):
        Edit.load(tmp_path / "masks.safetensors")
    with pytest.raises(FileNotFoundError, match="no Edit at"):
        Edit.load(tmp_path / "nothing.safetensors")


def test_pruned_changes_images_and_restores_bit_for_bit(pipe, four, masks):
    edit = masks.union(steps=2)
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    unedited = generate(pipe, four[:1], steps=3, progress=False)
    with pytest.raises(RuntimeError, match="planted"), pruned(pipe, edit):
        for name, linear in as_denoiser(pipe).layers().items():
            assert (linear.weight.view(-1)[edit.positions[name]] == 0).all()
        assert (generate(pipe, four[:1], steps=3, progress=False) != unedited).any()
        raise RuntimeError("planted")
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())


def test_edits_combine_as_sets(masks):
    early, late = masks.union(steps=1), masks.union(steps=3)
    for name in early.positions:
        a, b = set(early.positions[name].tolist()), set(late.positions[name].tolist())
        assert set((early | late).positions[name].tolist()) == a | b
        assert set((early & late).positions[name].tolist()) == a & b
        assert set((late - early).positions[name].tolist()) == b - a
    assert random_edit(late, seed=1).density == late.density
    down = late.only(["down_blocks", "mid_block"])
    assert {n for n, p in down.positions.items() if len(p)} == {n for n in late.positions if not n.startswith("up")}
    with pytest.raises(ValueError, match="no layer's name begins with 'dwn'"):
        late.only(["dwn"])


def test_an_edit_of_another_model_is_refused_and_nothing_changes(pipe, masks):
    other = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        other.mid_block.attentions[0].transformer_blocks[0].ff.net[2].weight[0, 0] += 1
    edit = masks.union(steps=1)
    pipe.unet, own = other, pipe.unet
    try:
        with pytest.raises(ValueError, match="this edit was made for another model"):
            edit.apply(pipe)
    finally:
        pipe.unet = own


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts: the list is empty"),
        (["a"], {"steps": 0}, "must be at least 1; got 16 and 0"),
        (["a"], {"first": 0}, "first must lie between 1 and 50, the steps; got 0"),
        (["a"], {"first": 51}, "first must lie between 1 and 50, the steps; got 51"),
        (["a"], {"cfg_half": "bth"}, "cfg_half must be 'both' or 'cond'; got 'bth'"),
        (["a"], {"groups": {"A": []}}, "group 'A' holds no prompts"),
        (["a"], {"groups": {"A": [1]}}, "group 'A' names prompt 1, but there are 1"),
    ],
)
def test_bad_input_is_named(pipe, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        capture(pipe, prompts, **options)


def test_activations_that_are_not_finite_are_named(pipe, four):
    broken = copy.copy(pipe)
    broken.unet = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        broken.unet.mid_block.attentions[0].proj_in.weight[:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"mid_block.* at step 0"):
        capture(broken, four[:1], **OPTIONS)


@pytest.mark.parametrize("call", [{"sparsity": 0.0}, {"sparsity": 1.5}])
def test_sparsity_out_of_range(pipe, four, call):
    stats = capture(pipe, four[:1], **OPTIONS)
    with pytest.raises(ValueError, match="sparsity must lie in"):
        locate(pipe, stats, stats, **call)
    other = capture(pipe, four[:1], **{**OPTIONS, "guidance_scale": 2.0})
    with pytest.raises(ValueError, match=r"made differently: guidance_scale: 5\.0 and 2\.0"):
        locate(pipe, stats, other)
