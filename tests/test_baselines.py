"""The baselines: each does what it says, and leaves the model as it was."""

from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from diffusers import UNet2DConditionModel

from memsub.models import as_denoiser, generate, initial_noise
from memsub_extra import mitigations as baselines
from memsub_extra.mitigations import random_tokens, value_neurons
from memsub_extra.mitigations.detection import first_step_scores
from memsub_extra.mitigations.value_neurons import memorization_score, value_layers

SOME = ["a red heart", "a blue fish and a pink moon", "a green star on a white background", "two cats"]


def test_optimized_embeddings_reach_the_target_and_leave_the_rest_alone(micro):
    start = as_denoiser(micro).embed(SOME)
    before = first_step_scores(micro, SOME, seeds=1)["text magnitude"]
    target = float(sorted(before)[1]) + 1e-3  # two prompts are there already
    moved = baselines.optimized_embeddings(micro, SOME, target=target, iterations=30)
    done = before <= target
    assert done.sum() == 2
    for i in range(4):
        assert torch.equal(moved[i].embeddings, start[i].embeddings) == bool(done[i])
    noise = initial_noise(micro, [0])
    after = [text_share(micro, moved[i], noise) for i in range(4)]
    assert all(after[i] < before[i] for i in range(4) if not done[i])
    assert generate(micro, moved, steps=2, progress=False).shape == (4, 32, 32, 3)
    assert all(p.grad is None for p in micro.unet.parameters())
    with pytest.raises(ValueError, match="no prompts"):
        baselines.optimized_embeddings(micro, [], target=1.0)


@torch.no_grad()
def text_share(pipe, conditioning, noise) -> float:
    """Length of the text's share of the first prediction."""
    denoiser = as_denoiser(pipe)
    denoiser.scheduler.set_timesteps(50)
    t = denoiser.scheduler.timesteps[0]
    with_text, without = (denoiser.predict(noise, t, c) for c in (conditioning, denoiser.embed([""])))
    return float((with_text - without).norm())


def test_optimized_embeddings_are_the_same_whatever_the_batch(exact_micro):
    options = {"target": 0.0, "iterations": 3, "seeds": range(4)}
    together, apart = (
        baselines.optimized_embeddings(exact_micro, SOME, batch_size=n, **options).embeddings for n in (4, 1)
    )
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)  # they are optimized in float32


def test_random_tokens_are_added_at_random_places(micro):
    prompt = "a red heart on a plain green background"
    changed = random_tokens.add_random_tokens(micro.tokenizer, [prompt] * 5, k=3, seed=1)
    assert len(set(changed)) > 1
    for text in changed:
        words = iter(text.split(" "))
        assert len(text.split(" ")) == len(prompt.split(" ")) + 3
        assert all(word in words for word in prompt.split(" "))  # in the same order
    assert random_tokens.add_random_tokens(micro.tokenizer, [prompt], k=0) == [prompt]
    with pytest.raises(ValueError, match="must not be negative"):
        random_tokens.add_random_tokens(micro.tokenizer, [prompt], k=-1)


def test_value_layers_are_those_on_the_way_down_and_in_the_middle(micro):
    weights = files("memsub") / "testbed" / "weights"
    denoiser = as_denoiser(micro)
    assert len(value_layers(denoiser)) == 2
    with torch.device("meta"):
        denoiser.network = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(weights / "unet"))
    assert len(value_layers(denoiser)) == 7  # two in each of three down blocks, one in the middle


def test_value_neurons_are_silenced_and_come_back(exact_micro):
    name, layer = next(iter(value_layers(as_denoiser(exact_micro)).items()))
    x = torch.randn(2, 5, layer.in_features, dtype=torch.float64)
    plain = layer(x)
    masks = torch.zeros(2, layer.out_features, dtype=torch.bool)
    masks[0, [1, 3]] = masks[1, 2] = True  # each prompt has its own
    with pytest.raises(RuntimeError, match="planted"), value_neurons.deactivated(exact_micro, {name: masks}):
        for half in layer(torch.cat([x, x])).chunk(2):  # as under guidance
            assert torch.equal(half == 0, masks[:, None].expand_as(half))
            others = ~masks[:, None].expand_as(half)
            torch.testing.assert_close(half[others], plain[others], rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match="neurons of 2 prompts do not fit a UNet call on 3 rows"):
            layer(torch.cat([x, x[:1]]))
        raise RuntimeError("planted")
    assert torch.equal(layer(x), plain)


def without(pipe, prompts, neurons) -> torch.Tensor:
    """Scores of prompts whose neurons are silenced."""
    with value_neurons.deactivated(pipe, neurons):
        return memorization_score(pipe, prompts, len(prompts))


