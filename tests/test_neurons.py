"""Which weights are memorized: the rule, its fast form, and the whole way from prompts to edit against `naive`."""

import numpy as np
import pytest
import torch

from memsub.activations import capture
from memsub.fast_masks import memorized_at_steps
from memsub.models import as_denoiser
from memsub.neurons import LayerMask, WeightMasks, importance, layer_mask, locate, memorized, row_budget
from memsub.overlap import pairwise_iou
from micro import CAPTIONS
from naive import GUIDANCE, is_tie, naive_mask, naive_norms


def options(steps):
    return {"steps": steps, "guidance_scale": GUIDANCE, "progress": False}


# --- against the naive reference --------------------------------------------------------------------------------------


def assert_as_naive(pipe, prompts, groups, cfg_half, sparsity, steps):
    """Masks, overlap, edit and density of groups of prompts are those of the naive reference."""
    stats = capture(pipe, prompts, groups=groups, cfg_half=cfg_half, **options(steps))
    null = capture(pipe, [""], cfg_half=cfg_half, **options(steps))
    layers = as_denoiser(pipe).layers()
    located, marked = {}, {}
    # The empty prompt is repeated, as METHOD has it; once for all groups, which are of one size.
    theirs = naive_norms(pipe, [""] * len(next(iter(groups.values()))), cfg_half, steps)
    for group, members in groups.items():
        located[group] = locate(pipe, stats, null, sparsity, group)
        ours = naive_norms(pipe, [prompts[i] for i in members], cfg_half, steps)
        for name, linear in layers.items():
            weight = linear.weight.detach().double().numpy()
            for step in range(steps):
                expected = naive_mask(weight, ours[name][step], theirs[name][step], sparsity)
                actual = located[group].dense(name, step).numpy()
                for i, j in np.argwhere(actual != expected):
                    assert is_tie(weight, ours[name][step], theirs[name][step], sparsity, i, j), (name, step, i, j)
                marked[group, name, step] = actual
    first = next(iter(groups))
    overlap = pairwise_iou(list(located.values())) if len(groups) > 1 else None
    union, voted = located[first].union(steps=steps), located[first].union(steps=steps, threshold=0.5)
    for column, name in enumerate(layers):
        masks = [np.stack([marked[group, name, step] for step in range(steps)]) for group in groups]
        for step in range(steps if overlap is not None else 0):
            both, either = masks[0][step] & masks[1][step], masks[0][step] | masks[1][step]
            assert overlap[0, step, column] == (both.sum() / either.sum() if either.any() else 0)
        np.testing.assert_array_equal(union.positions[name], np.flatnonzero(masks[0].sum(0) > 0))
        np.testing.assert_array_equal(voted.positions[name], np.flatnonzero(masks[0].sum(0) > 0.5 * steps))
    density = [[marked[first, name, step].mean() for name in layers] for step in range(steps)]
    np.testing.assert_allclose(located[first].density().numpy(), density, rtol=1e-6)


@pytest.mark.parametrize("cfg_half", ["both", "cond"])
@pytest.mark.parametrize("sparsity", [0.01, 0.1])
def test_masks_are_those_of_the_naive_reference(exact_micro, cfg_half, sparsity):
    groups = {"A": [0, 1, 2], "B": [1, 2, 3]}
    assert_as_naive(exact_micro, CAPTIONS, groups, cfg_half, sparsity, steps=3)


def test_masks_of_the_embedded_model_are_those_of_the_naive_reference(exact_pipe, prompts):
    assert_as_naive(exact_pipe, prompts.memorized[:1], {"all": [0]}, "both", 0.01, steps=2)


# --- the rule, and its fast form --------------------------------------------------------------------------------------


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
    mask = layer_mask(weight, ours, theirs, sparsity)
    for step in range(60):
        expected = memorized(weight, ours[step], theirs[step], sparsity)
        np.testing.assert_array_equal(mask.flat(step), np.flatnonzero(expected), err_msg=str(step))


def test_equal_importances_go_to_the_leftmost():
    """Small integers tie all the time; rows of zeros, as pruning leaves them, hold fewer weights than may be marked."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-3, 4, (12, 40), generator=generator).float()
    weight[3], weight[4, 1:], weight[5, 5:] = 0, 0, 0
    ours, theirs = torch.randint(0, 4, (2, 25, 40), generator=generator).float()
    masks = WeightMasks({"layer": layer_mask(weight, ours, theirs, 0.2)}, {})
    for step in range(25):
        expected = naive_mask(weight.numpy(), ours[step].numpy(), theirs[step].numpy(), 0.2)
        np.testing.assert_array_equal(masks.dense("layer", step), expected)


def test_wide_layers_have_wider_columns():
    weight, ours = torch.ones(1, 2**15 + 1), torch.ones(1, 2**15 + 1)
    ours[0, -1] = 2
    columns, counts = memorized_at_steps(weight, ours, torch.zeros_like(ours), budget=1)
    assert (columns.tolist(), columns.dtype, counts.tolist()) == ([2**15], torch.int32, [[1]])


# --- locate and union -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [{"sparsity": 0.0}, {"sparsity": 1.5}])
def test_sparsity_out_of_range(micro, call):
    stats = capture(micro, CAPTIONS[:1], **options(1))
    with pytest.raises(ValueError, match="sparsity must be a number in"):
        locate(micro, stats, stats, **call)
    other = capture(micro, CAPTIONS[:1], **options(1) | {"guidance_scale": 2.0})
    with pytest.raises(ValueError, match=r"made differently: guidance_scale: 5\.0 and 2\.0"):
        locate(micro, stats, other)


def test_an_edit_of_no_weights_is_refused(micro):
    stats = capture(micro, CAPTIONS[:1], **options(2))
    masks = locate(micro, stats, stats, sparsity=0.1)  # nothing is larger than itself
    assert not masks.density().any()
    with pytest.raises(
        ValueError, match=r"memorized at more than 1 of the first 2 steps, at sparsity 0\.1: an edit of"
    ):
        masks.union(steps=2, threshold=0.5)


@pytest.mark.parametrize("call", [{"steps": 0}, {"steps": 3}, {"steps": 1.0}, {"steps": 1, "threshold": 1.0}])
def test_steps_and_threshold_out_of_range(call):
    masks = WeightMasks({"a": LayerMask((1, 2), torch.tensor([0, 1]), torch.tensor([[1], [1]]))}, {})
    with pytest.raises(ValueError, match="steps must be a whole number between 1 and 2, the steps of these masks, and"):
        masks.union(**call)
