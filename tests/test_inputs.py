"""Inputs that nobody should bring: right, or one sentence, as docs/bad-inputs.md shows them."""

import copy

import pytest
from tools import what_works

from inputs import INPUTS, Box, cells, outcome

ROWS = [pytest.param(row, id=row.what) for rows in INPUTS.values() for row in rows]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ROWS)
def test_a_bad_input_ends_right_or_with_a_sentence(micro, tmp_path, monkeypatch, row):
    monkeypatch.chdir(tmp_path)
    ended, sentence = outcome(row, Box(tmp_path, copy.deepcopy(micro)))
    assert ended, sentence
    assert cells(row, sentence) in what_works.BAD_INPUTS.read_text().splitlines()


def test_forty_of_them_and_each_once():
    whats = [param.values[0].what for param in ROWS]
    assert len(whats) == len(set(whats)) >= 40
