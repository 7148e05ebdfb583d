"""Claims with three verdicts, sentences made of numbers, and figures in documents."""

import json
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tools import figures

from memsub.io.files import load_json, save_json
from memsub_extra.notebooks.batch import project
from memsub_extra.notebooks.findings import (
    Span,
    at_least,
    at_most,
    checks,
    counted,
    exactly,
    fact,
    hits,
    percent,
    result,
    share,
    spanned,
    tally,
)
from memsub_extra.notebooks.took import read_took
from memsub_extra.run.run import Run


def test_a_claim_holds_only_beyond_what_varies_between_machines():
    at_least_alone, at_most_alone = partial(at_least, interval=None), partial(at_most, interval=None)
    assert at_least_alone(0.9, 0.8, varies=0.03).verdict == "holds"
    assert at_least_alone(0.9, 0.8, varies=0.04).verdict == "inconclusive"
    assert at_least_alone(0.79, 0.8, varies=0.01).verdict == "inconclusive"
    assert at_least_alone(0.7, 0.8, varies=0.03).verdict == "fails"
    assert at_most_alone(0.1, 0.3, varies=0.05).verdict == "holds"
    assert at_most_alone(0.5, 0.3, varies=0.05).verdict == "fails"
    assert (exactly(True).verdict, exactly(False).verdict) == ("holds", "fails")
    assert at_least_alone(float("nan"), 0.5, varies=0.1).verdict == "inconclusive"
    assert at_most_alone(0.15, 0.15, varies=0).verdict == "holds"  # at the bound, and nothing varies


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.85, 0.95), "holds"),
        ((0.80, 0.95), "holds"),
        ((0.70, 0.99), "inconclusive"),
        ((np.nan, np.nan), "inconclusive"),
    ],
)
def test_a_claim_holds_only_if_its_whole_interval_does(interval, verdict):
    assert at_least(0.9, 0.8, varies=0.01, interval=interval).verdict == verdict
    low, high = interval
    assert at_most(-0.9, -0.8, varies=0.01, interval=(-high, -low)).verdict == verdict


def test_a_claim_fails_only_if_its_whole_interval_does():
    assert at_least(0.6, 0.8, varies=0.01, interval=(0.5, 0.7)).verdict == "fails"
    assert at_least(0.6, 0.8, varies=0.1, interval=(0.5, 0.7)).verdict == "inconclusive"  # other machines may differ
    assert at_least(0.6, 0.8, varies=0.01, interval=(0.5, 0.8)).verdict == "inconclusive"
    assert at_most(0.9, 0.8, varies=0.01, interval=(0.85, 0.95)).verdict == "fails"


def test_hits_have_wilsons_interval():
    none, few = at_most((0, 10), 0.15, varies=0), at_most((0, 40), 0.15, varies=0)
    assert none.interval == pytest.approx((0, 0.278), abs=1e-3)
    assert (none.verdict, few.verdict) == ("inconclusive", "holds")
    assert at_least(hits(np.array([True] * 30)), 0.9, varies=0.01).verdict == "inconclusive"
    assert at_least(hits(np.array([True] * 40)), 0.9, varies=0.01).verdict == "holds"
    assert at_least((0, 0), 0.9, varies=0.01).verdict == "inconclusive"  # nothing was sampled
    assert at_least((9, 10), 0.5, varies=0, interval=(0.3, 1.0)).verdict == "inconclusive"  # its interval, if given


def test_a_number_without_its_interval_is_an_error():
    with pytest.raises(
        ValueError, match=r"the number 0\.9 without its interval: .* interval=None if nothing was sampled"
    ):
        at_least(0.9, 0.8, varies=0.01)


