"""The store: keys made of content, artifacts made once, nothing stale."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from memsub import store as storing
from memsub.activations import capture
from memsub.files import load_json
from memsub.store import Store, code_version, describe


class Thing:
    def __init__(self, fingerprint):
        self.fingerprint = fingerprint


def test_an_artifact_is_made_once_and_again_for_other_content(tmp_path):
    store, calls = Store(tmp_path), []

    def make():
        calls.append(1)
        return pd.DataFrame({"x": [len(calls)]})

    image = np.zeros((2, 2), np.uint8)
    of = {"captions": ["a", "b"], "image": image, "thing": Thing("one"), "options": {"steps": 2}, "none": None}
    assert store.table("t", make, **of)["x"][0] == 1
    assert store.table("t", make, **of)["x"][0] == 1
    for changed in (
        {"captions": ["a", "c"]},
        {"image": image + 1},
        {"thing": Thing("two")},
        {"options": {"steps": 3}},
        {"none": 0},
    ):
        store.table("t", make, **of | changed)
        store.table("t", make, **of | changed)
    assert len(calls) == 6
    assert {p.parent.name for p in tmp_path.rglob("*.parquet")} == {"t"}


def test_what_made_a_file_stands_beside_it(tmp_path):
    Store(tmp_path).arrays("a", lambda: {"x": np.arange(3)}, captions=["c"] * 20, seed=3)
    (told,) = tmp_path.rglob("*.json")
    found = load_json(told)
    assert found["seed"] == 3
    assert found["captions"][:1] == ["c"] and len(found["captions"]) == 4


def test_content_that_cannot_be_told_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="cannot tell the content of a object"):
        Store(tmp_path).table("t", lambda: pd.DataFrame(), x=object())


def test_describe_tells_arrays_apart_by_type_and_shape():
    a = np.zeros(4, np.float32)
    assert len({describe(x) for x in (a, a.astype(np.int32), a.reshape(2, 2), a + 1)}) == 4
    assert describe(a) == describe(a.copy())
    half = torch.tensor([1.5, 2], dtype=torch.bfloat16)  # which numpy does not have
    assert describe(half) == describe(half.clone()) != describe(half + 1)


def test_the_code_that_makes_an_artifact_is_part_of_its_key(monkeypatch):
    """A change in any module that capture depends on gives another version; comments, docstrings and plots do not."""
    version = code_version(capture)
    assert code_version(partial(capture, 1)) == version
    sources = {}

    def forget():
        storing.module_version.cache_clear()
        storing._parsed.cache_clear()

    def changed(module, old, new):
        forget()
        read = storing.Path.read_text

        def read_text(self, *args, **kwargs):
            text = read(self, *args, **kwargs)
            if self.name == f"{module}.py":
                assert old in text
                sources[module] = text
                text = text.replace(old, new, 1)
            return text

        with monkeypatch.context() as patch:
            patch.setattr(storing.Path, "read_text", read_text)
            found = code_version(capture)
        forget()
        return found

    assert changed("activations", "squares.sum(-1)", "squares.sum(-2)") != version
    assert changed("generation", "torch.randn(", "torch.rand(") != version
    assert changed("denoiser", '"""', '"""Another docstring. ') == version
    assert changed("activations", "# a zero row stays zero", "# another comment") == version
    assert set(sources) == {"activations", "generation", "denoiser"}


def test_code_of_a_notebook_is_told_by_what_it_does():
    namespace: dict = {"__name__": "nowhere"}
    exec("def f(): return 1\ndef g(): return 2", namespace)
    assert code_version(namespace["f"]) != code_version(namespace["g"])
