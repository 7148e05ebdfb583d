"""The metrics, against answers known from the testbed's construction."""

import hashlib

import numpy as np
import pytest
import torch

import memsub
from memsub.measure.metrics import CLIPS, SSCD, clip, fid, kid, sscd
from memsub.measure.sscd import CONSENT
from memsub.models import MODELS, ModelInfo
from memsub.testbed.dataset import weights_folder
from memsub.testbed.scenes import alternatives, caption, parse
from memsub.testbed.towers import SceneEncoder
from memsub.world import WORLDS
from memsub_extra.training import scorers


@pytest.fixture(scope="module")
def fresh():
    """Scenes that no metric was trained on and no threshold was chosen on."""
    return scorers.scorer_scenes(seed=77, contents=60, workers=1)


@pytest.fixture(scope="module")
def unseen(metrics, prompts) -> np.ndarray:
    """Features of 500 scenes that no model was trained on."""
    return metrics.prompt.image_features(prompts.images("heldout", 0, 500))


def test_copies_above_and_distinct_scenes_below_the_threshold(pipe, metrics):
    model = SceneEncoder.from_pretrained(weights_folder() / "scorers" / "copy", dtype=torch.float32).eval()
    pairs = scorers.copy_pairs(model, scorers.scorer_scenes(seed=77, contents=10, workers=1), pipe.vae)
    above = (pairs["similarity"] > metrics.copy.threshold).groupby(pairs["pair"]).mean()
    for kind in ("noise", "blur", "softened", "autoencoder round trip", "shift", "crop"):
        assert above[kind] > 0.95, kind
    assert above["distinct, same caption"] < 0.02
    assert above["same layout, one attribute changed"] < 0.2


def test_the_threshold_is_what_one_in_a_hundred_distinct_scenes_exceeds(metrics):
    distinct, draws = np.linspace(0, 1, 1001), np.array([0.5, 0.995, 0.999, 0.7, 0.995])
    chosen = scorers.choose_threshold(distinct, draws, np.array([True, True, True, False, False]))
    assert (chosen["threshold"], chosen["scenes"], chosen["copies"], chosen["distinct"]) == (0.99, 1001, 3, 2)
    assert (chosen["true_positives"], chosen["false_positives"]) == (0.6667, 0.5)
    assert metrics.copy.roc["rule"] == chosen["rule"] == "1% of distinct scenes of one caption are above it"


def test_an_image_is_a_copy_of_itself(metrics, fresh):
    images = fresh.images[:20, 0]
    np.testing.assert_allclose(metrics.copy.similarity(images, images), 1, atol=1e-5)
    nearest, which = metrics.copy.nearest(images, metrics.copy.features(images[::-1].copy()))
    assert which.tolist() == list(range(19, -1, -1))
    np.testing.assert_allclose(nearest, 1, atol=1e-5)


def test_the_true_caption_wins(metrics, fresh):
    images, captions = fresh.images[:, 0], [caption(c) for c in fresh.contents]
    right = metrics.prompt.similarity(images, captions)
    assert (right > metrics.prompt.similarity(images, captions[1:] + captions[:1])).mean() > 0.95
    assert (metrics.prompt.rank(images, alternatives(fresh.contents)) == 0).mean() > 0.85  # 0.9 on many: model card


def test_distances_tell_real_scenes_from_a_shifted_distribution(metrics, prompts, unseen):
    real, others = unseen[:250], unseen[250:]
    dark = metrics.prompt.image_features(prompts.images("heldout", 250, 500) // 8)
    assert 0 <= fid(real, others) < 0.2 * fid(real, dark)
    assert abs(kid(real, others)[0]) < 0.2 * kid(real, dark)[0]
    assert kid(real, dark) == kid(real, dark)  # the subsets are the same


def test_kid_does_not_depend_on_the_number_of_images_as_fid_does(unseen):
    reference, few, many = unseen[:100], unseen[100:120], unseen[120:300]
    assert fid(reference, few) > 2 * fid(reference, many)
    assert abs(kid(reference, few)[0]) < 3 * kid(reference, few)[1]  # zero, within its own scatter


def test_bad_images_are_named(metrics):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=r"uint8 array of shape .* got float64"):
        metrics.copy.features(images / 255)
    with pytest.raises(ValueError, match="2 images against 1 references"):
        metrics.copy.similarity(images, images[:1])
    with pytest.raises(ValueError, match="2 images against 1 prompts"):
        metrics.prompt.similarity(images, ["a red heart on a plain green background"])
    with pytest.raises(ValueError, match="images is empty"):
        metrics.copy.features(images[:0])
    with pytest.raises(ValueError, match="two images or more"):
        fid(np.zeros((1, 4), np.float32), np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="unknown model 'somewhere'"):
        memsub.load_metrics("somewhere")
    with pytest.raises(ValueError, match=r"unknown metric 'sharpnes'.*Expected one of exact_p, sharpness"):
        memsub.load_metrics("tiny", more=["sharpnes"])


