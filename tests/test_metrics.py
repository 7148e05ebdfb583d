"""The judges, against answers known from the world's construction."""

import numpy as np
import pytest

import memsub
from memsub.testbed import judges as judging
from memsub.testbed.report import attribute_rank
from memsub.testbed.scenes import caption, parse


@pytest.fixture(scope="module")
def fresh():
    """Scenes no judge was trained on and no threshold chosen on."""
    return judging.judge_scenes(seed=77, contents=60, workers=1)


def test_copies_above_and_distinct_scenes_below_the_threshold(pipe, judges, fresh):
    _, pairs, _ = judging.copy_roc(judges.copy.model, fresh, pipe.vae)
    above = (pairs["similarity"] > judges.copy.threshold).groupby(pairs["pair"]).mean()
    for kind in ("noise", "blur", "autoencoder round trip", "shift", "crop"):
        assert above[kind] > 0.95, kind
    assert above["distinct, same caption"] < 0.02
    # Known limit, in the model card: about 0.3 of the scenes with one attribute changed count as copies.


def test_an_image_is_a_copy_of_itself(judges, fresh):
    images = fresh.images[:20, 0]
    np.testing.assert_allclose(judges.copy.similarity(images, images), 1, atol=1e-5)
    nearest, which = judges.copy.nearest(images, judges.copy.features(images[::-1].copy()))
    assert which.tolist() == list(range(19, -1, -1))
    np.testing.assert_allclose(nearest, 1, atol=1e-5)


def test_the_true_caption_wins(judges, fresh):
    images, captions = fresh.images[:, 0], [caption(c) for c in fresh.contents]
    right = judges.prompt.similarity(images, captions)
    assert (right > judges.prompt.similarity(images, captions[1:] + captions[:1])).mean() > 0.95
    # Chance is 1/16. The judge reaches about 0.35, a known limit that the model card states.
    assert (attribute_rank(images, fresh.contents, judges) == 0).mean() > 0.2


def test_fid_tells_real_scenes_from_a_shifted_distribution(judges, prompts):
    real = prompts.images("heldout")
    same = memsub.fid(real[:1000], real[1000:], judges.prompt)
    darker = memsub.fid(real[:1000], real[1000:] // 2, judges.prompt)
    assert 0 <= same < 0.2 * darker


def test_bad_images_are_named(judges):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=r"uint8 array of shape .* got float64"):
        judges.copy.features(images / 255)
    with pytest.raises(ValueError, match="2 images against 1 references"):
        judges.copy.similarity(images, images[:1])
    with pytest.raises(ValueError, match="2 images against 1 prompts"):
        judges.prompt.similarity(images, ["a red star on a plain green background"])
    with pytest.raises(ValueError, match="images is empty"):
        judges.copy.features(images[:0])
    with pytest.raises(ValueError, match="two images or more"):
        memsub.fid(images[:1], images, judges.prompt)
    with pytest.raises(FileNotFoundError, match="holds no folder `judges`"):
        memsub.load_judges("somewhere")


def test_prompt_tables(prompts):
    assert len(prompts.memorized) == 100
    assert prompts.images("verbatim").shape == (100, 32, 32, 3)
    assert parse(prompts.memorized[0])
    with pytest.raises(ValueError, match="Did you mean 'verbatim'"):
        prompts.of("verbatm")
    with pytest.raises(ValueError, match="no prompt list named 'tinny'"):
        memsub.load_prompts("tinny")
