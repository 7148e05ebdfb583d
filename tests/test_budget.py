"""The budget of network calls: what a notebook may draw is written down, and more is told."""

import pytest
from tools import budget

from memsub.run.batch import NOTEBOOKS
from memsub.io.files import save_json
from memsub.run.parameters import Parameters
from memsub.run.run import Run


def test_every_notebook_has_a_budget():
    assert list(budget.BUDGETS) == list(NOTEBOOKS)


def test_more_than_the_budget_is_told(tmp_path, monkeypatch, capsys):
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


def test_a_run_counts_its_network_calls():
    run = Run(Parameters())
    run.sample(["a red heart"], seeds=[0])
    steps = run.parameters.sampling.steps
    assert run.network_rows == 2 * steps  # both halves of a guided call
    with run.as_twin():
        run.sample(["a red heart"], seeds=[0])
    assert run.network_rows == 4 * steps
