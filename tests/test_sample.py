"""Prompts by kind: a run takes every kind of its list in proportion, in every third, and says so."""

import hashlib
import json
import random
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import SMALL
from memsub.io.files import load_json
from memsub.prompts import Prompts
from memsub_extra.notebooks import batch, inputs
from memsub_extra.notebooks.notebook05 import at_random
from memsub_extra.prompt_lists.images import match_images
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run
from memsub_extra.run.sample import described, mixed, quotas, sampled, taken, thirds
from memsub_extra.unlearning.notebook06 import _attacked_places

VERBATIM, TEMPLATE = 22, 78
"""Captions of the list, which begins with the verbatim ones, as the published one of SD1.4 nearly does."""
PART = {"memorized": 26, "subsets": 3, "sizes": [2, 3]}


@pytest.fixture
def lists(tmp_path):
    """A list and its types in the layouts of the published files of SD1.4; captions of other kinds."""
    captions = [f"Caption number {i} of a list" for i in range(VERBATIM + TEMPLATE)]
    rows = [{"caption": c, "index": 1000 + i, "url": f"http://gone/{i}.png"} for i, c in enumerate(captions)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    types = pd.DataFrame({"Caption": captions, "type": ["VM"] * VERBATIM + ["TM"] * TEMPLATE})
    types = types.assign(mean_sscd=0.1, max_sscd=[0.9] * VERBATIM + [0.3] * TEMPLATE, Index=range(1000, 1100))
    types.sample(frac=1, random_state=0).to_csv(tmp_path / "types.csv", sep=";")
    for kind, n in {"ordinary": 30, "heldout": 40}.items():
        (tmp_path / f"{kind}.txt").write_text("\n".join(f"Another caption, {kind} {i}" for i in range(n)))
    return tmp_path


def parameters(lists, *, types: bool = True, near: str = "keep", **changed) -> Parameters:
    prompts = {"memorized": "list.jsonl", "ordinary": "ordinary.txt", "heldout": "heldout.txt"}
    data: dict[str, Any] = {"prompts": {kind: str(lists / file) for kind, file in prompts.items()}}
    data |= {"types": str(lists / "types.csv")} if types else {}
    data |= {"images": str(lists / "images"), "near_duplicates": near}
    evaluation: Any = SMALL["evaluation"]
    without_real = {"evaluation": evaluation | {"real_images": 0} | changed.pop("evaluation", {})}
    given = {"model": "sd14", "folder": str(lists / "run"), "grid": PART, "data": data}
    return Parameters.checked(SMALL | without_real | given | changed)


def a_run(lists, known=lambda place: True, **changed) -> Run:
    """With a training image of every caption, or of those that are known."""
    run = Run(parameters(lists, **changed))
    n = run.parameters.grid.memorized
    run.data.training_images = {i: np.zeros((1, 4, 4, 3), np.uint8) for i in range(n) if known(i)}
    return run


def test_every_third_and_what_is_evaluated_has_every_kind(lists):
    run = a_run(lists, evaluation={"captions": 4})
    kinds = run.data.memorized.kinds
    assert (kinds.count("verbatim"), kinds.count("template")) == (6, 20)  # 5.72 and 20.28 by proportion
    assert [[kinds[i] for i in part].count("verbatim") for part in run.data.split.values()] == [2, 2, 2]
    assert [len(part) for part in run.data.split.values()] == [9, 9, 8]
    assert sorted(chain(*run.data.split.values())) == list(range(26))
    for part in ("choose", "report"):
        evaluated = run.data.held_out(run.data.split["locate"], part)[: run.parameters.evaluation.captions]
        assert {kinds[i] for i in evaluated} == {"verbatim", "template"}
    for places in (at_random(run, 4), run.data.held_out([], "report")[:2], _attacked_places(run)):
        assert {kinds[i] for i in places} == {"verbatim", "template"}
    # Captions, kinds, references and rows of the list speak of one another.
    rows = run.data.prompts.memorized_rows[:26]
    assert rows["prompt"].tolist() == run.data.captions("memorized")
    assert [f"Caption number {row} of a list" for row in rows["row"]] == run.data.captions("memorized")
    assert [kind == "verbatim" for kind in kinds] == [row < VERBATIM for row in rows["row"]]
    assert rows["row"].is_monotonic_increasing and len(run.data.prompts.memorized) == VERBATIM + TEMPLATE


def test_what_is_evaluated_has_every_kind_where_images_are_missing(lists):
    run = a_run(lists)
    kinds, report = run.data.memorized.kinds, run.data.split["report"]
    of_kind = [run.data.memorized.of_kind(report, kind) for kind in ("verbatim", "template")]
    run = a_run(lists, known=lambda place: place in {of_kind[0][-1], *of_kind[1][1:]})
    assert {kinds[i] for i in run.data.held_out([])[:2]} == {"verbatim", "template"}


def test_the_sample_is_by_the_seed_and_written_down(lists):
    first, again, other = (a_run(lists, seed=seed).data for seed in (0, 0, 1))
    assert first.captions("memorized") == again.captions("memorized") != other.captions("memorized")
    assert first.split == again.split != other.split
    about = taken(first)
    assert about["listed"] == "22 verbatim, 78 template" and about["taken"] == "6 verbatim, 20 template"
    assert about["parts"]["report"] == "2 verbatim, 6 template"
    rows = [f"Caption number {row} of a list" for row in about["rows"]["report"]]
    assert rows == [first.captions("memorized")[i] for i in first.split["report"]]
    said = " ".join(described(first))
    assert "22 verbatim, 78 template captions: 6 verbatim, 20 template are taken, at random by kind (seed 0)" in said
    assert "report 2 verbatim, 6 template" in said
    (lists / "images" / "1000").mkdir(parents=True)
    problem = next(inputs.problems(inputs.data_of(parameters(lists), lists), ["04_pruning"]))
    assert "has training images of 0 of the 9 memorized captions that choose" in problem


def test_a_run_writes_which_prompts_it_takes(lists, monkeypatch):
    for number in range(1000, 1100):
        (lists / "images" / f"{number}.png").parent.mkdir(exist_ok=True)
        (lists / "images" / f"{number}.png").touch()
    (lists / "p.yaml").write_text(json.dumps(parameters(lists).dump()))
    digests = []
    monkeypatch.setattr(batch, "sscd_file", lambda name: None)
    monkeypatch.setattr(batch, "write_report", lambda *a: a[1])
    monkeypatch.setattr(batch, "_execute_all", lambda *a: digests.append(a[-1]))
    batch.run([str(lists / "p.yaml")], lists / "run")
    assert load_json(lists / "run" / "prompts.json") == digests[0] == taken(a_run(lists).data)


def test_lists_that_know_no_kinds_and_worlds_are_as_they_were(lists, prompts):
    untyped = a_run(lists, types=False).data
    assert untyped.captions("memorized") == [f"Caption number {i} of a list" for i in range(26)]
    assert not taken(untyped) and not described(untyped)
    order = np.random.default_rng([0, 3]).permutation(26)
    assert list(untyped.split.values()) == [part.tolist() for part in np.array_split(order, 3)]
    assert untyped.held_out([]) == untyped.split["report"]
    assert sampled(prompts, 20, 0) is prompts
    world = Prompts(prompts.table.assign(kind=["verbatim", "template"] * (len(prompts.table) // 2)), ("verbatim",))
    assert sampled(world, 20, 0) is world
    one = Prompts(pd.DataFrame({"prompt": list("abc"), "kind": "template"}), ("verbatim", "template"))
    assert sampled(one, 2, 0) is one


def test_a_whole_list_keeps_its_order_and_its_thirds_have_every_kind(lists):
    data = a_run(lists, grid=PART | {"memorized": 100}).data
    assert data.captions("memorized") == [f"Caption number {i} of a list" for i in range(100)]
    counts = [[data.memorized.kinds[i] for i in part].count("verbatim") for part in data.split.values()]
    assert sorted(counts) == [7, 7, 8]


def test_near_duplicates_are_left_out_first_and_numbers_stay_those_of_the_list(lists):
    captions = [hashlib.sha256(bytes([i // 2])).hexdigest() + "." * (i % 2) for i in range(VERBATIM + TEMPLATE)]
    rows = [{"caption": c, "type": "VM" if i < VERBATIM else "TM"} for i, c in enumerate(captions)]
    (lists / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = a_run(lists, types=False, near="drop").data
    taken_rows = data.memorized.rows
    assert len(data.prompts.memorized) == 50 and not (taken_rows["row"] % 2).any()
    assert [captions[row] for row in taken_rows["row"]] == data.captions("memorized")
    assert data.memorized.kinds.count("verbatim") == 6
    # A list without indices: folders have the captions' numbers in the whole list, from 1.
    last = int(taken_rows["row"].iloc[-1])
    (lists / "images" / str(last + 1)).mkdir(parents=True)
    (lists / "images" / str(last + 1) / "0.png").touch()
    assert list(match_images(taken_rows, lists / "images").files) == [25]


@pytest.mark.parametrize(
    ("counts", "n", "expected"),
    [
        ((112, 388), 50, (11, 39)),
        ((215, 4), 50, (47, 3)),  # one for each third
        ((215, 2), 50, (48, 2)),
        ((5, 5), 7, (4, 3)),
        ((5, 3), 100, (5, 3)),
        ((100, 50, 3), 6, (3, 2, 1)),
    ],
)
def test_quotas(counts, n, expected):
    assert tuple(quotas(dict(enumerate(counts)), n).values()) == expected  # type: ignore[arg-type]


def test_thirds_and_prefixes_are_in_proportion():
    rng = random.Random(0)
    for _ in range(50):
        kinds = rng.choices(["verbatim", "template", "memorized"], [1, 3, 9], k=rng.randrange(9, 60))
        kinds += ["verbatim"] * 3 + ["template"] * 3
        parts = thirds(kinds, seed=1)
        assert sorted(chain(*parts)) == list(range(len(kinds)))
        for kind in set(kinds):
            counts = [[kinds[i] for i in part].count(kind) for part in parts]
            assert max(counts) - min(counts) <= 1 and (min(counts) >= 1 or kinds.count(kind) < 3)
        order = mixed(range(len(kinds)), dict(enumerate(kinds)))
        assert sorted(order) == list(range(len(kinds)))
        assert {kinds[i] for i in order[: len(set(kinds))]} == set(kinds)
        half = [kinds[i] for i in order[: len(kinds) // 2]]
        assert all(abs(half.count(kind) - kinds.count(kind) / 2) <= 2 for kind in set(kinds))
