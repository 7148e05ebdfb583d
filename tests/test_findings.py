"""Claims with margins, and sentences made of numbers."""

import pytest
from tools import figures

from memsub.batch import project
from memsub.files import load_json, save_json
from memsub.findings import at_least, at_most, checks, compared, counted, exactly, fact, percent, rate, share
from memsub.testbed import widths


def test_a_claim_holds_only_beyond_what_varies_between_machines():
    assert at_least(0.9, 0.8, varies=0.03).verdict == "holds"
    assert at_least(0.9, 0.8, varies=0.04).verdict == "open"
    assert at_least(0.79, 0.8, varies=0.01).verdict == "open"
    assert at_least(0.7, 0.8, varies=0.03).verdict == "FAILS"
    assert at_most(0.1, 0.3, varies=0.05).verdict == "holds"
    assert at_most(0.5, 0.3, varies=0.05).verdict == "FAILS"
    assert (exactly(True).verdict, exactly(False).verdict) == ("holds", "FAILS")
    assert at_least(float("nan"), 0.5, varies=0.1).verdict == "open"


def test_checks_are_printed_and_recorded(run, capsys):
    claims = {"most": at_least(0.9, 0.5, varies=0.01), "bits": exactly(True)}
    checks(run, "07_x", claims, rate=fact(0.25, varies=0.01), word="b")
    told = capsys.readouterr().out.splitlines()
    assert told == ["holds: most [0.9, at least 0.5; margin 0.4, varies by 0.01]", "holds: bits [exact]"]
    found = load_json(run.folder / "findings" / "07_x.json")
    assert found["claims"]["most"] == {"verdict": "holds", "value": 0.9, "bound": 0.5, "varies": 0.01}
    assert found["facts"] == {"rate": {"value": 0.25, "varies": 0.01}, "word": "b"}


def test_words_for_numbers():
    assert [percent(x) for x in (0, 1, 0.264, 0.004, 0.996)] == ["0 %", "100 %", "26 %", "0.4 %", "99.6 %"]
    assert rate({"exact_rate": 0.5, "exact_low": 0.2, "exact_high": 0.8, "n": 4}, "exact") == "50 % (20 to 80 %, n = 4)"
    assert share(0.004, 0, 0.02, 250.0) == "0.4 % (0 to 2 %, n = 250)"
    assert counted([True, False, False, False]) == "25 % (5 to 70 %, n = 4)"  # Wilson's interval
    assert [compared(a, 1.0, 0.1) for a in (1.05, 1.2, 0.8)] == ["as much", "more", "less"]


def test_documents_say_what_the_figures_say():
    known = {"04": {"rate": {"value": 0.264, "varies": 0.01}, "models": {"pruned": {"value": 0.5}}}}
    text = "a <!--figure 04.rate percent-->9 %<!--/figure--> b <!--figure 04.models.pruned number--><!--/figure-->"
    filled = figures.fill(text, known, "README.md")
    assert (
        filled
        == "a <!--figure 04.rate percent-->26 %<!--/figure--> b <!--figure 04.models.pruned number-->0.50<!--/figure-->"
    )
    assert figures.fill(filled, known, "README.md") == filled
    with pytest.raises(ValueError, match=r"README\.md: no figure '04\.rat' in docs/figures\.json"):
        figures.fill("<!--figure 04.rat percent--><!--/figure-->", known, "README.md")
    with pytest.raises(ValueError, match="unknown format 'percentage'"):
        figures.fill("<!--figure 04.rate percentage--><!--/figure-->", known, "README.md")


def test_of_one_training_of_each_width_nothing_is_told(monkeypatch):
    table = widths.measured()
    monkeypatch.setattr(widths, "measured", lambda: table[table["training"] == 0])
    assert figures.trained_twice() == {}


def test_a_model_made_in_one_go_is_told_beside_the_one_that_ships(tmp_path):
    stages = [{"stage": "clip", "steps": 1500, "minutes": 7.9}]
    for name, psnr in (("testbed", "36.6 dB"), ("whole", "35.0 dB")):
        row = {"figure": "autoencoder", "aim": "≥ 33 dB", "measured": psnr, "reached": True}
        save_json({"testbed": [row], "stages": stages}, tmp_path / f"{name}.json")
    known = figures.take({}, testbed=tmp_path / "testbed.json", whole=tmp_path / "whole.json")
    told = figures.fill(
        "<!--table testbed--><!--/table--> <!--table whole_testbed--><!--/table--> "
        "<!--table whole_stages--><!--/table-->",
        known,
        "card",
    )
    halves = widths.half_sparsity(widths.measured()).xs(1032.0)
    assert [of["value"] for of in known["whole_half"].values()] == pytest.approx(halves.to_list())
    lines = figures.trained_again(known["whole_pruned"]).splitlines()
    assert [line.split("|")[2].strip() for line in lines if line.startswith("| ships")][:3] == ["0 %", "1 %", "2 %"]
    rows = ["| autoencoder | ≥ 33 dB | 36.6 dB | yes |", "| autoencoder | ≥ 33 dB | 35.0 dB | yes |"]
    assert [line for line in told.splitlines() if line.startswith("| auto")] == rows
    assert "| clip | 1,500 | 7.9 |" in told


def test_a_run_that_finds_something_else_is_told():
    known = {"04": {"rate": {"value": 0.26, "varies": 0.01}}}
    assert not figures.compare(
        known,
        {
            "04": {
                "rate": {"value": 0.28, "varies": 0.01},
            }
        },
    )
    assert figures.compare(known, {"04": {"rate": {"value": 0.30, "varies": 0.01}}}) == [
        "04.rate: 0.26 written, 0.3 found"
    ]
    assert figures.compare(known, {"05": {"x": 1}}) == ["05.x is not in docs/figures.json"]


def test_a_run_is_compared_with_the_documents(tmp_path, monkeypatch, capsys):
    rate = load_json(project() / "docs" / "figures.json")["04_pruning"]["located"]
    for shift, code, told in ((0.0, 0, "all figures agree"), (1.0, 1, "04_pruning.located")):
        fact = rate | {"value": rate["value"] + shift, "varies": 0.01}
        save_json({"facts": {"located": fact}}, tmp_path / "findings" / "04_pruning.json")
        monkeypatch.setattr("sys.argv", ["figures", "--compare", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            figures.main()
        assert ended.value.code == code
        assert told in capsys.readouterr().out
