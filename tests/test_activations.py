"""Capture: what is summed, over what it adds up, and what happens when something goes wrong in the middle."""

import copy

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from diffusers.models.attention import FeedForward

from memsub import activations
from memsub.activations import ActivationStats, BatchSums, capture
from memsub.models import Conditioning, as_denoiser, hooked, initial_noise
from memsub.neurons import locate
from micro import CAPTIONS, micro_pipeline
from naive import GUIDANCE, naive_norms
from toys import killed_at

STEPS = 3
OPTIONS = {"steps": STEPS, "guidance_scale": GUIDANCE, "progress": False}


def with_pndm(pipe):
    other = copy.copy(pipe)
    other.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    return other


def assert_same_sums(a, b):
    assert a.counts == b.counts
    for name, sums in a.sums.items():
        torch.testing.assert_close(sums, b.sums[name], rtol=1e-5, atol=1e-9)


# --- what is summed ---------------------------------------------------------------------------------------------------


def test_a_plain_activation_is_captured_like_a_gated_one():
    plain = micro_pipeline(torch.float64)
    torch.manual_seed(0)
    for module in list(plain.unet.modules()):
        if isinstance(getattr(module, "ff", None), FeedForward):
            module.ff = FeedForward(module.ff.net[2].out_features, activation_fn="gelu").double()
    stats = capture(plain, CAPTIONS[:2], **OPTIONS)
    for name, norms in naive_norms(plain, CAPTIONS[:2], "both", STEPS).items():
        np.testing.assert_allclose(stats.norms()[name] * 2**0.5, norms, rtol=1e-5, atol=1e-7)


def test_a_sampler_that_makes_one_call_more_than_steps(micro):
    sums = capture(with_pndm(micro), CAPTIONS[:1], **{**OPTIONS, "steps": 50}).sums
    assert {s.shape[1] for s in sums.values()} == {51}
    assert all((s.sum(2) > 0).all() for s in sums.values())


def test_any_sampler(micro):
    stats = capture(with_pndm(micro), CAPTIONS[:1], steps=10, guidance_scale=1.0, progress=False)
    assert next(iter(stats.sums.values())).shape[1] == 11


def test_first_counts_network_calls(micro):
    other = copy.copy(micro)
    other.scheduler = PNDMScheduler.from_config(micro.scheduler.config)  # 13 calls for 4 steps
    options = {"steps": 4, "progress": False}
    whole, part = capture(other, CAPTIONS[:1], **options), capture(other, CAPTIONS[:1], first=12, **options)
    assert all(torch.equal(part.sums[n], sums[:, :12]) and sums.shape[1] == 13 for n, sums in whole.sums.items())
    with pytest.raises(ValueError, match="first must be a whole number from 1 to 13, the steps of this sampling"):
        capture(other, CAPTIONS[:1], first=14, **options)


def test_sampling_ends_after_the_first_steps_that_are_wanted(micro):
    whole = capture(micro, CAPTIONS, **OPTIONS)
    rows = []
    handle = micro.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        part = capture(micro, CAPTIONS, first=2, **OPTIONS)
    finally:
        handle.remove()
    assert rows == [8, 8]
    assert all(torch.equal(part.sums[n], whole.sums[n][:, :2]) for n in whole.sums)
    assert part.provenance == whole.only(steps=2).provenance
    with pytest.raises(ValueError, match="steps must lie between 1 and 2, the steps of these statistics; got 3"):
        part.only(steps=3)
    null = capture(micro, [""], **OPTIONS)
    with pytest.raises(ValueError, match="made differently: first: 2 and None"):
        locate(micro, part, null)
    with pytest.raises(ValueError, match="made differently: first: None and 2"):
        locate(micro, whole, null.only(steps=2))
    ours, theirs = locate(micro, part, null.only(steps=2)).union(2), locate(micro, whole, null).union(2)
    assert all(torch.equal(ours.positions[n], theirs.positions[n]) for n in theirs.positions)


