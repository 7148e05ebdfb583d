"""The steps of CONTRIBUTING are real: each example, put where it says, works as registered."""

import re
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import memsub
import memsub.removal  # whole, before an example stands in for one of its modules
from memsub.audit import Pairs
from memsub.baselines import BASELINES, Context
from memsub.denoiser import fingerprint
from memsub.detection import SCORES, first_step_scores
from memsub.metrics import IMAGE_METRICS

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"`src/(memsub/\w+/\w+)\.py`[^`]*```python\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def example(monkeypatch):
    """The module of an example, imported from where CONTRIBUTING puts it."""

    def load(path: str) -> types.ModuleType:
        name = path.replace("/", ".")
        module = types.ModuleType(name)
        module.__package__ = name.rpartition(".")[0]
        monkeypatch.setitem(sys.modules, name, module)
        exec(EXAMPLES[path], module.__dict__)
        return module

    return load


def test_there_is_an_example_of_each():
    assert sorted(path.split("/")[1] for path in EXAMPLES) == ["baselines", "detection", "metrics", "removal"]
    for line in ("lower_guidance.BASELINE,", "text_share,", "brightness,", "further_training.REMOVALS,"):
        assert line in TEXT


def test_the_baseline(example, pipe, prompts, monkeypatch):
    monkeypatch.setitem(BASELINES, "lower guidance", example("memsub/baselines/lower_guidance").BASELINE)
    baseline = BASELINES["lower guidance"]
    plain = partial(memsub.generate, pipe, steps=2, progress=False)
    context = Context(pipe, plain, prompts.ordinary[:2], steps=2, batch_size=2, gradient_rows=2)
    images = [baseline.make(context, s)(prompts.memorized[:2], seeds=[0, 1]) for s in baseline.strengths[:2]]
    assert images[0].shape == (2, 32, 32, 3)
    assert (images[0] != images[1]).any()


def test_the_score(example, pipe, monkeypatch):
    monkeypatch.setitem(SCORES, "text share", example("memsub/detection/text_share").text_share)
    found = first_step_scores(pipe, ["a red heart on a plain green background"], seeds=1)
    assert found["text share"].shape == (1,)
    assert 0 < found["text share"][0] < 10


def test_the_metric(example, monkeypatch):
    monkeypatch.setitem(IMAGE_METRICS, "brightness", example("memsub/metrics/brightness").brightness)
    np.testing.assert_allclose(IMAGE_METRICS["brightness"](np.full((2, 4, 4, 3), 9, np.uint8), [], None), [9, 9])


def test_the_removal(example, pipe, prompts, tmp_path, monkeypatch):
    removals = example("memsub/removal/further_training").REMOVALS
    assert list(removals) == [
        "further training",
        "further training, the located weights",
        "further training, as many random weights",
    ]
    pairs = Pairs(prompts.of("ordinary")[:4], prompts.images("ordinary", 0, 4))
    edit = removals["further training"].edit(pipe, pairs, pairs, folder=tmp_path, epochs=1)
    before = fingerprint(pipe)
    with memsub.pruned(pipe, edit):
        assert fingerprint(pipe) != before
    assert fingerprint(pipe) == before
