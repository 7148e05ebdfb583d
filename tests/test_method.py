"""Capture, locate, overlap and edit against a deliberately naive reference: float64 numpy, whole activations, Python loops."""

import copy

import numpy as np
import pytest
import torch

from memsub.activations import ActivationStats, capture
from memsub.generation import generate, initial_noise
from memsub.models import ff_layers
from memsub.neurons import NeuronMasks, locate
from memsub.overlap import pairwise_iou
from memsub.pruning import Edit, pruned

STEPS = 3
OPTIONS = {"steps": STEPS, "guidance_scale": 5.0, "progress": False}


# --- the reference ------------------------------------------------------------------------------------------


def naive_norms(pipe, prompts, cfg_half):
    """a_j by layer, float64 (steps, neurons): keeps every activation, one prompt at a time."""
    squares = {}
    for prompt in prompts:
        kept = {name: [] for name in ff_layers(pipe.unet)}
        handles = [
            linear.register_forward_hook(lambda m, args, out, store=kept[name]: store.append(args[0].double().numpy()))
            for name, linear in ff_layers(pipe.unet).items()
        ]
        noise = initial_noise(pipe, [0])
        pipe(prompt, latents=noise, num_inference_steps=STEPS, guidance_scale=5.0, output_type="latent")
        for handle in handles:
            handle.remove()
        for name, calls in kept.items():
            for step, hidden in enumerate(calls):
                for row in hidden if cfg_half == "both" else hidden[1:]:
                    for token in row:
                        length = np.linalg.norm(token)
                        unit = token / length if length > 0 else token
                        squares[name, step] = squares.get((name, step), 0) + unit**2
    return {name: np.sqrt([squares[name, step] for step in range(STEPS)]) for name in ff_layers(pipe.unet)}


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
def test_masks_are_those_of_the_naive_reference(pipe, four, cfg_half, sparsity):
    groups = {"A": [0, 1, 2], "B": [1, 2, 3]}
    stats = capture(pipe, four, groups=groups, cfg_half=cfg_half, **OPTIONS)
    null = capture(pipe, [""], cfg_half=cfg_half, **OPTIONS)
    theirs = naive_norms(pipe, [""] * 3, cfg_half)  # the empty prompt repeated, as METHOD has it
    located, reference = {}, {}
    for group, members in groups.items():
        located[group] = locate(pipe, stats, null, sparsity, group)
        ours = naive_norms(pipe, [four[i] for i in members], cfg_half)
        for name, linear in ff_layers(pipe.unet).items():
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
    for column, name in enumerate(ff_layers(pipe.unet)):
        masks = [np.stack([reference[group, name, s] for s in range(STEPS)]) for group in groups]
        for step in range(STEPS):
            both, either = masks[0][step] & masks[1][step], masks[0][step] | masks[1][step]
            assert overlap[0, step, column] == (both.sum() / either.sum() if either.any() else 0)
        np.testing.assert_array_equal(union.positions[name], np.flatnonzero(masks[0].sum(0) > 0))
        np.testing.assert_array_equal(voted.positions[name], np.flatnonzero(masks[0].sum(0) > 0.5 * STEPS))
    np.testing.assert_allclose(
        located["A"].density().numpy(),
        [[reference["A", n, s].mean() for n in ff_layers(pipe.unet)] for s in range(STEPS)],
        rtol=1e-6,
    )


def assert_same_sums(a, b):
    assert a.counts == b.counts
    for name, sums in a.sums.items():
        torch.testing.assert_close(sums, b.sums[name], rtol=2e-4, atol=1e-7)


def test_batches_merges_and_repeats_equal_one_pass(pipe, four):
    whole = capture(pipe, four, **OPTIONS)
    assert_same_sums(capture(pipe, four, batch_size=1, **OPTIONS), whole)
    assert_same_sums(capture(pipe, four[:1], **OPTIONS) + capture(pipe, four[1:], **OPTIONS), whole)
    once, thrice = capture(pipe, [""], **OPTIONS), capture(pipe, [""] * 3, **OPTIONS)
    for name, norms in once.norms().items():
        torch.testing.assert_close(norms, thrice.norms()[name], rtol=2e-4, atol=1e-7)


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
    from diffusers import PNDMScheduler

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
    assert (again.counts, again.made, again.prompts, list(again.sums)) == (
        stats.counts,
        stats.made,
        stats.prompts,
        list(stats.sums),
    )
    masks.save(tmp_path / "masks.safetensors")
    again = NeuronMasks.load(tmp_path / "masks.safetensors")
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
    with pytest.raises(ValueError, match="holds NeuronMasks, expected Edit"):
        Edit.load(tmp_path / "masks.safetensors")
    with pytest.raises(FileNotFoundError, match="no Edit at"):
        Edit.load(tmp_path / "nothing.safetensors")


def test_pruned_changes_images_and_restores_bit_for_bit(pipe, four, masks):
    edit = masks.union(steps=2)
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    unedited = generate(pipe, four[:1], steps=3, progress=False)
    with pytest.raises(RuntimeError, match="planted"), pruned(pipe, edit):
        for name, linear in ff_layers(pipe.unet).items():
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
    assert late.random(seed=1).density == late.density


def test_an_edit_of_another_model_is_refused_and_nothing_changes(pipe, masks):
    other = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        next(iter(ff_layers(other).values())).weight[0, 0] += 1
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
        ([], {}, "no prompts to capture"),
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
    with pytest.raises(ValueError, match=r"captured differently: guidance_scale: 5\.0 and 2\.0"):
        locate(pipe, stats, other)


# --- full size ---------------------------------------------------------------------------------------------------

SD = {
    "sd14": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd20": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
}


@pytest.mark.parametrize("name", SD)
def test_layers_of_the_published_configurations(name):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD[name])
    widths = [320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320]
    layers = ff_layers(unet)
    assert [linear.out_features for linear in layers.values()] == widths
    assert [linear.in_features for linear in layers.values()] == [4 * w for w in widths]
    assert list(layers)[6].startswith("mid_block") and list(layers)[7].startswith("up_blocks.1")
