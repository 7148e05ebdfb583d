"""The store: keys made of content and versions, artifacts made once, nothing stale."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import BaseModel

from memsub.io.files import load_json
from memsub_extra.store import Kind, Store, describe

TABLE = Kind("t")


class Thing:
    def __init__(self, fingerprint):
        self.fingerprint = fingerprint


@dataclass(frozen=True)
class Setting:
    steps: int
    image: np.ndarray | None = None


class Spec(BaseModel):
    steps: int = 1
    layers: tuple[str, ...] | None = None


def brightness(images, times=1):
    return images.mean()


def test_an_artifact_is_made_once_and_again_for_other_content(tmp_path):
    store, calls = Store(tmp_path), []

    def make():
        calls.append(1)
        return pd.DataFrame({"x": [len(calls)]})

    image = np.zeros((2, 2), np.uint8)
    of = {"captions": ["a", "b"], "image": image, "thing": Thing("one"), "options": {"steps": 2}, "none": None}
    assert store.table(TABLE, make, **of)["x"][0] == 1
    assert store.table(TABLE, make, **of)["x"][0] == 1
    for changed in (
        {"captions": ["a", "c"]},
        {"image": image + 1},
        {"thing": Thing("two")},
        {"options": {"steps": 3}},
        {"none": 0},
    ):
        store.table(TABLE, make, **of | changed)
        store.table(TABLE, make, **of | changed)
    assert len(calls) == 6
    assert {p.parent.name for p in tmp_path.rglob("*.parquet")} == {"t"}


def test_another_version_or_kind_is_another_artifact(tmp_path):
    store = Store(tmp_path)
    paths = {store.path(kind, ".parquet", x=1) for kind in (TABLE, Kind("t", 1), Kind("t", 2), Kind("u"))}
    assert len(paths) == 3
    first = store.arrays(TABLE, lambda: {"x": np.zeros(2)}, x=1)
    again = store.arrays(TABLE, lambda: {"x": np.ones(2)}, x=1)
    raised = store.arrays(Kind("t", 2), lambda: {"x": np.ones(2)}, x=1)
    assert (first["x"] == 0).all() and (again["x"] == 0).all() and (raised["x"] == 1).all()


def test_what_made_a_file_stands_beside_it(tmp_path):
    Store(tmp_path).arrays(Kind("a", 3), lambda: {"x": np.arange(3)}, captions=["c"] * 20, seed=3)
    (beside,) = tmp_path.rglob("*.json")
    about = load_json(beside)
    assert about["artifact"] == "a, version 3"
    assert about["seed"] == 3
    assert about["captions"][:1] == ["c"] and len(about["captions"]) == 4


def test_unknown_content_is_an_error(tmp_path):
    free = 3
    for unknown, what in ((object(), "object"), (lambda: free, "function that uses variables"), ({1, 2}, "set")):
        with pytest.raises(TypeError, match=f"the content of a {what}.* is unknown"):
            Store(tmp_path).table(TABLE, lambda: pd.DataFrame(), x=unknown)
    assert not list(tmp_path.iterdir())


def test_describe_tells_arrays_apart_by_type_and_shape():
    a = np.zeros(4, np.float32)
    assert len({describe(x) for x in (a, a.astype(np.int32), a.reshape(2, 2), a + 1)}) == 4
    assert describe(a) == describe(a.copy())
    half = torch.tensor([1.5, 2], dtype=torch.bfloat16)  # which numpy does not have
    assert describe(half) == describe(half.clone()) != describe(half + 1)


def test_describe_tells_settings_apart_by_their_fields():
    settings = [Setting(1), Setting(2), Setting(1, np.zeros(2)), Spec(), Spec(steps=2), Spec(layers=("a",))]
    assert len({str(describe(setting)) for setting in settings}) == 6
    assert describe(Spec(layers=("a",))) == describe(Spec(layers=("a",)))
    assert describe(Setting(1, np.zeros(2))) == describe(Setting(1, np.zeros(2)))


def test_a_function_is_described_by_name_and_version(monkeypatch):
    assert describe(brightness) == f"{__name__}:brightness, version 1"
    assert describe(partial(brightness, times=2)) != describe(partial(brightness, times=3))
    assert describe(partial(brightness, times=2)) == describe(partial(brightness, times=2))
    monkeypatch.setattr(brightness, "version", 2, raising=False)
    assert describe(brightness) == f"{__name__}:brightness, version 2"


def test_code_of_a_notebook_is_described_by_what_it_does():
    def defined(code):
        namespace: dict = {"__name__": "__main__"}
        exec(code, namespace)
        return describe(namespace["f"])

    assert defined("def f(): return 1") == defined("def f():\n    return 1  # as before")
    assert defined("def f(): return 1") != defined("def f(): return 2")
    assert defined("def f(): return sin(1)") != defined("def f(): return cos(1)")
    assert defined("f = lambda: [i for i in range(2)]") != defined("f = lambda: [i for i in range(3)]")
