"""Names of things that can be added: entry points suffice for a baseline, a score, a metric and a world."""

import sys

import numpy as np
import pytest

from memsub.measure.metrics import IMAGE_METRICS
from memsub.models import MODELS
from memsub.registry import Registry
from memsub.world import WORLDS
from memsub_extra.mitigations import BASELINES
from memsub_extra.mitigations.detection import SCORES, first_step_scores

MODULE = """
import numpy as np
from memsub_extra.mitigations import Baseline

BASELINE = Baseline("nothing", "none", lambda context, strength: context.sample, (1,))


def score(start, unconditional, conditional):
    return conditional.float().flatten(1).sum(1)


def metric(images, prompts, references):
    return np.full(len(images), 7.0)


class World:
    name = "planted"


WORLD = World()
"""
ENTRIES = """
[memsub.baselines]
planted = planted_things:BASELINE
[memsub.scores]
planted = planted_things:score
[memsub.metrics]
planted = planted_things:metric
[memsub.worlds]
planted = planted_things:WORLD
"""


def package(folder, entries: str, name: str = "planted"):
    """A package's dist-info as an installer writes it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entries)
    return folder


@pytest.fixture
def planted(tmp_path, monkeypatch):
    (tmp_path / "planted_things.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(package(tmp_path, ENTRIES)))
    yield
    sys.modules.pop("planted_things", None)
    for registry in (BASELINES, SCORES, IMAGE_METRICS, WORLDS):
        registry._loaded.pop("planted", None)


def test_another_package_adds_a_baseline_a_score_a_metric_and_a_world(planted, micro):
    assert all("planted" in registry for registry in (BASELINES, SCORES, IMAGE_METRICS, WORLDS))
    assert "planted_things" not in sys.modules  # imported when it is used
    assert BASELINES["planted"].changes == "nothing" and WORLDS["planted"].name == "planted"
    assert IMAGE_METRICS["planted"](np.zeros((2, 4, 4, 3)), ["a", "b"], None).tolist() == [7, 7]
    assert set(first_step_scores(micro, ["a"], steps=2)) == {"text magnitude", "noise change", "planted"}


def test_without_it_the_names_are_gone():
    assert "planted" not in BASELINES and "planted" not in WORLDS
    with pytest.raises(KeyError):
        BASELINES["planted"]


def test_an_editable_install_that_is_listed_twice_is_one_entry(tmp_path, monkeypatch):
    for folder, name in (("site", "planted"), ("source", "planted-editable")):
        monkeypatch.syspath_prepend(str(package(tmp_path / folder, "[memsub.test]\nb = m:b\n", name)))
    assert Registry("memsub.test", "thing", {"a": "m:a"}).places() == {"a": "m:a", "b": "m:b"}


def test_two_objects_under_one_name_are_an_error(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(package(tmp_path / "one", "[memsub.test]\na = one:A\n", "one")))
    registry = Registry("memsub.test", "thing", {})
    assert registry.places() == {"a": "one:A"}
    monkeypatch.syspath_prepend(str(package(tmp_path / "two", "[memsub.test]\na = two:A\n", "two")))
    message = "two packages list 'a' in 'memsub.test': (one|two):A and (two|one):A. Remove one of them"
    with pytest.raises(ValueError, match=message):
        registry.places()
    with pytest.raises(ValueError, match="two packages list 'a'"):
        Registry("memsub.test", "thing", {"a": "own:A"}).places()


def test_a_registry_is_a_mapping_of_this_process(monkeypatch):
    registry = Registry("memsub.nothing", "thing", {"dumps": "json:dumps", "loads": "json:loads"})
    assert registry["dumps"]([1]) == "[1]" and list(registry) == ["dumps", "loads"] and len(registry) == 2
    registry["mine"] = len
    assert registry.find("mine") is len and "mine" in registry
    del registry["loads"]
    assert list(registry) == ["dumps", "mine"] and registry.get("loads") is None
    with pytest.raises(KeyError):
        del registry["loads"]
    with monkeypatch.context() as patch:
        patch.setitem(registry, "dumps", max)
        assert registry["dumps"] is max
    assert registry["dumps"]([1]) == "[1]"


def test_an_unknown_name_is_an_error_that_offers_close_ones():
    registry = Registry("memsub.nothing", "thing", {"dumps": "json:dumps", "loads": "json:loads"})
    with pytest.raises(ValueError, match=r"unknown thing 'dump'\. Did you mean 'dumps'\? Expected one of dumps, loads"):
        registry.find("dump")
    with pytest.raises(ValueError, match=r"unknown thing 'zzz'\. Expected one of"):
        registry.find("zzz")


def test_every_name_of_memsub_is_what_it_says():
    for registry in (BASELINES, SCORES, IMAGE_METRICS, WORLDS, MODELS):
        assert all(registry[name] is not None for name in registry)
