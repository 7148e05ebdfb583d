"""Attacks on constructed cases whose answer is known, and in small on the embedded model."""

import numpy as np
import pytest
import torch

from memsub import attacks
from memsub.denoiser import as_denoiser
from memsub.generation import generate

RNG = np.random.default_rng(0)


def test_tiled_distance_is_that_of_the_most_different_tile():
    a = np.zeros((1, 32, 32, 3), np.uint8)
    b = a.copy()
    b[0, 8:16, 24:32] = 51  # one of 16 tiles, 0.2 of the range
    assert attacks.tiled_distance(a, b)[0, 0] == pytest.approx(0.2, abs=1e-6)
    b[0, 0:4, 0:8] = 255  # half of another tile: root mean square 1 / sqrt(2)
    assert attacks.tiled_distance(a, b)[0, 0] == pytest.approx(0.5**0.5, abs=1e-6)
    with pytest.raises(ValueError, match="cannot be cut into 5 x 5 tiles"):
        attacks.tiled_distance(a, tiles=5)


def test_a_planted_clique_is_found():
    distances = np.full((8, 8), 1.0)
    clique = [1, 3, 4, 6]
    distances[np.ix_(clique, clique)] = 0.05
    distances[0, 1] = distances[1, 0] = distances[0, 3] = distances[3, 0] = 0.05  # near to some, not to all
    assert attacks.largest_clique(distances, 0.1) == clique
    assert len(attacks.largest_clique(np.ones((3, 3)), 0.1)) == 1


def planted(folder, duplicates: int, others: int, picture: np.ndarray, caption: int) -> None:
    for seed in range(duplicates + others):
        noise = RNG.integers(-6, 7, picture.shape) if seed < duplicates else RNG.integers(-255, 256, picture.shape)
        image = np.clip(picture.astype(int) + noise, 0, 255).astype(np.uint8)
        attacks.save_image(image, attacks.image_path(folder, caption, seed))


def test_planted_duplicates_are_claimed_and_checked(tmp_path, metrics, prompts):
    pictures = prompts.images("verbatim")[:3]
    never = prompts.images("heldout")[:1]
    planted(tmp_path, 8, 4, pictures[0], 0)  # enough duplicates of a training image
    planted(tmp_path, 3, 9, pictures[1], 1)  # too few
    planted(tmp_path, 12, 0, never[0], 2)  # duplicates of something that is no training image
    attacks.save_json({"captions": ["a", "b", "c"], "images": 12}, tmp_path / "manifest.json")
    found = attacks.extract(tmp_path, threshold=0.1, clique=6)
    assert found["claimed"].tolist() == [True, False, True]
    assert found["size"].tolist() == [8, 3, 12]
    checked = attacks.check_extraction(found, tmp_path, metrics.copy, metrics.copy.features(pictures))
    assert checked["extracted"].tolist() == [True, False, False]
    assert checked["nearest"][0] == 0
    attacks.image_path(tmp_path, 1, 3).unlink()
    with pytest.raises(FileNotFoundError, match="call `sample_to_folder` again"):
        attacks.extract(tmp_path)


def test_sampling_resumes_and_refuses_a_folder_of_something_else(tmp_path, pipe, prompts, monkeypatch):
    captions, options = prompts.memorized[:2], {"images": 3, "steps": 2, "batch_size": 4, "progress": False}
    attacks.sample_to_folder(pipe, captions, tmp_path, **options)
    files = sorted(tmp_path.rglob("*.png"))
    assert len(files) == 6
    before = files[4].read_bytes()
    files[4].unlink()
    asked = []
    monkeypatch.setattr(attacks, "generate", lambda p, c, **k: asked.append(c) or generate(p, c, **k))
    attacks.sample_to_folder(pipe, captions, tmp_path, **options)
    assert asked == [[captions[1]]]
    assert files[4].read_bytes() == before
    with pytest.raises(ValueError, match="other captions"):
        attacks.sample_to_folder(pipe, prompts.memorized[2:4], tmp_path, **options)
    with pytest.raises(ValueError, match="no captions"):
        attacks.sample_to_folder(pipe, [], tmp_path)


def test_the_embedding_attack_brings_a_training_image_back_from_its_own_prompt(pipe, prompts, metrics):
    images = prompts.images("verbatim")[:3]
    start = as_denoiser(pipe).embed(prompts.memorized[:3])
    found = attacks.embedding_attack(pipe, images, start, iterations=4, noises=2, progress=False)
    assert found.shape == start.shape
    assert not torch.equal(found, start)
    sampled = generate(pipe, found, seeds=7, guidance_scale=3.0, progress=False)
    assert metrics.copy.similarity(sampled, images).mean() > 0.7
    assert all(p.grad is None for p in pipe.unet.parameters())
    with pytest.raises(ValueError, match="3 embeddings to start from for 2 images"):
        attacks.embedding_attack(pipe, images[:2], start)
