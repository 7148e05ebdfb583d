"""Detection: scores on constructed cases whose answer is known, and on the embedded model."""

import numpy as np
import pandas as pd
import pytest
import torch

from memsub.detection import first_step_scores, noise_change, roc, text_magnitude


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
        first_step_scores(pipe, prompts.of(kind)[:16], seeds=2)["text magnitude"] for kind in ("verbatim", "heldout")
    ]
    assert roc(*scores)[0] > 0.8
    assert first_step_scores(pipe, prompts.memorized[:3], seeds=2, batch_size=2)["noise change"].shape == (3,)


def test_an_unknown_score_is_named(pipe):
    with pytest.raises(ValueError, match="unknown score 'txt'; expected some of text magnitude, noise change"):
        first_step_scores(pipe, ["a"], scores=["txt"])
