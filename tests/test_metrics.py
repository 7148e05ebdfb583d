"""The judges, against answers known from the world's construction."""

import numpy as np
import pytest
import torch

import memsub
from memsub.metrics import clip, sscd
from memsub.rehearsal import save_small_clip
from memsub.testbed import judges as judging
from memsub.testbed.dataset import weights_folder
from memsub.testbed.report import attribute_rank
from memsub.testbed.scenes import caption, parse
from memsub.testbed.towers import SceneEncoder


@pytest.fixture(scope="module")
def fresh():
    """Scenes no judge was trained on and no threshold chosen on."""
    return judging.judge_scenes(seed=77, contents=60, workers=1)


def test_copies_above_and_distinct_scenes_below_the_threshold(pipe, judges, fresh):
    model = SceneEncoder.from_pretrained(weights_folder() / "judges" / "copy", dtype=torch.float32).eval()
    _, pairs, _ = judging.copy_roc(model, fresh, pipe.vae)
    above = (pairs["similarity"] > judges.copy.threshold).groupby(pairs["pair"]).mean()
    for kind in ("noise", "blur", "autoencoder round trip", "shift", "crop"):
        assert above[kind] > 0.95, kind
    assert above["distinct, same caption"] < 0.02
    assert above["same layout, one attribute changed"] < 0.2


def test_an_image_is_a_copy_of_itself(judges, fresh):
    images = fresh.images[:20, 0]
    np.testing.assert_allclose(judges.copy.similarity(images, images), 1, atol=1e-5)
    nearest, which = judges.copy.nearest(images, judges.copy.features(images[::-1].copy()))
    assert which.tolist() == list(range(19, -1, -1))
    np.testing.assert_allclose(nearest, 1, atol=1e-5)


def test_the_true_caption_wins(judges, fresh):
    images, captions = fresh.images[:, 0], [caption(c) for c in fresh.contents]
    right = judges.prompt.similarity(images, captions)
    assert (right > judges.prompt.similarity(images, captions[1:] + captions[:1])).mean() > 0.95
    # Chance is 1/16. The judge reaches about 0.5, as the model card states.
    assert (attribute_rank(images, fresh.contents, judges) == 0).mean() > 0.4


def test_fid_tells_real_scenes_from_a_shifted_distribution(judges, prompts):
    scenes = prompts.images("heldout")
    real, others, dark = (judges.prompt.image_features(x) for x in (scenes[:1000], scenes[1000:], scenes[1000:] // 2))
    same, darker = memsub.fid(real, others), memsub.fid(real, dark)
    assert 0 <= same < 0.2 * darker


def test_bad_images_are_named(judges):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=r"uint8 array of shape .* got float64"):
        judges.copy.features(images / 255)
    with pytest.raises(ValueError, match="2 images against 1 references"):
        judges.copy.similarity(images, images[:1])
    with pytest.raises(ValueError, match="2 images against 1 prompts"):
        judges.prompt.similarity(images, ["a red star on a plain green background"])
    with pytest.raises(ValueError, match="images is empty"):
        judges.copy.features(images[:0])
    with pytest.raises(ValueError, match="two images or more"):
        memsub.fid(np.zeros((1, 4), np.float32), np.zeros((2, 4), np.float32))
    with pytest.raises(FileNotFoundError, match="holds no folder `judges`"):
        memsub.load_judges("somewhere")


def test_prompt_tables(prompts):
    assert len(prompts.memorized) == 100
    assert prompts.images("verbatim").shape == (100, 32, 32, 3)
    assert parse(prompts.memorized[0])
    with pytest.raises(ValueError, match="Did you mean 'verbatim'"):
        prompts.of("verbatm")
    with pytest.raises(ValueError, match="no prompt list named 'tinny'"):
        memsub.load_prompts("tinny")


# --- published judges: the same code paths on small stand-ins with random weights ----------------------------


class Descriptor(torch.nn.Module):
    """Mean colour of each quarter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def test_sscd_reads_torchscript_and_sees_published_preprocessing(tmp_path):
    torch.jit.script(Descriptor()).save(str(tmp_path / "sscd.pt"))
    judge = sscd(tmp_path / "sscd.pt")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3), dtype=np.uint8)
    np.testing.assert_allclose(judge.similarity(images, images), 1, atol=1e-5)
    large = np.random.default_rng(1).integers(0, 256, (2, 320, 320, 3), dtype=np.uint8)  # needs no resizing
    x = torch.from_numpy(large).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = torch.nn.functional.normalize(Descriptor()((x - mean[:, None, None]) / std[:, None, None]), dim=1)
    np.testing.assert_allclose(judge.features(large), expected, atol=1e-5)
    assert judge.features(images).shape == (3, 12)
    assert judge.threshold == 0.7
    (tmp_path / "half.pt").write_bytes((tmp_path / "sscd.pt").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"half\.pt is no TorchScript file"):
        sscd(tmp_path / "half.pt")
    with pytest.raises(FileNotFoundError, match="no SSCD model at"):
        sscd(tmp_path / "none.pt")


def test_clip_loads_from_a_folder(tmp_path):
    save_small_clip(tmp_path)
    judge = clip(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3), dtype=np.uint8)
    prompts = ["a red star", "a blue fish on a plain red background", "x"]
    together = judge.similarity(images, prompts)
    alone = [judge.similarity(images[i : i + 1], prompts[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, atol=1e-5)  # padding does not matter
    np.testing.assert_allclose(np.linalg.norm(judge.text_features(prompts), axis=1), 1, atol=1e-5)
    features = judge.image_features(images)
    assert memsub.fid(features, features) == pytest.approx(0, abs=1e-3)