def test_batches_merges_and_repeats_equal_one_pass(exact_micro):
    pipe = exact_micro
    whole = capture(pipe, CAPTIONS, **OPTIONS)
    assert_same_sums(capture(pipe, CAPTIONS, batch_size=1, **OPTIONS), whole)
    assert_same_sums(capture(pipe, CAPTIONS[:1], **OPTIONS) + capture(pipe, CAPTIONS[1:], **OPTIONS), whole)
    once, thrice = capture(pipe, [""], **OPTIONS), capture(pipe, [""] * 3, **OPTIONS)
    for name, norms in once.norms().items():
        torch.testing.assert_close(norms, thrice.norms()[name], rtol=1e-5, atol=1e-9)


def test_a_conditioning_is_captured_like_its_captions(micro):
    captions = capture(micro, CAPTIONS[:2], **OPTIONS)
    conditioning = as_denoiser(micro).embed(CAPTIONS[:2])
    for given in (conditioning, conditioning.embeddings):
        embedded = capture(micro, given, **OPTIONS)
        assert all(torch.equal(embedded.sums[name], sums) for name, sums in captions.sums.items())
        assert embedded.provenance == captions.provenance
    other = capture(micro, Conditioning(conditioning.embeddings * 2), **OPTIONS)
    assert len({*captions.prompts, *embedded.prompts, *other.prompts}) == 3


# --- when something goes wrong ----------------------------------------------------------------------------------------


def test_a_killed_capture_resumes_where_it_stopped(micro, tmp_path, monkeypatch):
    options = {**OPTIONS, "batch_size": 1, "checkpoint": tmp_path / "part.safetensors"}
    whole = capture(micro, CAPTIONS, **{**options, "checkpoint": None})
    killed = killed_at(3, type(micro).encode_prompt)
    monkeypatch.setattr(type(micro), "encode_prompt", killed)
    with pytest.raises(KeyboardInterrupt):
        capture(micro, CAPTIONS, **options)
    with pytest.raises(ValueError, match="checkpoint of another capture"):
        capture(micro, CAPTIONS[:3], **options)
    with monkeypatch.context() as patch:  # one of two processes has another share of the prompts
        patch.setattr(activations, "shard", lambda items: items[::2])
        with pytest.raises(ValueError, match="checkpoint of another capture"):
            capture(micro, CAPTIONS, **options)
    resumed = capture(micro, CAPTIONS, **options)
    assert len(killed.calls) == 5  # two prompts were left
    assert all(torch.equal(resumed.sums[n], whole.sums[n]) for n in whole.sums)
    assert not list(tmp_path.iterdir())


