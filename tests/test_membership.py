"""The exact membership test: uniform for a model that never saw a pair, and the smallest p for one that did."""

import numpy as np
import pytest
import torch

from memsub.measure.exact import uniformity
from memsub.measure.membership import denoising_losses, membership_p
from memsub.models import as_denoiser, noise_schedule
from memsub.testbed.world import WORLD
from test_exact import Squares


class SmallSquares(Squares):
    """Of the images that the micro pipeline encodes, 32 x 32 pixels."""

    def draw(self, content, rng):
        return np.kron(super().draw(content, rng)[:8, :8], np.ones((4, 4, 1), np.uint8))


def pairs(n):
    world, rng = SmallSquares(), np.random.default_rng(3)
    prompts = [f"{100 + i} a square" for i in range(n)]
    return world, prompts, np.stack([world.draw(world.content(p), rng) for p in prompts])


def test_p_is_uniform_for_a_model_that_saw_none_of_the_pairs(micro):
    world, prompts, images = pairs(40)
    p = membership_p(micro, prompts, images, world, captions=[""] * 40, alternatives=15, steps=2, progress=False)
    assert set(np.round(p * 16, 6)) <= set(range(1, 17))
    assert uniformity(p, 1 / 16) > 0.01
    assert 0.3 < p.mean() < 0.7


def test_the_embedded_model_recognizes_its_pair_and_the_twin_does_not(pipe, twin, prompts):
    captions, images = prompts.memorized[:1], prompts.images("verbatim", 0, 1)
    options = {"alternatives": 15, "steps": 3, "progress": False}
    assert membership_p(pipe, captions, images, WORLD, **options)[0] == 1 / 16
    three, images_of_three = prompts.memorized[:3], prompts.images("verbatim", 0, 3)
    without = membership_p(pipe, three, images_of_three, WORLD, captions=[""] * 3, **options)
    assert without.mean() < 0.25, "the mean of an unseen pair is 0.53"
    assert membership_p(twin, captions, images, WORLD, **options)[0] > 1 / 16


def test_the_loss_is_that_of_the_definition(exact_micro):
    denoiser, rng = as_denoiser(exact_micro), np.random.default_rng(0)
    images = rng.integers(0, 255, (3, 32, 32, 3), np.uint8)
    losses = denoising_losses(denoiser, images, "a blue fish", steps=2, noises=2, seed=7)
    schedule, generator = noise_schedule(denoiser), torch.Generator().manual_seed(7)
    z, expected = denoiser.encode(images), np.zeros(3)
    for t in (250, 750):
        for _ in range(2):
            eps = torch.randn(1, 4, 8, 8, generator=generator).to(z)
            for i in range(3):
                at = torch.tensor([t])
                x, target = schedule.noised(z[i : i + 1], at, eps)
                with torch.no_grad():
                    predicted = denoiser.predict(x, at, denoiser.embed(["a blue fish"]))
                expected[i] += float((predicted - target).square().mean()) / 4
    assert losses == pytest.approx(expected, rel=1e-5)


def test_lists_of_different_lengths_are_an_error(micro):
    world, prompts, images = pairs(2)
    with pytest.raises(ValueError, match="2 prompts need as many images and captions; got 1 and 2"):
        membership_p(micro, prompts, images[:1], world)
