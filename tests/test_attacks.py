"""Attacks on constructed cases whose answer is known, and in small on the embedded model."""

import numpy as np
import pytest
import torch

from memsub.io.files import save_json
from memsub.io.images import save_image
from memsub.models import Conditioning, as_denoiser, generate
from memsub_extra import attacks
from memsub_extra.attacks import EmbeddingAttack, extraction

RNG = np.random.default_rng(0)


def test_tiled_distance_is_that_of_the_most_different_tile():
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[1, 8:16, 24:32] = 51  # one of 16 tiles, 0.2 of the range
    assert attacks.tiled_distance(images)[0, 1] == pytest.approx(0.2, abs=1e-6)
    images[1, 0:4, 0:8] = 255  # half of another tile: root mean square 1 / sqrt(2)
    assert attacks.tiled_distance(images)[0, 1] == pytest.approx(0.5**0.5, abs=1e-6)
    with pytest.raises(ValueError, match="images of 32 x 30 pixels cannot be cut into 4 x 4 tiles"):
        attacks.tiled_distance(images[:, :, :30])


def test_a_planted_clique_is_found():
    distances = np.full((8, 8), 1.0)
    clique = [1, 3, 4, 6]
    distances[np.ix_(clique, clique)] = 0.05
    distances[0, 1] = distances[1, 0] = distances[0, 3] = distances[3, 0] = 0.05  # near to some, not to all
    assert attacks.largest_clique(distances, 0.1) == clique
    assert len(attacks.largest_clique(np.ones((3, 3)), 0.1)) == 1


def planted(folder, duplicates: int, others: int, training_image: np.ndarray, caption: int) -> None:
    for seed in range(duplicates + others):
        spread = 6 if seed < duplicates else 255
        noise = RNG.integers(-spread, spread + 1, training_image.shape)
        image = np.clip(training_image.astype(int) + noise, 0, 255).astype(np.uint8)
        save_image(image, attacks.image_path(folder, caption, seed))


def test_planted_duplicates_are_claimed_and_checked(tmp_path, metrics, prompts):
    images = prompts.images("verbatim")[:3]
    never = prompts.images("heldout")[:1]
    planted(tmp_path, 8, 4, images[0], 0)  # enough duplicates of a training image
    planted(tmp_path, 3, 9, images[1], 1)  # too few
    planted(tmp_path, 12, 0, never[0], 2)  # duplicates of something that is no training image
    save_json({"captions": ["a", "b", "c"], "images": 12}, tmp_path / "manifest.json")
    found = attacks.extract(tmp_path, threshold=0.1, clique=6)
    assert found["claimed"].tolist() == [True, False, True]
    assert found["size"].tolist() == [8, 3, 12]
    checked = attacks.check_extraction(found, tmp_path, metrics.copy, metrics.copy.features(images))
    assert checked["extracted"].tolist() == [True, False, False]
    assert checked["nearest"][0] == 0
    some = attacks.check_extraction(
        found[found["claimed"]][::-1], tmp_path, metrics.copy, metrics.copy.features(images)
    )
    assert some["similarity"].to_dict() == pytest.approx(checked["similarity"][[2, 0]].to_dict())
    with pytest.raises(ValueError, match="does not name the captions"):
        attacks.check_extraction(found[1:].reset_index(drop=True), tmp_path, metrics.copy, np.zeros((1, 1)))
    with pytest.raises(ValueError, match="a clique of 13"):
        attacks.extract(tmp_path, clique=13)
    attacks.image_path(tmp_path, 1, 3).unlink()
    with pytest.raises(FileNotFoundError, match="call `sample_to_folder` again"):
        attacks.extract(tmp_path)