def test_checks_are_printed_counted_and_recorded(tmp_path, capsys):
    denoiser = SimpleNamespace(device=torch.device("cpu"))
    run = SimpleNamespace(folder=tmp_path, network_rows=7, by_kind={}, began=time.monotonic() - 90, denoiser=denoiser)
    run.record = partial(Run.record, run)
    claims = {
        "most": at_least(0.9, 0.5, varies=0.01, interval=(0.6, np.float64(1.0))),
        "sums": at_most(0.25, 0.5, varies=0.01, interval=None),
        "bits": exactly(True),
        "few": at_most((1, 4), 0.5, varies=0.0),
        "less": at_most(0.9, 0.5, varies=0.0, interval=None),
    }
    checks(run, "07_x", claims, rate=fact(0.25, varies=0.01), word="b")
    assert capsys.readouterr().out.splitlines() == [
        "holds: most [0.9, at least 0.5; 95 % interval 0.6 to 1; margin 0.4, varies by 0.01]",
        "holds: sums [0.25, at most 0.5; margin 0.25, varies by 0.01]",
        "holds: bits [exact]",
        "inconclusive: few [0.25, at most 0.5; 95 % interval 0.04559 to 0.6994; margin 0.25, varies by 0]",
        "fails: less [0.9, at most 0.5; margin -0.4, varies by 0]",
        "holds 3, fails 1, inconclusive 1",
    ]
    findings = load_json(tmp_path / "findings" / "07_x.json")
    expected = {"verdict": "holds", "value": 0.9, "bound": 0.5, "varies": 0.01, "low": 0.6, "high": 1.0}
    assert findings["claims"]["most"] == expected | {"relation": "at least"}
    assert findings["claims"]["sums"]["low"] is findings["claims"]["sums"]["high"] is None
    assert findings["claims"]["bits"]["relation"] == "exact"
    took = read_took(tmp_path)["07_x"]
    assert took.minutes == pytest.approx(1.5, abs=0.2) and took.gigabytes > 0 and took.rows == 7
    assert "thread" in took.hardware and "torch" in took.versions
    run.network_rows, run.began = 3, time.monotonic()  # the notebook again, from what is stored
    checks(run, "07_x", {})
    assert read_took(tmp_path)["07_x"] == took
    run.network_rows = 8
    checks(run, "07_x", {})
    assert read_took(tmp_path)["07_x"].rows == 8
    (tmp_path / "took" / "07_x.json").write_text('{"minutes": 1}')
    with pytest.raises(ValueError, match=r"07_x\.json does not say what a notebook took(?s:.*)Remove it"):
        read_took(tmp_path)
    assert read_took(tmp_path / "of an earlier version") == {}
    assert findings["facts"] == {"rate": {"value": 0.25, "varies": 0.01}, "word": "b"}
    assert findings["network_rows"] == 7
    assert json.dumps(findings)


def test_all_three_verdicts_are_counted():
    assert tally([]) == "holds 0, fails 0, inconclusive 0"
    assert tally(["holds", "inconclusive", "holds"]) == "holds 2, fails 0, inconclusive 1"


def test_a_result_is_named_values_in_a_template_that_is_no_program(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda markdown: shown.append(markdown.data))
    result("{rate:.0%} of {n} images, <b>, $20 or $30", rate=Span(0.5, 0.25, 0.75), n=4)
    assert shown == [r"*Here:* 50% (25% to 75%) of 4 images, \<b>, \$20 or \$30"]
    for template in ("{rate.value} of {n}", "{rate[0]} of {n}", "{} of {n}", "{n} images"):
        with pytest.raises(ValueError, match="each needs the other"):
            result(template, rate=0.5, n=4)


def test_a_value_with_its_interval_is_a_claim_and_a_fact():
    half = spanned([True, False, True, False])
    assert half == pytest.approx((0.5, 0.15, 0.85), abs=0.01)
    assert at_least(half, 0.1, varies=0.01).verdict == "holds"
    assert at_least(half, 0.3, varies=0.01).verdict == "inconclusive"
    known = {"04": {"rate": fact(half, varies=0.01, n=4)}}
    told = figures.fill("<!--figure 04.rate rate--><!--/figure-->", known, "README.md")
    assert told == "<!--figure 04.rate rate-->50 % (15 to 85 %, n = 4)<!--/figure-->"


def test_words_for_numbers():
    assert [percent(x) for x in (0, 1, 0.264, 0.004, 0.996)] == ["0 %", "100 %", "26 %", "0.4 %", "99.6 %"]
    assert share(0.004, 0, 0.02, 250.0) == "0.4 % (0 to 2 %, n = 250)"
    assert counted([True, False, False, False]) == "25 % (5 to 70 %, n = 4)"  # Wilson's interval


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


def test_a_report_of_the_embedded_model_is_taken_over(tmp_path):
    stages = [{"stage": "clip", "steps": 1500, "minutes": 7.9}]
    row = {"figure": "autoencoder", "aim": "≥ 33 dB", "measured": "36.6 dB", "reached": True}
    save_json({"testbed": [row], "stages": stages}, tmp_path / "testbed.json")
    known = figures.take({"membership": []}, testbed=tmp_path / "testbed.json")
    assert set(known) == {"membership", "testbed", "stages", "removals"}
    tables = "<!--table testbed--><!--/table--> <!--table stages--><!--/table-->"
    filled = figures.fill(tables, known, "card")
    assert "| autoencoder | ≥ 33 dB | 36.6 dB | yes |" in filled
    assert "| clip | 1,500 | 7.9 |" in filled


def test_a_run_that_finds_something_else_is_named():
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
