"""The registry of models: "tiny" is a row of it."""

import pytest

import memsub
from memsub.models import MODELS, find_model, model_of
from memsub.prompts import LISTS


def test_a_row_says_all_that_is_known_of_a_model():
    tiny, sd14 = MODELS["tiny"], MODELS["sd14"]
    assert (tiny.drawn, tiny.sparsity, tiny.scorers) == (True, 0.25, "testbed")
    assert (sd14.drawn, sd14.sparsity, sd14.scorers) == (False, 0.01, "published")
    for model in MODELS.values():
        assert model.prompts in LISTS
        assert model.scorers in memsub.metrics.SCORERS
        assert model.parameters in (f"{model.name}.yaml", "")


def test_a_pipeline_knows_its_row(pipe, tmp_path):
    assert model_of(pipe).name == "tiny"
    pipe.save_pretrained(tmp_path / "copy")
    other = memsub.load_pipeline(tmp_path / "copy")
    assert model_of(other).sparsity == 0.01  # somebody's model: the paper's


def test_other_sources(tmp_path):
    assert find_model("owner/model").source == "owner/model"
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json"):
        find_model(tmp_path)
