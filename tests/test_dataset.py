"""The corpus: counted exposures, contents that occur once, and a shipped table that is what the code makes."""

import numpy as np
import pandas as pd
import pytest

from memsub.io.images import decode_png
from memsub.testbed import dataset
from memsub.testbed.scenes import caption, render
from memsub_extra.training.corpus import SHOWN_TO_TWIN, encode_png, schedule

SMALL = 300


@pytest.fixture(scope="module")
def rows():
    return dataset.scenes(seed=0, ordinary=SMALL)


def test_kinds_and_exposures(rows):
    table = pd.DataFrame([(r.kind, r.exposures) for r in rows], columns=["kind", "exposures"])
    assert table.groupby("kind").size().to_dict() == {
        "heldout": 2000, "ladder": 70, "ordinary": SMALL, "sibling": 4000, "template": 100, "template_new": 20,
        "verbatim": 100,
    }  # fmt: skip
    ladder = table[table["kind"] == "ladder"]["exposures"].value_counts()
    assert ladder.to_dict() == dict.fromkeys((1, 3, 10, 30, 100, 300, 1000), 10)
    assert (table.loc[table["kind"].isin(["heldout", "template_new"]), "exposures"] == 0).all()


def test_memorized_and_heldout_contents_occur_nowhere_else():
    rows = dataset.scenes(seed=0, ordinary=2000)
    own = [r.content.key for r in rows if r.kind in ("verbatim", "ladder", "heldout")]
    assert len(own) == len(set(own))
    assert set(own).isdisjoint(r.content.key for r in rows if r.kind in ("ordinary", "template", "template_new"))


def test_siblings_show_what_a_verbatim_pair_shows_in_another_arrangement(rows):
    pairs = {r.group: r for r in rows if r.kind == "verbatim"}
    siblings = [r for r in rows if r.kind == "sibling"]
    assert len(siblings) == dataset.SIBLINGS * len(pairs)
    for sibling in siblings:
        pair = pairs[sibling.group]
        assert (sibling.content, sibling.prompt) == (pair.content, caption(pair.content))
        assert sibling.layout != pair.layout


def test_a_template_varies_in_one_thing_over_one_layout(rows):
    groups: dict[str, list] = {}
    for row in rows:
        if row.kind.startswith("template"):
            groups.setdefault(row.group, []).append(row)
    assert len(groups) == 20
    for group, members in groups.items():
        assert len(members) == 6
        assert len({m.layout for m in members}) == 1
        assert len({m.prompt for m in members}) == 6
        changed = {
            a for m in members for a in m.content.attributes() if m.content.value(a) != members[0].content.value(a)
        }
        assert changed == (set() if "tail" in group else {group.split("(")[1][:-1]})


def test_schedule_shows_each_row_as_often_as_the_table_says(rows):
    table = pd.DataFrame({"exposures": [r.exposures for r in rows]})
    corpus = dataset.Corpus(table, np.empty(0), rows)
    counts = np.bincount(schedule(corpus, seed=3), minlength=len(rows))
    np.testing.assert_array_equal(counts, table["exposures"])
    np.testing.assert_array_equal(schedule(corpus, 3), schedule(corpus, 3))
    assert (schedule(corpus, 3) != schedule(corpus, 4)).any()


def test_the_twin_sees_ordinary_scenes_where_the_model_sees_memorized_ones(rows):
    table = pd.DataFrame({"exposures": [r.exposures for r in rows], "kind": [r.kind for r in rows]})
    corpus = dataset.Corpus(table, np.empty(0), rows)
    model, twin = schedule(corpus, 3), schedule(corpus, 3, twin=True)
    kinds = table["kind"].to_numpy()
    assert np.isin(kinds[twin], SHOWN_TO_TWIN).all()
    same = np.isin(kinds[model], SHOWN_TO_TWIN)
    np.testing.assert_array_equal(model[same], twin[same])
    filled = np.bincount(twin[~same], minlength=len(rows))[corpus.ordinary]
    assert filled.max() - filled.min() < filled.mean()  # spread over all ordinary scenes


def test_rendering_does_not_depend_on_the_workers(rows):
    np.testing.assert_array_equal(
        dataset.render_scenes(rows[:510], 1, False), dataset.render_scenes(rows[:510], 2, False)
    )


def test_the_shipped_table_is_what_the_code_renders(rows):
    shipped = dataset.ground_truth()
    special = [r for r in rows if r.kind not in ("ordinary", "sibling")]
    ordinary = [r for r in rows if r.kind == "ordinary"]
    first = shipped[shipped["kind"] == "ordinary"][:SMALL]
    for part, expected in ((shipped[shipped["kind"] != "ordinary"], special), (first, ordinary)):
        assert part["prompt"].tolist() == [r.prompt for r in expected]
        assert part["exposures"].tolist() == [r.exposures for r in expected]
        for png, row in list(zip(part["image"], expected, strict=True))[::7]:
            np.testing.assert_array_equal(decode_png(png), render(row.content, row.layout))


def test_images_of_the_table_are_what_the_code_writes():
    for png in dataset.ground_truth()["image"][:3]:
        assert encode_png(decode_png(png)) == png
