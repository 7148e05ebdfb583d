"""Detection: scores on constructed cases whose answer is known, and on the embedded model."""

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from memsub_extra.mitigations.detection import SCORES, first_step_scores, noise_change, roc, step_scores, text_magnitude
from toys import Toy


def test_scores_of_known_predictions():
    start, unconditional = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    conditional = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert text_magnitude(start, unconditional, conditional).tolist() == [0, 4]
    assert noise_change(start, unconditional, conditional).tolist() == [2, 6]


def test_a_score_with_a_known_auc():
    auc, curve = roc(np.array([3.0, 2.0]), np.array([1.0, 2.5]))
    assert auc == 0.75
    assert isinstance(curve, pd.DataFrame)
    assert curve["true_positives"].iloc[-1] == 1


def test_the_text_matters_more_for_memorized_captions(pipe, prompts):
    scores = [
        first_step_scores(pipe, prompts.of(kind)[:10], seeds=2)["text magnitude"] for kind in ("verbatim", "heldout")
    ]
    assert roc(*scores)[0] > 0.8


def test_scores_do_not_depend_on_the_batch(exact_micro):
    captions = ["a", "a red heart", "two blue cats"]
    options = {"seeds": 2, "steps": 4, "calls": 3}
    together, apart = (step_scores(exact_micro, captions, batch_size=n, **options) for n in (64, 2))
    assert list(together) == list(SCORES)
    for name, values in together.items():
        assert values.shape == (3, 3)
        np.testing.assert_allclose(apart[name], values, rtol=1e-6)
        means = first_step_scores(exact_micro, captions, scores=[name], **options)[name]
        np.testing.assert_allclose(means, values.mean(1), rtol=1e-6)


def test_an_unknown_score_is_named(micro):
    with pytest.raises(ValueError, match=r"unknown score 'txt'\. Expected one of text magnitude, noise change"):
        first_step_scores(micro, ["a"], scores=["txt"])


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [(DDIMScheduler(prediction_type="sample"), "sample"), (FlowMatchEulerDiscreteScheduler(), "flow")],
)
def test_a_score_that_is_not_defined_for_a_prediction_is_refused_by_name(scheduler, kind):
    toy = Toy(scheduler)
    message = f"'noise change' is defined for networks that predict epsilon or v_prediction; this one predicts {kind}"
    with pytest.raises(ValueError, match=rf"{message}: give scores=\['text magnitude'\]"):
        first_step_scores(toy, ["a"], steps=2)
    assert step_scores(toy, ["a"], steps=3, calls=2, scores=["text magnitude"])["text magnitude"].shape == (1, 2)


def test_a_sampler_with_noise_of_its_own_gives_the_same_scores_twice():
    toy, options = Toy(EulerAncestralDiscreteScheduler()), {"steps": 4}
    first, again = (step_scores(toy, ["a", "bb"], **options)["text magnitude"] for _ in range(2))
    assert (first == again).all()
    later, again = (step_scores(toy, ["a", "bb"], calls=2, **options)["text magnitude"] for _ in range(2))
    assert (later == again).all()  # the noise of its second call comes from the caption's generator