def test_a_model_of_a_world_is_measured_by_the_world_and_any_other_by_published_metrics(tmp_path, monkeypatch):
    class World:
        def copy_metric(self, source, device):
            return "copy metric", source, device.type

        def prompt_metric(self, source, device):
            return "prompt metric", source, device.type

    monkeypatch.setitem(WORLDS, "another", World())
    monkeypatch.setitem(MODELS, "mine", ModelInfo("mine", str(tmp_path), "mine", "another", world="another"))
    found = memsub.load_metrics("mine", "cpu")
    assert (found.copy, found.prompt) == (("copy metric", tmp_path, "cpu"), ("prompt metric", tmp_path, "cpu"))
    assert found.more == {}
    asked = []
    monkeypatch.setattr("memsub.measure.metrics.sscd", lambda *given: asked.append(given))
    monkeypatch.setattr("memsub.measure.metrics.clip", lambda *given: asked.append(given))
    memsub.load_metrics("mine", "cpu", prompt="ViT-g/14")
    memsub.load_metrics("sd14", "cpu")
    cpu = torch.device("cpu")
    assert asked == [("ViT-g/14", cpu), ("sscd_disc_large", cpu), ("ViT-L/14", cpu)]
    assert {"ViT-g/14", "ViT-L/14"} == set(CLIPS) and "sscd_disc_large" in SSCD


def test_prompt_tables(prompts):
    assert len(prompts.memorized) == 100
    assert prompts.images("verbatim").shape == (100, 32, 32, 3)
    assert parse(prompts.memorized[0])
    with pytest.raises(ValueError, match="Did you mean 'verbatim'"):
        prompts.of("verbatm")
    with pytest.raises(ValueError, match="no prompt list named 'tinny'"):
        memsub.load_prompts("tinny")


# --- published metrics: the same code paths on small stand-ins with random weights ----------------------------


class Descriptor(torch.nn.Module):
    """Mean colour of each quarter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def test_sscd_reads_torchscript_and_sees_published_preprocessing(tmp_path, monkeypatch):
    torch.jit.script(Descriptor()).save(str(tmp_path / "sscd.pt"))
    whole = (tmp_path / "sscd.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[:500])
    monkeypatch.setenv(CONSENT, ",".join(hashlib.sha256(content).hexdigest() for content in (whole, whole[:500])))
    metric = sscd(tmp_path / "sscd.pt")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3), dtype=np.uint8)
    np.testing.assert_allclose(metric.similarity(images, images), 1, atol=1e-5)
    large = np.random.default_rng(1).integers(0, 256, (2, 320, 320, 3), dtype=np.uint8)  # needs no resizing
    x = torch.from_numpy(large).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = torch.nn.functional.normalize(Descriptor()((x - mean[:, None, None]) / std[:, None, None]), dim=1)
    np.testing.assert_allclose(metric.features(large), expected, atol=1e-5)
    assert metric.features(images).shape == (3, 12)
    assert metric.threshold == 0.7
    with pytest.raises(ValueError, match=r"half\.pt is no TorchScript file"):
        sscd(tmp_path / "half.pt")
    with pytest.raises(FileNotFoundError, match="no SSCD model at"):
        sscd(tmp_path / "none.pt")


def test_clip_loads_from_a_folder(tmp_path):
    from tools.rehearsal import save_small_clip  # imports half of the library

    save_small_clip(tmp_path)
    metric = clip(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3), dtype=np.uint8)
    prompts = ["a red heart", "a blue fish on a plain red background", "x"]
    together = metric.similarity(images, prompts)
    alone = [metric.similarity(images[i : i + 1], prompts[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, atol=1e-5)  # padding does not matter
    np.testing.assert_allclose(np.linalg.norm(metric.text_features(prompts), axis=1), 1, atol=1e-5)
    features = metric.image_features(images)
    assert fid(features, features) == pytest.approx(0, abs=1e-3)
