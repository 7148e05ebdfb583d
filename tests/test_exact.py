"""The exact test: right p-values on constructed cases, uniform where nothing is memorized, and not deceived by blur."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from memsub.measure import exact
from memsub.measure.exact import ALTERNATIVES, LEVEL, blurred_pixels, uniformity
from memsub.measure.verdict import by_exact_test, judge
from memsub.testbed import world as testbed
from memsub.testbed.scenes import parse, render, sample_layout
from memsub.testbed.towers import to_tensor
from memsub.testbed.world import WORLD, exact_p
from memsub.world import WORLDS
from memsub_extra.training.scorers import blurred

CAPTIONS = ("a red heart and a blue fish on a striped green background", "a pink ring on a gradient black background")
"""Few: the alternatives of each take half a second to render, and are kept for all tests."""


def scenes(n: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Captions in turn, and two scenes of each in layouts of their own."""
    captions = [CAPTIONS[i % 2] for i in range(n)]
    rng = np.random.default_rng(seed)
    one, other = (np.stack([render(c, sample_layout(rng, c)) for c in map(parse, captions)]) for _ in range(2))
    return captions, one, other


# --- any world -----------------------------------------------------------------------------------------------


class Squares:
    """A world whose captions are numbers: a square of that brightness anywhere in an image of 12 x 12 pixels."""

    name = "squares"

    def content(self, prompt: str) -> int:
        return int(prompt.split()[0])

    def draw(self, content: int, rng: np.random.Generator) -> np.ndarray:
        image = rng.integers(0, 40, (12, 12, 3), np.uint8)
        x, y = rng.integers(0, 8, 2)
        image[x : x + 4, y : y + 4] = content
        return image

    def alternatives(self, contents: Sequence[int], seed: int = 0) -> Iterator[np.ndarray]:
        for content in contents:
            rng = np.random.default_rng([seed, content])
            yield np.stack([self.draw(content, rng) for _ in range(ALTERNATIVES)])


def test_p_is_uniform_in_any_world_where_nothing_is_memorized():
    world, rng = Squares(), np.random.default_rng(1)
    prompts = [f"{100 + i} a square" for i in range(60)]
    images, references = (np.stack([world.draw(world.content(p), rng) for p in prompts]) for _ in range(2))
    p = exact.exact_p(images, prompts, references, world)
    assert uniformity(p) > 0.01
    assert (p <= LEVEL).mean() <= 0.05
    assert not by_exact_test(world)(images, prompts, references).all()
    assert (exact.exact_p(references, prompts, references, world, seed=3) == LEVEL).all()
    assert by_exact_test(world)(references, prompts, references).all()
    assert uniformity(np.full(60, LEVEL)) < 1e-6


def test_rows_of_one_content_share_their_alternatives_and_rows_keep_their_places():
    world, rng = Squares(), np.random.default_rng(2)
    prompts = ["200 a", "120", "200 b", "120"]
    images, references = (np.stack([world.draw(world.content(p), rng) for p in prompts]) for _ in range(2))
    together = exact.exact_p(images, prompts, references, world)
    alone = [exact.exact_p(images[i : i + 1], prompts[i : i + 1], references[i : i + 1], world)[0] for i in range(4)]
    assert together.tolist() == alone


# --- the testbed ---------------------------------------------------------------------------------------------


def test_p_counts_the_alternatives_that_are_as_similar():
    caption = CAPTIONS[0]
    content = parse(caption)
    fresh = next(WORLD.alternatives([content]))
    assert fresh.shape == (ALTERNATIVES, 32, 32, 3)
    image = fresh[3:4]  # one alternative is the image itself: similarity one
    similar = blurred_pixels(fresh) @ blurred_pixels(image)[0]
    others = [render(content, sample_layout(np.random.default_rng(seed), content))[None] for seed in (1, 2)]
    for reference in (*others, fresh[10:11], fresh[200:201]):
        cosine = (blurred_pixels(reference) @ blurred_pixels(image)[0])[0]
        assert exact_p(image, [caption], reference)[0] == (1 + (similar >= cosine - 1e-6).sum()) / (ALTERNATIVES + 1)
    for same in range(0, ALTERNATIVES, 15):  # as similar as itself, once, however the sums are rounded
        assert exact_p(fresh[same : same + 1], [caption], fresh[same : same + 1])[0] == 2 / (ALTERNATIVES + 1)
    assert np.isnan(exact_p(image, [caption], None)).all()


def test_p_is_uniform_where_nothing_is_memorized():
    captions, images, references = scenes(60, 1)
    p = exact_p(images, captions, references)
    assert uniformity(p) > 0.01
    assert (p <= LEVEL).mean() <= 0.05


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_copy_is_detected_however_blurred(strength):
    captions, images, _ = scenes(12, 2)
    soft = blurred(to_tensor(images), torch.full((12,), strength)) if strength else to_tensor(images)
    copies = ((soft.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert (exact_p(copies, captions, images) == LEVEL).all()
    gray = (copies.astype(int) // 4 + 96).astype(np.uint8)  # washed out too
    assert (exact_p(gray, captions, images) <= 2 * LEVEL).all()


def test_any_similarity_will_do(metrics):
    captions, images, references = scenes(20, 3)
    assert (exact_p(images, captions, images, features=metrics.copy.features) == LEVEL).all()
    assert exact_p(images, captions, references, features=metrics.copy.features).mean() > 0.25


def test_a_caption_of_another_world_is_named():
    with pytest.raises(ValueError, match="is no caption of this world"):
        exact_p(
            np.zeros((1, 32, 32, 3), np.uint8),
            ["The No Limits Business Woman Podcast"],
            np.zeros((1, 32, 32, 3), np.uint8),
        )


def test_alternatives_are_a_function_of_content_and_seed_whoever_renders_them(monkeypatch, prompts):
    monkeypatch.setattr(testbed, "_cached", {})
    monkeypatch.setattr(exact, "ALTERNATIVES", 2)
    contents = [parse(caption) for caption in prompts.of("heldout")[:9]]
    alone = [next(WORLD.alternatives([content], seed=5)) for content in contents]
    monkeypatch.setattr(testbed, "_cached", {})
    monkeypatch.setattr(testbed, "_KEPT", 4)
    monkeypatch.setattr(testbed.os, "cpu_count", lambda: 2)
    together = list(WORLD.alternatives(contents, seed=5))  # by two processes
    np.testing.assert_array_equal(alone, together)
    assert list(testbed._cached) == [(content, 5) for content in contents[-4:]]
    np.testing.assert_array_equal(next(WORLD.alternatives(contents[-1:], seed=5)), together[-1])
    assert (next(WORLD.alternatives(contents[:1], seed=6)) != together[0]).any()


def test_the_verdict_is_exact_where_there_is_a_world_and_by_threshold_elsewhere(metrics):
    captions, images, references = scenes(6, 4)
    mixed = np.concatenate([images[:3], references[3:]])
    exactly, alike = judge(WORLDS["testbed"], metrics.copy), judge(None, metrics.copy)
    assert (exactly.column, alike.column) == ("exact", "replication")
    assert exactly.fingerprint != alike.fingerprint
    for verdict in (exactly, alike):
        assert verdict(mixed, captions, images).tolist() == [True] * 3 + [False] * 3
