"""Published numbers beside a run's: the file that ships, what is compared, and what is not judged."""

import json

import pandas as pd
import pytest

from memsub_extra.notebooks import notebook05, published
from memsub_extra.notebooks.published import Found, Published, Value

SCORED = {"quantity": "copy similarity", "judge": "sscd_disc_large 1234"}


@pytest.fixture
def folder(tmp_path):
    """A run that found similarities of verbatim prompts, by two methods at several strengths."""
    rows = [
        SCORED | {"method": "none", "value": 0.8, "low": 0.7, "high": 0.9, "n": 30, "kind": "verbatim"},
        SCORED | {"method": "none", "value": 0.5, "n": 60},
        SCORED | {"method": "embedding optimization", "value": 0.2, "n": 30, "kind": "verbatim", "strength": "3"},
        SCORED | {"method": "embedding optimization", "value": 0.1, "n": 30, "kind": "verbatim", "strength": "1"},
    ]
    (tmp_path / published.FOLDER).mkdir()
    (tmp_path / published.FOLDER / "baselines.json").write_text(json.dumps(rows))
    return tmp_path


def test_the_file_has_its_rows_with_source_and_how_each_was_read():
    rows = published.load(published.find())
    assert len(rows) >= 12
    assert all(row.source for row in rows)
    assert {row.read for row in rows} == {"files", "note", "paper page"}
    kinds = {(r.model, r.kind): r.values[0].value for r in rows if r.quantity == "prompts of a kind"}
    assert kinds["sd14", "verbatim"] + kinds["sd14", "template"] == 500
    assert not [v for row in rows for v in row.values if v.low is not None]  # so nothing is judged


@pytest.mark.parametrize(
    "row",
    [
        {"quantity": "beauty", "values": [{"method": "none", "value": 1}]},
        {"quantity": "copy similarity"},
        {"quantity": "statement", "values": [{"method": "none", "value": 1}]},
        {"quantity": "copy similarity", "values": [{"method": "none", "value": float("nan")}]},
    ],
)
def test_a_row_that_is_none_is_named(row, tmp_path):
    file = tmp_path / "published.yaml"
    rest = {"model": "sd14", "source": "somebody", "read": "note"}
    file.write_text(json.dumps([row | rest]))
    with pytest.raises(ValueError, match=r"published\.yaml, row 1: "):
        published.load(file)


def test_the_report_puts_them_beside_what_was_found(folder):
    page = published.section(folder, {"model": "sd14"})
    cells = [row.split("<td>") for row in page.split("<tr>")]
    seen = {c[2].removesuffix("</td>"): c[3].removesuffix("</td>") for c in cells if c[1:2] == ["copy similarity</td>"]}
    assert seen["no mitigation: 0.875"] == "0.8 (0.7 to 0.9), n = 30"  # no verdict: the source has no interval
    assert seen["Wen et al. 2024: 0.115"] == "at 3: 0.2, n = 30; at 1: 0.1, n = 30"
    assert seen["GUARD: 0.079"] == "memsub does not have this method"
    assert "not found by this run" in page  # detection, and much else
    assert "intervals meet" not in page
    assert published.section(folder, {"model": "tiny"}) == ""
    other = published.section(folder, {"model": "sd14", "data": {"prompts": "mine.txt"}})
    assert "another list than the published ones" in other and "0.8 (0.7 to 0.9)" not in other


@pytest.mark.parametrize(("changed", "matches"), [({}, 1), ({"kind": "template"}, 0), ({"judge": "CLIP"}, 0)])
def test_only_the_same_kind_and_judge_is_compared(folder, changed, matches):
    value = Value(method="no mitigation", ours="none", value=0.9)
    about = {"quantity": "copy similarity", "model": "sd14", "kind": "verbatim", "judge": "SSCD", "values": [value]}
    row = Published(**about | changed, source="somebody", read="note")
    assert len(published.matching(row, value, published.recorded(folder))) == matches


def test_a_verdict_takes_two_intervals():
    ours = Found(**SCORED, method="none", value=0.8, low=0.7, high=0.9, n=30)
    for low, high, said in (
        (0.85, 0.95, "the intervals meet"),
        (0.91, 0.95, "the intervals do not meet"),
        (None,) * 2 + ("",),
    ):
        assert published.verdict(Value(method="none", value=0.9, low=low, high=high), ours) == said


def test_experiments_say_what_they_found(new_run, monkeypatch):
    run = new_run()
    monkeypatch.setattr(notebook05, "under_attack", lambda run: [run.unedited])
    areas, _ = notebook05.detection(run)
    places = run.data.held_out(run.data.split["locate"])[:3]
    scored = run.scores.memorized(run.unedited, places)
    published.record(
        run, "baselines", [*published.of_prompts(run), *published.of_scores(run, "none", "", scored, places)]
    )
    found = {(f.quantity, f.method, f.kind): f for f in published.recorded(run.folder)}
    area = found["detection, area under the curve", "text magnitude", "all"]
    of_score = areas.set_index("score").loc["text magnitude"]
    assert (area.value, area.low, area.high) == tuple(of_score[["area", "area_low", "area_high"]])
    similarity = found["copy similarity", "none", "verbatim"]
    assert similarity.value == pytest.approx(scored["copy_similarity"].mean())
    assert similarity.low <= similarity.value <= similarity.high
    assert (
        found["prompts of a kind", "all", "verbatim"].value
        == (run.data.prompts.memorized_rows["kind"] == "verbatim").sum()
    )
    assert found["share of prompts with a training image", "all", "all"].value == 1
    curve = pd.DataFrame({"false_positives": [0, 0.005, 0.02, 1], "true_positives": [0, 0.4, 0.9, 1]})
    assert published.of_detection("x", 0.9, curve, 200)[1].value == 0.4
    assert len(published.of_detection("x", 0.9, curve, 99)) == 1  # too few to tell 1 %
