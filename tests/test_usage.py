"""The usage blocks with which modules begin are examples that run, on the micro pipeline."""

import doctest
from functools import partial
from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch

import memsub.models
from memsub.activations import capture
from micro import CAPTIONS, micro_pipeline

METHOD = ["activations", "neurons", "fast_masks", "overlap", "pruning", "controls"]
MODELS = ["models", *(f"models.{module.name}" for module in iter_modules(memsub.models.__path__))]
PUBLIC = [memsub.models, *(import_module(f"memsub.{name}") for name in METHOD)]


def examples(name):
    """The examples of a module's docstrings, with what they may use."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    module = import_module(f"memsub.{name}")
    return [test for test in finder.find(module, globs={}) if test.examples]


@pytest.fixture(scope="module")
def names():
    """What usage blocks take for granted: public names of method and models, torch, prompts and their statistics."""
    pipe, prompts = micro_pipeline(), CAPTIONS[:2]
    options = {"steps": 3, "progress": False}
    public = {name: getattr(module, name) for module in PUBLIC for name in dir(module) if not name.startswith("_")}
    statistics = {"stats": capture(pipe, prompts, **options), "null": capture(pipe, [""], **options)}
    return public | statistics | {"torch": torch, "partial": partial, "prompts": prompts}


@pytest.mark.parametrize("name", METHOD + MODELS)
def test_usage_blocks_run(name, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some save files
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in examples(name):
        test.globs.update(names, pipe=micro_pipeline())  # a pipeline of its own: some are edited for good
        report = []
        runner.run(test, out=report.append)
        assert not runner.summarize(verbose=False).failed, "".join(report)


@pytest.mark.parametrize("name", METHOD)
def test_every_module_of_the_method_begins_with_usage(name):
    assert any(test.name == f"memsub.{name}" for test in examples(name))
