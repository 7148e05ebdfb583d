"""The rivals: each does what it says, and leaves the model as it was."""

import pytest
import torch

from memsub import mitigations
from memsub.attacks import first_step_scores
from memsub.generation import generate


def test_optimized_embeddings_reach_the_target_and_leave_the_rest_alone(pipe, prompts):
    some = prompts.memorized[:4]
    start = pipe.encode_prompt(some, pipe.device, 1, False)[0]
    before = first_step_scores(pipe, some, seeds=1)["text magnitude"]
    target = float(sorted(before)[1]) + 1e-3  # two prompts are there already
    found = mitigations.optimized_embeddings(pipe, some, target=target, iterations=30)
    done = before <= target
    for i in range(4):
        assert torch.equal(found[i], start[i]) == bool(done[i])
    assert generate(pipe, found, steps=2, progress=False).shape == (4, 32, 32, 3)
    assert all(p.grad is None for p in pipe.unet.parameters())
    with pytest.raises(ValueError, match="no prompts"):
        mitigations.optimized_embeddings(pipe, [], target=1.0)


def test_random_tokens_are_added_at_random_places(pipe):
    prompt = "a red star on a plain green background"
    changed = mitigations.add_random_tokens(pipe.tokenizer, [prompt] * 5, k=3, seed=1)
    assert len(set(changed)) > 1
    for text in changed:
        words = iter(text.split(" "))
        assert len(text.split(" ")) == len(prompt.split(" ")) + 3
        assert all(word in words for word in prompt.split(" "))  # in the same order
    assert mitigations.add_random_tokens(pipe.tokenizer, [prompt], k=0) == [prompt]
    with pytest.raises(ValueError, match="must not be negative"):
        mitigations.add_random_tokens(pipe.tokenizer, [prompt], k=-1)


def test_value_neurons_are_silenced_and_come_back(pipe):
    layers = mitigations.value_layers(pipe)
    assert len(layers) == 7  # two in each of three down blocks, one in the middle
    name, layer = next(iter(layers.items()))
    x = torch.randn(2, 5, layer.in_features)
    plain = layer(x)
    with pytest.raises(RuntimeError, match="planted"), mitigations.deactivated(pipe, {name: torch.tensor([1, 3])}):
        assert not layer(x)[..., [1, 3]].any()
        assert torch.equal(layer(x)[..., [0, 2]], plain[..., [0, 2]])
        raise RuntimeError("planted")
    assert torch.equal(layer(x), plain)


def test_value_neurons_of_a_memorized_prompt_lower_its_score(pipe, prompts):
    statistics = mitigations.value_statistics(pipe, prompts.of("heldout")[:50])
    scores = mitigations.memorization_score(pipe, prompts.memorized[:20])
    assert (scores > statistics.threshold).mean() > 0.5
    prompt = prompts.memorized[int(scores.argmax())]
    neurons = mitigations.find_value_neurons(pipe, prompt, statistics)
    with mitigations.deactivated(pipe, neurons):
        assert mitigations.memorization_score(pipe, [prompt])[0] < scores.max()
    unmemorized = prompts.of("heldout")[int(mitigations.memorization_score(pipe, prompts.of("heldout")[:20]).argmin())]
    assert mitigations.find_value_neurons(pipe, unmemorized, statistics) == {}
