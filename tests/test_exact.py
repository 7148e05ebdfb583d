"""The exact test: right p-values on constructed cases, uniform where nothing is remembered, and not fooled by blur."""

import numpy as np
import pytest
import torch

from memsub.exact import LAYOUTS, LEVEL, blurred_pixels, exact_p, fresh_layouts, uniformity
from memsub.testbed import dataset
from memsub.testbed.scenes import parse, render, sample_layout
from memsub.testbed.scorers import blurred
from memsub.testbed.towers import to_tensor


def scenes(n: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Captions, and two scenes of each in layouts of their own."""
    captions = dataset.ground_truth().query("kind == 'heldout'")["content"].tolist()[:n]
    rng = np.random.default_rng(seed)
    one, other = (np.stack([render(c, sample_layout(rng, c)) for c in map(parse, captions)]) for _ in range(2))
    return captions, one, other


def test_p_counts_the_fresh_layouts_that_are_as_similar():
    caption = "a red heart and a blue fish on a striped green background"
    content = parse(caption)
    fresh = fresh_layouts(content)
    assert fresh.shape == (LAYOUTS, 32, 32, 3)
    image = fresh[3:4]  # one fresh layout is the image itself: similarity one
    similar = blurred_pixels(fresh) @ blurred_pixels(image)[0]
    drawn = [render(content, sample_layout(np.random.default_rng(seed), content))[None] for seed in (1, 2)]
    for reference in (*drawn, fresh[10:11], fresh[200:201]):
        own = (blurred_pixels(reference) @ blurred_pixels(image)[0])[0]
        assert exact_p(image, [caption], reference)[0] == (1 + (similar >= own - 1e-6).sum()) / (LAYOUTS + 1)
    for same in range(0, LAYOUTS, 15):  # as similar as itself, once, however the sums are rounded
        assert exact_p(fresh[same : same + 1], [caption], fresh[same : same + 1])[0] == 2 / (LAYOUTS + 1)
    assert np.isnan(exact_p(image, [caption], None)).all()


def test_it_is_uniform_where_nothing_is_remembered():
    captions, images, references = scenes(60, 1)
    p = exact_p(images, captions, references)
    assert uniformity(p) > 0.01
    assert (p <= LEVEL).mean() <= 0.05
    assert uniformity(np.full(60, LEVEL)) < 1e-6


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_copy_is_found_however_blurred(strength):
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
        exact_p(np.zeros((1, 32, 32, 3), np.uint8), ["The No Limits Business Woman Podcast"], np.zeros((1, 32, 32, 3)))
