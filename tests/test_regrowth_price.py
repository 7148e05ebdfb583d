"""What regrowth costs and needs: its trials, the data of each, and a row of the table, on a tiny network."""

import numpy as np
import pytest
from tools import figures, regrowth_price
from tools.regrowth_price import Prices, Trial, ordinary_pairs, row, trials

from memsub_extra.unlearning.pairs import Pairs, Subjects


@pytest.fixture
def subjects(prompts):
    def few(kind: str, n: int) -> Pairs:
        rows = prompts.rows(kind)[:n]
        return Pairs(rows["prompt"].tolist(), prompts.images(kind, 0, n))

    return Subjects(few("verbatim", 3), few("verbatim", 2), few("heldout", 3), few("ordinary", 40))


def test_trials_are_quality_against_compute_and_then_other_data():
    made = list(trials((300, 900, 1800)))
    assert [(t.method, t.steps) for t in made[:2]] == [("regrowth", 300), ("training anew", 300)]
    assert {t.method for t in made[6:]} == {"regrowth"}
    assert {t.steps for t in made[6:]} == {900}
    assert [(t.pairs, t.contaminated) for t in made[6:]] == [(1000, 0), (5000, 0), (20_000, 0.001), (20_000, 0.01)]
    assert len(set(made)) == len(made) == 10


def test_contaminated_pairs_are_memorized_ones_in_the_places_of_ordinary_ones(subjects):
    assert ordinary_pairs(subjects, Trial("regrowth", 1, pairs=30)).captions == subjects.ordinary.captions[:30]
    mixed = ordinary_pairs(subjects, Trial("regrowth", 1, pairs=40, contaminated=0.1))
    places = [i for i, text in enumerate(mixed.captions) if text != subjects.ordinary.captions[i]]
    assert len(places) == 4
    assert {mixed.captions[i] for i in places} == set(subjects.forget_set.captions)
    for i in places:
        known = subjects.forget_set.captions.index(mixed.captions[i])
        assert np.array_equal(mixed.images[i], subjects.forget_set.images[known])
    others = [i for i in range(40) if i not in places]
    assert np.array_equal(mixed.images[others], subjects.ordinary.images[others])


def test_a_trial_is_trained_and_measured_once(micro, other_micro, metrics, subjects, tmp_path, monkeypatch):
    prices, trial = Prices(tmp_path, subjects, micro, metrics), Trial("regrowth", 2, pairs=20)
    edit, cost = prices.edit(trial, alone=1, progress=False)
    assert cost["minutes"] > 0
    assert not cost["resumed"]
    assert edit.provenance["removal"]["steps"] == 2
    made = row(trial, cost, prices.measured(micro, edit), prices.measured(other_micro))
    assert made["n"] == 3
    for name in ("replicated", "alignment", "membership", "against_twin"):
        assert made[f"{name}_low"] <= made[name] <= made[f"{name}_high"]
    assert figures.price([made]).splitlines()[2].startswith("| regrowth | 2 | 20 | 0 % |")
    before = prices.minutes()
    for name in ("replication", "score", "membership"):
        monkeypatch.setattr(regrowth_price, name, lambda *_, **__: pytest.fail("measured once more"))
    assert prices.edit(trial, alone=1, progress=False)[1] == cost
    prices.measured(micro, edit)
    assert prices.minutes() == before
