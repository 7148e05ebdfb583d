"""The budget of network calls: what a notebook may sample is written down, and an excess is reported."""

import pytest
from tools import budget

from memsub.io.files import save_json
from memsub_extra.notebooks.listing import NOTEBOOKS
from memsub_extra.run.parameters import Parameters
from memsub_extra.run.run import Run
from micro import micro_pipeline


def test_every_notebook_has_a_budget():
    assert list(budget.BUDGETS) == sorted(NOTEBOOKS)


def test_more_than_the_budget_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["budget", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"holds no findings/\*\.json"):
        budget.main()
    allowed = budget.BUDGETS["04_pruning"][0]
    for more, code in ((0, 0), (1, 1)):
        save_json({"network_rows": allowed + more}, tmp_path / "findings" / "04_pruning.json")
        with pytest.raises(SystemExit) as ended:
            budget.main()
        assert ended.value.code == code
    assert f"04_pruning: {allowed + 1:,} rows, of {allowed:,}" in capsys.readouterr().out


def test_a_run_counts_its_network_calls(tmp_path, monkeypatch):
    monkeypatch.setattr("memsub_extra.run.run.load_pipeline", lambda name, dtype=None: micro_pipeline(seed=len(name)))
    run = Run(Parameters(folder=str(tmp_path)))
    steps = run.parameters.sampling.steps
    run.scores.images(run.unedited, ["a red heart"], [0])
    assert run.network_rows == 2 * steps  # both halves of a guided call
    run.scores.images(run.twin, ["a red heart"], [0])
    assert run.network_rows == 4 * steps
    run.scores.images(run.twin, ["a red heart"], [0])
    assert run.network_rows == 4 * steps, "what is cached calls no network"
