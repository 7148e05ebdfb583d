"""Both sides of an edit, on images whose scores are known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import memsub
from memsub.measure.evaluation import alignment, alignment_each
from memsub.measure.intervals import clustered, interval, rate
from memsub.measure.metrics import CopyMetric, Metrics, PromptMetric
from memsub.measure.noise import noise_seeds
from memsub.measure.verdict import by_exact_test, by_threshold
from memsub_extra.notebooks.notebook04 import seed_similarity


def mean_colour(images: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(images.reshape(len(images), -1, 3).mean(1) + 1e-3), dim=1)


def named_colour(prompts: list[str]) -> torch.Tensor:
    return torch.stack([torch.eye(3, dtype=torch.float64)["rgb".index(p[0])] for p in prompts])


def one_colour(caption: str) -> np.ndarray:
    return np.broadcast_to(np.eye(3, dtype=np.uint8)["rgb".index(caption[0])] * 200, (4, 4, 3)).copy()


COLOURS = Metrics(CopyMetric(mean_colour, 0.9), PromptMetric(mean_colour, named_colour))


def as_asked(prompts, *, seeds):
    return np.stack([one_colour(p) for p in prompts])


def always_red(prompts, *, seeds):
    return np.stack([one_colour("r")] * len(prompts))


def test_scores_of_known_images():
    captions = ["red", "green", "blue"]
    references = as_asked(captions, seeds=[0] * 3)
    scored = memsub.score(always_red, COLOURS, captions, references, seeds=[4, 5])
    assert scored["prompt"].tolist() == ["red", "red", "green", "green", "blue", "blue"]
    assert scored["seed"].tolist() == [4, 5] * 3
    assert scored["replicated"].tolist() == [True, True] + [False] * 4
    np.testing.assert_allclose(scored["prompt_similarity"], [1, 1, 0, 0, 0, 0], atol=1e-4)
    np.testing.assert_allclose(scored["chance"], [0, 0, 0, 0, 1, 1], atol=1e-4)  # that of the next caption
    assert np.stack(scored["image_features"]).shape == (6, 3)
    verdict = by_threshold(COLOURS.copy)
    assert verdict.of(scored).tolist() == scored["replicated"].tolist()
    images = always_red(scored["prompt"], seeds=None)
    assert verdict(images, scored["prompt"], np.repeat(references, 2, axis=0)).tolist() == scored["replicated"].tolist()
    assert (alignment_each(scored) == scored["prompt_similarity"] - scored["chance"]).all()


def test_each_image_has_a_noise_of_its_own():
    asked = []

    def sample(prompts, *, seeds):
        asked.append(list(seeds))
        return as_asked(prompts, seeds=seeds)

    pair = ["red", "green"]
    scored = memsub.score(sample, COLOURS, pair, seeds=[7, 8])
    assert scored["seed"].tolist() == [7, 8, 7, 8]
    assert len(set(asked[0])) == 4
    assert asked[0] == noise_seeds(["red", "red", "green", "green"], [7, 8, 7, 8])
    # The same noise for the same image, whatever is sampled with it.
    memsub.score(sample, COLOURS, [*pair[::-1], "blue"], seeds=[7])
    assert asked[1][:2] == [asked[0][2], asked[0][0]]
    assert memsub.score(sample, COLOURS, pair)["seed"].tolist() == [0, 0]
    assert asked[2] == noise_seeds(pair, 0)


def test_the_interval_of_a_rate_counts_captions_and_not_their_images():
    prompts = [f"caption {i}" for i in range(20)]
    one = pd.DataFrame({"prompt": prompts, "replicated": [i < 10 for i in range(20)]})
    four = one.loc[np.repeat(one.index, 4)]  # all images of a caption alike
    together = rate("a", four["replicated"], four["prompt"])
    assert together["a_rate"] == 0.5
    assert together["a_low"] < interval(10, 20)[0] < interval(40, 80)[0]
    assert rate("a", one["replicated"], one["prompt"]) == rate("a", one["replicated"])
    assert clustered(np.zeros(80), four["prompt"]) == pytest.approx(interval(0, 20))


def test_summary_of_known_scores():
    captions = ["red", "green", "blue", "red too"]
    references = as_asked(captions, seeds=[0] * 4)
    found = memsub.summary(
        memsub.score(always_red, COLOURS, captions, references), memsub.score(as_asked, COLOURS, captions[:3])
    )
    assert found["replication_rate"] == 0.5
    assert (found["replication_low"], found["replication_high"]) == interval(2, 4)
    assert found["n"] == 4
    assert found["alignment"] == pytest.approx(1, abs=1e-3)
    assert found["prompt_similarity"] == pytest.approx(1, abs=1e-3)
    assert "exact_rate" not in found


def test_summary_counts_the_exact_test_and_means_other_metrics():
    scored = pd.DataFrame({"prompt_similarity": [1.0, 1.0], "chance": [0.0, 0.5], "copy_similarity": [1.0, 0.0]})
    scored = scored.assign(
        prompt=["a", "b"], replicated=[True, False], exact_p=[1 / 256, 2 / 256], sharpness=[2.0, 4.0]
    )
    found = memsub.summary(scored, scored)
    assert (found["exact_rate"], found["sharpness"], alignment(scored)) == (0.5, 3.0, 0.75)


def test_the_exact_verdict_of_a_table_requires_its_p_values():
    exact = by_exact_test(SimpleNamespace(name="somewhere"))
    assert exact.of(pd.DataFrame({"exact_p": [1 / 256, 2 / 256, np.nan]})).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="exact_p was not measured"):
        exact.of(pd.DataFrame({"copy_similarity": [1.0]}))


def test_intervals_are_wilsons():
    assert rate("x", [True, False]) == dict(zip(("x_rate", "x_low", "x_high"), (0.5, *interval(1, 2)), strict=True))
    assert interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-3)
    assert interval(10, 10)[1] == 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 captions with 1 training images"):
        memsub.score(as_asked, COLOURS, ["red", "green"], np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="two captions or more expected; got 1"):
        memsub.score(as_asked, COLOURS, ["red"])


def test_seed_similarity_is_one_for_a_fixed_image():
    np.testing.assert_allclose(seed_similarity(always_red, COLOURS, ["red", "blue"], seeds=3), np.ones((2, 3)))
