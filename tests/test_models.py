"""The registry of models: "tiny" is a row of it."""

import shutil

import pytest

import memsub
from memsub.io.downloads import SOURCES
from memsub.models import MODELS, ModelInfo, as_denoiser, find_model, model_of
from memsub.world import WORLDS
from memsub_extra.notebooks.cost import at_hand


def test_a_row_says_all_that_is_known_of_a_model():
    tiny, sd14 = MODELS["tiny"], MODELS["sd14"]
    assert (tiny.world, tiny.sparsity, tiny.scorers, tiny.twin) == ("testbed", 0.4, "testbed", "tiny-twin")
    assert (sd14.world, sd14.sparsity, sd14.scorers, sd14.twin) == ("", 0.01, "published", "")
    for name, model in MODELS.items():
        assert model.name == name
        assert model.prompts in SOURCES or MODELS[model.prompts].world
        assert model.scorers in ("published", *WORLDS)
        assert model.parameters in (f"{model.name}.yaml", "")
        assert not model.world or model.world in WORLDS
        assert not model.twin or MODELS[model.twin].world == model.world


def test_a_pipeline_knows_its_row(pipe, micro, tmp_path):
    assert model_of(pipe) is MODELS["tiny"]
    micro.save_pretrained(tmp_path / "copy")
    other = memsub.load_pipeline(tmp_path / "copy")
    assert model_of(other) == ModelInfo(str(tmp_path / "copy"), *[str(tmp_path / "copy")] * 2, "published")
    assert model_of(other).sparsity == 0.01  # somebody's model: the paper's
    assert memsub.fingerprint(other) == memsub.fingerprint(micro)


def test_a_row_of_ones_own(pipe, monkeypatch):
    source = as_denoiser(pipe).source
    monkeypatch.delitem(MODELS, "tiny")
    monkeypatch.setitem(MODELS, "mine", ModelInfo("mine", source, "mine", "published", sparsity=0.5))
    assert model_of(pipe).sparsity == find_model("mine").sparsity == find_model(source).sparsity == 0.5


def test_other_sources(tmp_path):
    assert find_model("owner/model").source == "owner/model"
    assert find_model("owner/model").scorers == "published"
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json"):
        find_model(tmp_path)
    (tmp_path / "model_index.json").touch()
    assert find_model(tmp_path).scorers == "published"
    (tmp_path / "scorers").mkdir()
    assert find_model(tmp_path).scorers == "testbed"  # as what trains models of its world writes them
    shutil.rmtree(tmp_path / "scorers")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tny", "Did you mean 'tiny'"),
        ("sd41", "Did you mean 'sd14'"),
        ("qqqq", "Expected one of tiny, tiny-twin, tiny-other, sd14, sd20"),
    ],
)
def test_unknown_models_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        memsub.load_pipeline(name)


def test_a_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model_index\.json"):
        memsub.load_pipeline(tmp_path)


def test_what_is_at_hand_needs_no_download(tmp_path):
    assert at_hand("tiny") and not at_hand("owner/model")
