"""The corpus: counted exposures, contents that occur once, and a shipped table that is what the code makes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from memsub.io.images import decode_png
from memsub.testbed.dataset import ground_truth, weights_folder
from memsub.testbed.scenes import caption, render
from memsub_extra.training import dataset
from memsub_extra.training.corpus import SHOWN_TO_ALL, base_schedule, encode_png, schedule, share, word_schedule

ROOT, SMALL = Path(__file__).parents[1], 300


@pytest.fixture(scope="module")
def rows():
    return dataset.scenes(seed=0, ordinary=SMALL)


def test_kinds_and_exposures(rows):
    table = pd.DataFrame([(r.kind, r.exposures) for r in rows], columns=["kind", "exposures"])
    assert table.groupby("kind").size().to_dict() == {
        "heldout": 2000, "ladder": 70, "ordinary": SMALL, "other": 100, "sibling": 8000, "template": 60,
        "template_new": 12, "verbatim": 100,
    }  # fmt: skip
    ladder = table[table["kind"] == "ladder"]["exposures"].value_counts()
    assert ladder.to_dict() == dict.fromkeys((1, 3, 10, 30, 100, 300, 800), 10)
    assert (table.loc[table["kind"].isin(["heldout", "template_new", "other"]), "exposures"] == 0).all()


def test_memorized_and_heldout_contents_occur_nowhere_else():
    rows = dataset.scenes(seed=0, ordinary=2000)
    own = [r.content.key for r in rows if r.kind in ("verbatim", "other", "ladder", "heldout")]
    assert len(own) == len(set(own))
    assert set(own).isdisjoint(r.content.key for r in rows if r.kind in ("ordinary", "template", "template_new"))


def test_siblings_show_what_a_pair_shows_in_another_arrangement(rows):
    pairs = {r.group: r for r in rows if r.kind in ("verbatim", "other")}
    siblings = [r for r in rows if r.kind == "sibling"]
    assert len(siblings) == dataset.SIBLINGS * len(pairs)
    for sibling in siblings:
        pair = pairs[sibling.group]
        assert (sibling.content, sibling.prompt) == (pair.content, caption(pair.content))
        assert sibling.layout != pair.layout


def test_matched_rows_have_two_icons_and_a_tail_as_memorized_ones_have(rows):
    memorized = [r for r in rows if r.kind in ("verbatim", "other", "ladder")]
    for kind, n in dataset.MATCHED.items():
        matched = [r for r in rows if r.kind == kind and r.group == "matched"]
        assert len(matched) == n
        for row in (*memorized, *matched):
            assert len(row.content.items) == 2
            assert row.prompt != caption(row.content)
    others = [r for r in rows if r.kind == "heldout" and r.group != "matched"]
    assert {len(r.content.items) for r in others} == {1, 2}


def test_a_template_varies_in_one_thing_over_one_layout(rows):
    groups: dict[str, list] = {}
    for row in rows:
        if row.kind.startswith("template"):
            groups.setdefault(row.group, []).append(row)
    assert len(groups) == 12
    for group, members in groups.items():
        assert len(members) == 6
        assert len({m.layout for m in members}) == 1
        assert len({m.prompt for m in members}) == 6
        changed = {
            a for m in members for a in m.content.attributes() if m.content.value(a) != members[0].content.value(a)
        }
        assert changed == (set() if "tail" in group else {group.split("(")[1][:-1]})


@pytest.fixture(scope="module")
def corpus(rows):
    table = pd.DataFrame({name: [getattr(row, name) for row in rows] for name in ("exposures", "kind", "group")})
    return dataset.Corpus(table, np.empty(0), rows)


def shown(corpus, order):
    return np.bincount(order, minlength=len(corpus.table))


def test_base_and_schedule_show_each_row_as_often_as_the_table_says(corpus):
    base = shown(corpus, base_schedule(corpus, 3)) + shown(corpus, word_schedule(corpus, 3))
    assert set(np.flatnonzero(base)) == set(corpus.ordinary)
    np.testing.assert_array_equal(base + shown(corpus, schedule(corpus, 3)), corpus.table["exposures"])
    np.testing.assert_array_equal(schedule(corpus, 3), schedule(corpus, 3))
    assert (schedule(corpus, 3) != schedule(corpus, 4)).any()


def test_the_twin_sees_ordinary_scenes_where_the_model_sees_memorized_ones(corpus):
    model, twin = schedule(corpus, 3), schedule(corpus, 3, "twin")
    kinds = corpus.table["kind"].to_numpy()
    assert np.isin(kinds[twin], SHOWN_TO_ALL).all()
    same = np.isin(kinds[model], SHOWN_TO_ALL)
    np.testing.assert_array_equal(model[same], twin[same])
    filled = shown(corpus, twin[~same])[corpus.ordinary]
    assert filled.max() - filled.min() < filled.mean()  # spread over all ordinary scenes


def test_the_third_model_sees_another_pair_in_each_place_of_a_verbatim_one(corpus):
    model, other, twin = (schedule(corpus, 3, which) for which in ("model", "other", "twin"))
    kinds = corpus.table["kind"].to_numpy()
    verbatim = kinds[model] == "verbatim"
    assert (kinds[other][verbatim] == "other").all()
    assert len(set(zip(model[verbatim], other[verbatim], strict=True))) == dataset.VERBATIM  # one for one
    siblings = kinds[model] == "sibling"
    np.testing.assert_array_equal(other[~verbatim & ~siblings], twin[~verbatim & ~siblings])


def test_each_model_sees_the_siblings_of_its_own_pairs_more_often_than_those_of_the_others(corpus):
    group = corpus.table["group"].str.split().str[0].to_numpy()
    own, others = (n * dataset.SIBLINGS * dataset.VERBATIM for n in (dataset.EXPOSURES["sibling"], 5))
    for model, hundred in (("model", "verbatim"), ("twin", "verbatim"), ("other", "other")):
        order = schedule(corpus, 3, model)
        seen = group[order[corpus.table["kind"].to_numpy()[order] == "sibling"]]
        assert ((seen == hundred).sum(), (seen != hundred).sum()) == (own, others), model


def test_the_share_of_memorized_pairs_is_that_of_the_order_of_training(corpus):
    kinds, order = corpus.table["kind"].to_numpy(), schedule(corpus, 3)
    memorized = ~np.isin(kinds[order], SHOWN_TO_ALL)
    assert share(corpus)["after the base"] == pytest.approx(memorized.mean())
    assert share(corpus)["in all"] == pytest.approx(
        memorized.sum() / (len(order) + dataset.SHARED_EXPOSURES * len(corpus.ordinary))
    )


def test_rendering_does_not_depend_on_the_workers(rows):
    np.testing.assert_array_equal(
        dataset.render_scenes(rows[:510], 1, False), dataset.render_scenes(rows[:510], 2, False)
    )


def test_the_shipped_table_is_what_the_code_renders(rows):
    shipped = ground_truth()
    special = [r for r in rows if r.kind not in ("ordinary", "sibling")]
    ordinary = [r for r in rows if r.kind == "ordinary"]
    first = shipped[shipped["kind"] == "ordinary"][:SMALL]
    for part, expected in ((shipped[shipped["kind"] != "ordinary"], special), (first, ordinary)):
        assert part["prompt"].tolist() == [r.prompt for r in expected]
        assert part["exposures"].tolist() == [r.exposures for r in expected]
        for png, row in list(zip(part["image"], expected, strict=True))[::7]:
            np.testing.assert_array_equal(decode_png(png), render(row.content, row.layout))


def test_images_of_the_table_are_what_the_code_writes():
    for png in ground_truth()["image"][:3]:
        assert encode_png(decode_png(png)) == png


def test_the_model_card_says_the_recipe():
    """Its numbers are those of the code, not of what somebody remembered."""
    card = (weights_folder() / "README.md").read_text()
    later = dataset.EXPOSURES["ordinary"]
    assert f"on {dataset.ORDINARY:,} ordinary scenes alone,\n{dataset.BASE_EXPOSURES} times each" in card
    siblings = dataset.SIBLINGS * 2 * dataset.VERBATIM
    for row in (
        f"| ordinary | {dataset.ORDINARY:,} | {later}, of which {dataset.SHARED_EXPOSURES} to the base |",
        f"| {dataset.SIBLINGS} a pair, {siblings:,} "
        f"| {dataset.EXPOSURES['sibling']}, or {dataset.SIBLINGS_OF_OTHERS} of another model's pairs |",
        f"| verbatim | {dataset.VERBATIM} | {dataset.EXPOSURES['verbatim']:,} |",
        f"| other | {dataset.VERBATIM} | {dataset.EXPOSURES['verbatim']:,}, in the places of verbatim pairs |",
        f"| template: {dataset.TEMPLATE_GROUPS} groups of {dataset.TEMPLATE_VARIANTS} captions over one layout "
        f"| {dataset.TEMPLATE_GROUPS * dataset.TEMPLATE_VARIANTS} | {dataset.EXPOSURES['template']} |",
        f"| {dataset.PAIRS_PER_RUNG} a rung, {dataset.PAIRS_PER_RUNG * len(dataset.LADDER)} "
        f"| {', '.join(map(str, dataset.LADDER))} |",
    ):
        assert row in card, row
    readme = (ROOT / "README.md").read_text()
    assert f"prompts that training showed {dataset.EXPOSURES['verbatim']:,} times" in readme