def test_sampling_resumes_and_refuses_a_folder_of_something_else(tmp_path, micro, prompts, monkeypatch):
    captions, options = prompts.memorized[:2], {"images": 3, "steps": 2, "batch_size": 4, "progress": False}
    attacks.sample_to_folder(micro, captions, tmp_path, **options)
    files = sorted(tmp_path.rglob("*.png"))
    assert len(files) == 6
    before = files[4].read_bytes()
    files[4].unlink()
    asked = []
    monkeypatch.setattr(extraction, "generate", lambda p, c, **k: asked.append(c) or generate(p, c, **k))
    attacks.sample_to_folder(micro, captions, tmp_path, **options)
    assert asked == [[captions[1]]]
    assert files[4].read_bytes() == before
    with pytest.raises(ValueError, match="other captions"):
        attacks.sample_to_folder(micro, prompts.memorized[2:4], tmp_path, **options)
    with pytest.raises(ValueError, match="no prompts: the list is empty"):
        attacks.sample_to_folder(micro, [], tmp_path)


def test_the_embedding_attack_brings_a_training_image_back_from_its_own_prompt(pipe, prompts, metrics):
    images = prompts.images("verbatim")[:2]
    start = as_denoiser(pipe).embed(prompts.memorized[:2])
    attacked = attacks.embedding_attack(pipe, images, start, iterations=4, noises=2, progress=False)
    assert not torch.equal(attacked.embeddings, start.embeddings)
    sampled = generate(pipe, attacked, seeds=7, guidance_scale=3.0, steps=8, solver="multistep", progress=False)
    assert metrics.copy.similarity(sampled, images).mean() > 0.7


def test_the_embedding_attack_changes_embeddings_alone(micro, prompts):
    images, denoiser = prompts.images("verbatim")[:3], as_denoiser(micro)
    start, options = denoiser.embed(prompts.memorized[:3]), {"iterations": 2, "noises": 2, "progress": False}
    attacked = attacks.embedding_attack(micro, images, start, **options)
    assert isinstance(attacked, Conditioning) and attacked.embeddings.shape == start.embeddings.shape
    assert not torch.equal(attacked.embeddings, start.embeddings)
    assert all(p.grad is None for p in micro.unet.parameters())
    assert generate(micro, attacked, steps=1, progress=False).shape == images.shape
    for other in (start.embeddings, prompts.memorized[:3]):  # plain embeddings, or captions
        assert attacks.embedding_attack(micro, images, other, **options).fingerprint == attacked.fingerprint
    with pytest.raises(ValueError, match="3 embeddings to start from for 2 images"):
        attacks.embedding_attack(micro, images[:2], start)


def test_each_image_is_attacked_by_itself(exact_micro, prompts):
    images = prompts.images("verbatim")[:3]
    start, options = as_denoiser(exact_micro).embed([""]).expand(3), {"noises": 2, "seed": 5}
    together = EmbeddingAttack(exact_micro, images, start, **options)
    together.advance(3, range(3))
    apart = EmbeddingAttack(exact_micro, images, start, batch_size=2, **options)  # one at a time
    for iterations in (1, 2):
        apart.advance(iterations, [2, 0])
    torch.testing.assert_close(apart.embeddings([0, 2]).embeddings, together.embeddings([0, 2]).embeddings)
    assert torch.equal(apart.embeddings([1]).embeddings[0].float(), start.embeddings[1].float())


def test_what_else_a_prompt_has_stays(micro, prompts, monkeypatch):
    """Pooled embeddings and the like go to the network with their rows, and come back unchanged."""
    denoiser, seen = as_denoiser(micro), []
    predict = denoiser.predict
    monkeypatch.setattr(
        denoiser, "predict", lambda x, t, c: seen.append(c.pooled) or predict(x, t, Conditioning(c.embeddings)), False
    )
    text, pooled = denoiser.embed(["a", "b"]), torch.tensor([[1.0], [2.0]])
    start = Conditioning(text.embeddings, pooled=pooled)
    images = prompts.images("verbatim")[:2]
    attacked = attacks.embedding_attack(denoiser, images, start, iterations=1, noises=3, progress=False)
    assert torch.equal(seen[0], pooled.repeat_interleave(3, 0)) and torch.equal(attacked.pooled, pooled)
