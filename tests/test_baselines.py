"""The baselines: each does what it says, and leaves the model as it was."""

import pytest
import torch

from memsub import baselines
from memsub.baselines.value_neurons import memorization_score
from memsub.denoiser import as_denoiser
from memsub.detection import first_step_scores
from memsub.generation import generate


def test_optimized_embeddings_reach_the_target_and_leave_the_rest_alone(pipe, prompts):
    some = prompts.memorized[:4]
    start = as_denoiser(pipe).embed(some)
    before = first_step_scores(pipe, some, seeds=1)["text magnitude"]
    target = float(sorted(before)[1]) + 1e-3  # two prompts are there already
    found = baselines.optimized_embeddings(pipe, some, target=target, iterations=30)
    done = before <= target
    for i in range(4):
        assert torch.equal(found[i], start[i]) == bool(done[i])
    assert generate(pipe, found, steps=2, progress=False).shape == (4, 32, 32, 3)
    assert all(p.grad is None for p in pipe.unet.parameters())
    with pytest.raises(ValueError, match="no prompts"):
        baselines.optimized_embeddings(pipe, [], target=1.0)


def test_random_tokens_are_added_at_random_places(pipe):
    prompt = "a red heart on a plain green background"
    changed = baselines.add_random_tokens(pipe.tokenizer, [prompt] * 5, k=3, seed=1)
    assert len(set(changed)) > 1
    for text in changed:
        words = iter(text.split(" "))
        assert len(text.split(" ")) == len(prompt.split(" ")) + 3
        assert all(word in words for word in prompt.split(" "))  # in the same order
    assert baselines.add_random_tokens(pipe.tokenizer, [prompt], k=0) == [prompt]
    with pytest.raises(ValueError, match="must not be negative"):
        baselines.add_random_tokens(pipe.tokenizer, [prompt], k=-1)


def test_value_neurons_are_silenced_and_come_back(exact_pipe):
    layers = as_denoiser(exact_pipe).value_layers()
    assert len(layers) == 7  # two in each of three down blocks, one in the middle
    name, layer = next(iter(layers.items()))
    x = torch.randn(2, 5, layer.in_features, dtype=torch.float64)
    plain = layer(x)
    masks = torch.zeros(2, layer.out_features, dtype=torch.bool)
    masks[0, [1, 3]] = masks[1, 2] = True  # each prompt has its own
    with pytest.raises(RuntimeError, match="planted"), baselines.deactivated(exact_pipe, {name: masks}):
        for half in layer(torch.cat([x, x])).chunk(2):  # as under guidance
            assert torch.equal(half == 0, masks[:, None].expand_as(half))
            others = ~masks[:, None].expand_as(half)
            torch.testing.assert_close(half[others], plain[others], rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match="neurons of 2 prompts do not fit a UNet call on 3 rows"):
            layer(torch.cat([x, x[:1]]))
        raise RuntimeError("planted")
    assert torch.equal(layer(x), plain)


def test_value_neurons_of_memorized_prompts_lower_their_scores(exact_pipe, prompts):
    pipe = exact_pipe
    never_seen = prompts.of("heldout")[:30]
    statistics = baselines.value_statistics(pipe, never_seen)
    spread = 2.0  # under NeMo's one deviation hardly any memorized prompt of this model comes
    threshold = statistics.score_mean + spread * statistics.score_std
    some = [*prompts.memorized[:4], *never_seen[:2]]
    scores = memorization_score(pipe, some)
    assert (scores[:4] > threshold).float().mean() >= 0.5
    neurons = baselines.find_value_neurons(pipe, some, statistics, spread=spread)
    found = torch.cat(list(neurons.values()), 1)
    assert torch.equal(found.any(1), scores > threshold)  # a prompt that scores under it is left alone
    with baselines.deactivated(pipe, neurons):
        without = memorization_score(pipe, some, len(some))
    assert without[found.any(1)].mean() < scores[found.any(1)].mean()
    # Of a prompt that came under the threshold no neuron is superfluous.
    (prompt,) = torch.nonzero(found.any(1) & (without <= threshold))[:1, 0].tolist()
    for name, mask in neurons.items():
        for neuron in torch.nonzero(mask[prompt])[:, 0].tolist():
            fewer = {n: m[prompt : prompt + 1].clone() for n, m in neurons.items()}
            fewer[name][0, neuron] = False
            with baselines.deactivated(pipe, fewer):
                assert memorization_score(pipe, [some[prompt]], 1)[0] > threshold
    # Alone, a prompt has the neurons that it has among others.
    alone = baselines.find_value_neurons(pipe, some[prompt : prompt + 1], statistics, spread=spread)
    assert all(torch.equal(m[0], neurons[n][prompt]) for n, m in alone.items())
    more = baselines.find_value_neurons(pipe, some[:2], statistics, spread=-2, z_min=0)
    assert sum(m.sum() for m in more.values()) > found[:2].sum()
