"""Notebook 00: what training showed, rates with intervals, and the exact membership test of some pairs."""

import numpy as np
import pandas as pd
import pytest

from memsub_extra.notebooks import notebook00
from memsub_extra.training import dataset


def images(captions: str, exact: list[bool], exposures: int) -> pd.DataFrame:
    frame = pd.DataFrame({"prompt": list(captions), "exact": exact, "exposures": exposures})
    return frame.assign(exact_p=np.linspace(0.1, 1, len(frame)), replicated=exact)


def test_what_training_showed_is_what_the_corpus_holds():
    table = notebook00.exposures()
    rows = [(scene.kind, scene.exposures) for scene in dataset.scenes(dataset.SEED, ordinary=50)]
    kinds = (
        pd.DataFrame(rows, columns=["kind", "samples"])
        .query("samples > 0")
        .groupby("kind")["samples"]
        .agg(["size", "sum"])
    )
    for kind in set(kinds.index) - {"ordinary"}:
        assert table.loc[kind, ["pairs", "samples"]].tolist() == kinds.loc[kind].tolist(), kind
    each = kinds.loc["ordinary", "sum"] / 50
    assert table.loc["ordinary", ["pairs", "samples"]].tolist() == [dataset.ORDINARY, each * dataset.ORDINARY]
    assert table["share"].sum() == table["after_base"].sum() == pytest.approx(1)
    assert table.loc["ladder", ["least", "most"]].tolist() == [min(dataset.LADDER), max(dataset.LADDER)]
    samples = table["samples"].sum()
    later = samples - dataset.SHARED_EXPOSURES * dataset.ORDINARY
    assert table.loc["verbatim", "after_base"] == pytest.approx(table.loc["verbatim", "samples"] / later)


def test_memorized_pairs_are_what_the_controls_were_not_shown():
    table = notebook00.exposures()
    assert set(table.index[table["memorized"]]) == {"verbatim", "template", "ladder"}


def test_every_number_of_exposures_has_an_interval_over_captions():
    kinds = {
        "ladder": pd.concat([images("ab", [False, False], 1), images("cd", [True, True], 9)]),
        "verbatim": images("aaabbb", [True] * 6, 400),  # three seeds of each
        "template": images("abc", [True] * 3, 250),
    }
    points = notebook00.by_exposures(kinds).set_index(["kind", "exposures"])
    assert points.index.tolist() == [("ladder", 1), ("ladder", 9), ("verbatim", 400), ("template", 250)]
    assert points["captions"].tolist() == [2, 2, 2, 3]
    assert points["exact_high"].iloc[0] == pytest.approx(0.658, abs=1e-3)  # Wilson's of 0 of 2, which has a width
    assert points["exact_low"].iloc[2] == pytest.approx(0.342, abs=1e-3)  # of 2 of 2, not of 6 of 6
    assert notebook00.rates(kinds).loc["verbatim", "images"] == 6


def test_of_a_template_one_caption_is_sampled_and_its_layout_was_shown_with_all(new_run, monkeypatch):
    def scored(model, captions, *args, **options):
        return pd.DataFrame({"prompt": captions, "exact_p": 1.0, "replicated": False})

    run = new_run(testbed={"captions": 10, "never_seen": 4})
    monkeypatch.setattr(run.scores, "scored", scored)
    template = notebook00.replication(run)["template"]
    rows = run.data.prompts.rows("template")
    assert template["prompt"].tolist() == rows.drop_duplicates("group")["prompt"].tolist()[:10]
    assert set(template["exposures"]) == {rows["exposures"].iloc[0] * (rows["group"] == rows["group"].iloc[0]).sum()}


def test_controls_are_asked_for_the_models_pairs_and_other_for_its_own(new_run, prompts, monkeypatch):
    asked = []

    def scored(model, captions, *args, **options):
        asked.append((model.name, captions))
        return pd.DataFrame({"prompt": captions, "exact_p": 1.0, "replicated": False})

    run = new_run(testbed={"captions": 10, "never_seen": 4})
    monkeypatch.setattr(run.scores, "scored", scored)
    kinds = list(notebook00.replication(run))
    assert kinds[-4:] == ["verbatim, by the twin", "verbatim, by other", notebook00.THEIRS, notebook00.THEIRS_BY_OTHER]
    assert [name for name, _ in asked[-4:]] == ["twin", "other", "unedited", "other"]
    assert asked[-1][1] == asked[-2][1] == prompts.of("other")[:10]
    assert list(notebook00.unseen_images(run)) == ["unedited", "twin", "other"]


def test_membership_is_tested_for_every_model_and_caption_and_computed_once(new_run, monkeypatch):
    run = new_run(testbed={"membership": {"pairs": 2, "steps": 1}})
    tested = notebook00.membership(run)
    assert tested.groupby(["model", "caption"], sort=False)["pair"].apply(list).to_dict() == {
        (model, caption): [0, 1] for model in ("unedited", "twin", "other") for caption in ("its own", "empty")
    }
    assert ((tested["p"] >= notebook00.SMALLEST) & (tested["p"] <= 1)).all()
    assert notebook00.membership_rates(tested)["pairs"].tolist() == [2] * 6
    monkeypatch.setattr(notebook00, "membership_p", None)  # which is not called again
    assert notebook00.membership(run).equals(tested)


def test_pairs_that_all_have_the_smallest_p_still_have_an_interval():
    tested = pd.DataFrame({"model": "a", "caption": "empty", "pair": range(20), "p": notebook00.SMALLEST})
    row = notebook00.membership_rates(tested).loc["a", "empty"]
    assert row["mean"] == notebook00.SMALLEST and row["mean_high"] > 0.1
    assert row["least"] == 1 and 0.8 < row["least_low"] < 0.9
    assert row["uniform"] < 1e-9