def test_the_neurons_of_each_prompt_are_needed_and_enough(exact_micro):
    pipe = exact_micro
    statistics = value_neurons.value_statistics(
        pipe, [f"{n} red hearts" for n in ["two", "three", "four", "five", "six"]]
    )
    scores = memorization_score(pipe, SOME)
    threshold = 1.55  # two of them score over it, and come under it when their neurons are silenced
    assert (scores > threshold).sum() == 2
    statistics, options = replace(statistics, score_mean=threshold, score_std=0.0), {"z": 2.0, "z_min": 0.0}
    neurons = value_neurons.find_value_neurons(pipe, SOME, statistics, **options)
    silenced = torch.cat(list(neurons.values()), 1)
    assert torch.equal(silenced.any(1), scores > threshold)  # a prompt that scores under it is left alone
    after = without(pipe, SOME, neurons)
    assert after[silenced.any(1)].mean() < scores[silenced.any(1)].mean()
    # Of a prompt that came under the threshold no neuron is superfluous.
    (prompt,) = torch.nonzero(silenced.any(1) & (after <= threshold))[:1, 0].tolist()
    for name, mask in neurons.items():
        for neuron in torch.nonzero(mask[prompt])[:, 0].tolist():
            fewer = {n: m[prompt : prompt + 1].clone() for n, m in neurons.items()}
            fewer[name][0, neuron] = False
            assert without(pipe, [SOME[prompt]], fewer)[0] > threshold
    # Alone, a prompt has the neurons that it has among others.
    alone = value_neurons.find_value_neurons(pipe, SOME[prompt : prompt + 1], statistics, **options)
    assert all(torch.equal(m[0], neurons[n][prompt]) for n, m in alone.items())
    # With a threshold that every prompt exceeds, all that lies out is silenced.
    more = value_neurons.find_value_neurons(pipe, SOME[:2], replace(statistics, score_mean=-1.0), **options)
    assert sum(m.sum() for m in more.values()) > silenced[:2].sum()


def test_value_neurons_of_a_memorized_prompt_lower_its_score(pipe, prompts):
    unseen = prompts.of("heldout")[:8]
    statistics = value_neurons.value_statistics(pipe, unseen)
    spread = 1.0  # NeMo's
    threshold = statistics.score_mean + spread * statistics.score_std
    some = [*prompts.memorized[:4], unseen[0]]
    scores = memorization_score(pipe, some)
    assert (scores[:4] > threshold).float().mean() >= 0.5
    (first,) = torch.nonzero(scores > threshold)[:1, 0].tolist()
    two = [some[first], some[4]]
    neurons = value_neurons.find_value_neurons(pipe, two, statistics, spread=spread, z=3.0)
    assert torch.cat(list(neurons.values()), 1).any(1).tolist() == [True, bool(scores[4] > threshold)]
    assert without(pipe, two, neurons)[0] < scores[first]


def test_searches_declare_more_than_they_take(exact_micro):
    denoiser, counted, declared = as_denoiser(exact_micro), [], []
    predict, denoiser.declare = denoiser.predict, declared.append
    denoiser.predict = lambda x, t, c: counted.append(len(x)) or predict(x, t, c)
    statistics = value_neurons.value_statistics(denoiser, SOME)
    counted.clear()
    lower = replace(statistics, score_mean=0.9 * statistics.score_mean, score_std=0.0)
    value_neurons.find_value_neurons(denoiser, SOME[:2], lower, z_min=0.0)
    assert len(declared) == 1 and sum(counted) <= 4 * 2 + declared[0]
    counted.clear()
    baselines.optimized_embeddings(denoiser, SOME[:2], target=0.0, iterations=4)
    assert declared[1] == 3 * 2 * 3  # rows with gradients of two prompts in three iterations more than the first
    assert sum(counted) == 2 + 4 * 2


def test_statistics_need_two_prompts(micro):
    with pytest.raises(ValueError, match="statistics need two prompts or more; got 1"):
        value_neurons.value_statistics(micro, ["a"])


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_every_baseline_samples_an_image_a_prompt(micro, name):
    def sample(given, *, seeds):
        return generate(micro, given, seeds=seeds, steps=2, progress=False)

    context = baselines.Context(micro, sample, SOME, steps=2, batch_size=2, gradient_rows=2)
    baseline = baselines.BASELINES[name]
    strength = baseline.strengths[0]
    assert baseline.make(context, strength)(SOME[:3], seeds=[0, 1, 2]).shape == (3, 32, 32, 3)
    assert isinstance(baseline.label(strength), str)