def test_hooks_are_gone_after_an_exception(micro, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(type(micro.scheduler), "step", fail)
        with pytest.raises(RuntimeError, match="planted"):
            capture(micro, CAPTIONS, **OPTIONS)
    assert not any(module._forward_pre_hooks for module in micro.unet.modules())


def test_a_batch_that_fails_leaves_the_sums_as_they_were(micro, monkeypatch):
    stats = capture(micro, CAPTIONS[:2], **OPTIONS)
    before = {name: sums.clone() for name, sums in stats.sums.items()}
    step, calls = type(micro.scheduler).step, []

    def fail_in_the_last_call(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == STEPS:
            raise RuntimeError("planted")
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="planted"):
        patch.setattr(type(micro.scheduler), "step", fail_in_the_last_call)
        activations._add_batch(stats, as_denoiser(micro), CAPTIONS[2:], torch.ones(1, 2))
    assert all(torch.equal(sums, before[name]) for name, sums in stats.sums.items())
    activations._add_batch(stats, as_denoiser(micro), CAPTIONS[2:], torch.ones(1, 2))
    assert all((sums > before[name]).any() for name, sums in stats.sums.items())


def test_activations_that_are_not_finite_are_named():
    broken = micro_pipeline()
    with torch.no_grad():
        broken.unet.mid_block.attentions[0].proj_in.weight[:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"mid_block.* at step 0"):
        capture(broken, CAPTIONS[:1], **OPTIONS)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts: the list is empty"),
        (["a"], {"steps": 0}, "steps must be a whole number of at least 1; got 0"),
        (["a"], {"first": 0}, "first must be a whole number from 1 to 50, the steps of this sampling; got 0"),
        (["a"], {"first": 51}, "first must be a whole number from 1 to 50, the steps of this sampling; got 51"),
        (["a"], {"first": 1.5}, "first must be a whole number from 1 to 50, the steps of this sampling; got 1.5"),
        (["a"], {"groups": {}}, r"groups must name lists of prompts by text, .*; got \{\}"),
        (["a"], {"cfg_half": "bth"}, "cfg_half must be 'both' or 'cond'; got 'bth'"),
        (["a"], {"groups": {"A": []}}, "group 'A' holds no prompts"),
        (["a"], {"groups": {"A": [1]}}, "group 'A' names prompt 1, but there are 1"),
        (["a"], {"groups": [[0]]}, r"groups must name lists of prompts by text, .*; got \[\[0\]\]"),
        (["a"], {"groups": {1: [0]}}, r"groups must name lists of prompts by text, .*; got \{1: \[0\]\}"),
    ],
)
def test_bad_input_is_named(micro, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        capture(micro, prompts, **options)


# --- every layer once in every call -----------------------------------------------------------------------------------


def mid_block(pipe):
    return pipe.unet.mid_block.attentions[0].transformer_blocks[0]


@pytest.mark.parametrize("axis", [0, 1])  # rows, tokens
def test_feed_forward_layers_in_chunks_are_joined(micro, axis):
    pipe, whole = micro_pipeline(), capture(micro, CAPTIONS[:2], **OPTIONS)
    mid_block(pipe).set_chunk_feed_forward(2 if axis == 0 else 16, dim=axis)
    stats = capture(pipe, CAPTIONS[:2], **OPTIONS)
    for name, sums in whole.sums.items():
        torch.testing.assert_close(stats.sums[name], sums, rtol=1e-5, atol=1e-8)


def test_a_layer_that_is_skipped_is_refused(monkeypatch):
    pipe, calls = micro_pipeline(), []
    forward = mid_block(pipe).ff.forward

    def cached(hidden, *args, **kwargs):
        calls.append(hidden)
        return hidden if len(calls) == 2 else forward(hidden, *args, **kwargs)

    monkeypatch.setattr(mid_block(pipe).ff, "forward", cached)
    with pytest.raises(RuntimeError, match=r"layer mid_block\S+ was called 0 times in network call 1.*disable_cache"):
        capture(pipe, CAPTIONS[:1], **OPTIONS)


def test_a_network_that_calls_no_hooks_is_refused():
    pipe = micro_pipeline()
    pipe.unet._compiled_call_impl = pipe.unet.forward  # as an exported network is put in its place
    with pytest.raises(RuntimeError, match=r"0 network calls were seen, but 3 were expected.*without `torch"):
        capture(pipe, CAPTIONS[:1], **OPTIONS)


def test_a_network_that_is_called_on_part_of_the_rows_is_refused(micro):
    denoiser = as_denoiser(micro)
    hooks = hooked(denoiser, denoiser.layers(), lambda *_: None, rows=4)
    with hooks, pytest.raises(RuntimeError, match=r"called on 2 rows in network call 0, where 4 were expected"):
        denoiser.sample(CAPTIONS[:1], initial_noise(denoiser, [0]), 1, 5.0)


def test_calls_that_were_not_expected_are_refused():
    batch = BatchSums({"layer": 2}, torch.ones(1, 1), calls=1)
    batch.begin_call()
    batch.add("layer", torch.ones(1, 3, 2))
    batch.end_call({})
    with pytest.raises(RuntimeError, match="more than the 1 network calls that were expected"):
        batch.begin_call()


def test_sums_that_are_all_zero_are_refused():
    stats = ActivationStats({"a": torch.zeros(1, 1, 2), "b": torch.zeros(1, 1, 2)}, {"all": 1}, {}, [])
    with pytest.raises(RuntimeError, match="all sums of this capture are zero"):
        stats.check()
    stats.sums["b"][0, 0, 1] = 1
    stats.check()
