"""What must be no verdict: numbers that are not finite, lists of other lengths, floats for bytes, marked captions."""

import copy
import threading
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import memsub
from memsub.io.files import load_tensors, save_artifact
from memsub.measure.exact import exact_p
from memsub.measure.membership import membership_p
from memsub.measure.metric import CopyMetric
from memsub.models import as_denoiser
from memsub.prompts import read_prompts
from memsub.testbed.world import WORLD
from memsub_extra.attacks.embedding import embedding_attack
from memsub_extra.attacks.extraction import sample_to_folder
from memsub_extra.mitigations import optimized_embeddings
from memsub_extra.mitigations.detection import step_scores
from memsub_extra.prompt_lists.images import match_images
from memsub_extra.unlearning.pairs import Pairs
from micro import CAPTIONS, micro_pipeline
from toys import killed_at


@pytest.fixture(scope="module")
def pairs(prompts):
    return prompts.memorized[:3], prompts.images("verbatim", 0, 3)


@pytest.fixture
def broken():
    """A pipeline with a NaN in its network, as an overflow in float16 may leave one."""
    pipe = micro_pipeline()
    next(pipe.unet.parameters()).data.view(-1)[0] = torch.nan
    return pipe


QUICK = {"alternatives": 3, "steps": 1, "progress": False}


@pytest.mark.parametrize(
    "judge",
    [
        lambda pipe, captions, images: membership_p(pipe, captions, images, WORLD, **QUICK),
        lambda pipe, captions, images: step_scores(pipe, captions, steps=2),
        lambda pipe, captions, images: optimized_embeddings(pipe, captions, target=1.0, steps=2),
        lambda pipe, captions, images: embedding_attack(pipe, images, captions, iterations=1, progress=False),
    ],
    ids=["membership", "detection", "Wen et al.", "attack"],
)
def test_a_network_that_gives_nan_has_no_verdict(judge, broken, pairs):
    with pytest.raises(FloatingPointError, match="is not finite"):
        judge(broken, *pairs)


def test_features_that_are_nan_have_no_verdict(pairs):
    captions, images = pairs
    with pytest.raises(FloatingPointError, match="not finite"):
        exact_p(images, captions, images, WORLD, features=lambda x: np.full((len(x), 4), np.nan, np.float32))
    with pytest.raises(FloatingPointError, match="not finite"):
        CopyMetric(lambda x: torch.full((len(x), 4), torch.nan), 0.5).similarity(images, images)
    with pytest.raises(ValueError, match="unit length, for cosines; two gave 4"):
        CopyMetric(lambda x: torch.full((len(x), 4), 2.0), 0.5, "two").similarity(images, images)


@pytest.mark.parametrize("name", ["steps", "noises", "alternatives"])
def test_a_test_of_nothing_is_refused(name, micro, pairs):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1; got 0"):
        membership_p(micro, *pairs, WORLD, **QUICK | {name: 0})


def test_the_exact_test_checks_what_it_compares(pairs):
    captions, images = pairs
    with pytest.raises(ValueError, match="3 images need as many prompts and references; got 2 and 3"):
        exact_p(images, captions[:2], images, WORLD)
    with pytest.raises(ValueError, match="got 3 and 1"):
        exact_p(images, captions, images[:1], WORLD)
    larger = images.repeat(2, 1).repeat(2, 2)
    with pytest.raises(ValueError, match="64 x 64 and 32 x 32 pixels cannot be compared"):
        exact_p(larger, captions, images, WORLD)
    with pytest.raises(ValueError, match="64 x 64 and 32 x 32"):  # than the alternatives
        exact_p(larger, captions, larger, WORLD)
    with pytest.raises(ValueError, match=r"uint8 array of shape .* got uint8 \(32, 32, 3\)"):
        exact_p(images, captions, list(images), WORLD)


def test_images_from_0_to_1_are_not_read_as_black(micro, metrics, pairs):
    captions, images = pairs
    floats = images / 255
    for work in (
        lambda: exact_p(floats, captions, images, WORLD),
        lambda: exact_p(images, captions, floats, WORLD),
        lambda: membership_p(micro, captions, floats, WORLD, **QUICK),
        lambda: embedding_attack(micro, floats, captions, iterations=1),
        lambda: as_denoiser(micro).encode(floats),
        lambda: metrics.copy.similarity(images, floats),
        lambda: Pairs(captions, floats),
    ):
        with pytest.raises(ValueError, match="must be a uint8 array"):
            work()


def test_alternatives_from_0_to_1_are_refused(pairs):
    class Floats:
        name = "floats"

        def content(self, prompt):
            return prompt

        def alternatives(self, contents, seed=0):
            yield from (np.random.default_rng(0).random((255, 32, 32, 3)) for _ in contents)

    captions, images = pairs
    with pytest.raises(ValueError, match="alternatives of floats must be a uint8 array"):
        exact_p(images, captions, images, Floats())


# --- lists ------------------------------------------------------------------------------------------------------------


def typed(path, *kinds):
    pd.DataFrame({"caption": [f"caption {i}" for i in range(len(kinds))], "type": kinds}).to_csv(path, index=False)
    return path


def test_what_a_list_marks_decides_by_what_the_list_is_of(tmp_path):
    mixed, ordinary = typed(tmp_path / "mixed.csv", "N", "VM", "N"), typed(tmp_path / "ordinary.csv", "N", "N")
    with pytest.warns(UserWarning, match=r"2 captions marked as not memorized \(type N\) are omitted"):
        assert read_prompts(mixed)["prompt"].tolist() == ["caption 1"]
    with pytest.raises(ValueError, match="marks 1 of 3 captions as memorized, such as 'caption 1'"):
        read_prompts(mixed, "ordinary")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_prompts(ordinary, "ordinary")) == 2 and len(read_prompts(mixed, "any")) == 3
    with pytest.warns(UserWarning, match="an unknown type, which is ignored"):
        assert len(read_prompts(typed(tmp_path / "photos.csv", "photo", "N"), "ordinary")) == 2
    (tmp_path / "memorized.txt").write_text("a leaked caption\n")
    listed = memsub.load_prompts({"memorized": tmp_path / "memorized.txt", "ordinary": ordinary})
    assert listed.ordinary == ["caption 0", "caption 1"]


@pytest.mark.parametrize(
    "given",
    [{}, {"memorised": "a.txt"}, {"memorized": ["a caption"]}, pd.DataFrame({"prompt": ["a"]}), "a caption " * 40],
    ids=["nothing", "misspelt", "captions", "a table", "a caption"],
)
def test_prompts_are_a_name_or_files_by_kind(given):
    with pytest.raises(ValueError, match="expected; got"):
        memsub.load_prompts(given)


def test_a_list_in_a_file_has_no_images(tmp_path):
    (tmp_path / "a.tsv").write_text("caption\na cat, red\n")
    prompts = memsub.load_prompts(tmp_path / "a.tsv")
    assert prompts.memorized == ["a cat, red"]
    with pytest.raises(ValueError, match="has no images"):
        prompts.images("memorized")


def test_a_caption_is_no_list_of_letters(micro, tmp_path):
    for work in (
        lambda: step_scores(micro, "a cat", steps=2),
        lambda: optimized_embeddings(micro, "a cat", target=1.0, steps=2),
        lambda: sample_to_folder(micro, "a cat", tmp_path / "x", images=1, steps=2),
    ):
        with pytest.raises(ValueError, match="must be a list of strings; got the string 'a cat'"):
            work()
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="half a character"):
        memsub.generate(micro, ["a\ud83d"], steps=2)


def test_images_that_are_not_read_are_noted_beside_those_that_are(tmp_path, pairs):
    from PIL import Image

    for name, form in (("1/0.png", "PNG"), ("2/0.jfif", "JPEG"), ("2/1.avif", "PNG")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pairs[1][0]).save(tmp_path / name, form)
    matched = match_images(pd.DataFrame({"prompt": ["a", "b"]}), tmp_path)
    assert [len(files) for files in matched.files.values()] == [1, 1]
    assert any("1 images are of a kind that is not read, save them as PNG: 2/1.avif" in note for note in matched.notes)


# --- pipelines --------------------------------------------------------------------------------------------------------

CAPTURE = {"steps": 4, "batch_size": 2, "progress": False}


def changed(pipe, how):
    if how == "text encoder":
        for weight in pipe.text_encoder.parameters():
            weight.data.mul_(1.5)
    else:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    return pipe


@pytest.mark.parametrize("how", ["text encoder", "sampler"])
def test_statistics_belong_to_text_encoder_and_sampler_too(how, monkeypatch, tmp_path):
    import memsub.activations as activations

    monkeypatch.setattr(activations, "_add_batch", killed_at(2, activations._add_batch))
    with pytest.raises(KeyboardInterrupt):
        memsub.capture(micro_pipeline(), CAPTIONS, checkpoint=tmp_path / "c", **CAPTURE)
    monkeypatch.undo()
    pipe = changed(micro_pipeline(), how)
    with pytest.raises(ValueError, match="the checkpoint of another capture"):
        memsub.capture(pipe, CAPTIONS, checkpoint=tmp_path / "c", **CAPTURE)
    stats, null = memsub.capture(pipe, CAPTIONS, **CAPTURE), memsub.capture(micro_pipeline(), [""], **CAPTURE)
    with pytest.raises(ValueError, match="made differently: text encoder and sampler"):
        memsub.locate(pipe, stats, null, sparsity=0.1)


def test_a_checkpoint_that_cannot_be_written_is_an_error_before_sampling(micro, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(type(as_denoiser(micro)), "sample", lambda *given, **options: pytest.fail("sampled"))
    with pytest.raises(OSError, match="could not be written"):
        memsub.capture(micro, CAPTIONS, checkpoint=tmp_path / "file" / "c", **CAPTURE)


def test_threads_share_a_pipeline():
    pipe = micro_pipeline()
    own, steps = pipe.scheduler, (5, 9, 14)
    alone = [memsub.generate(pipe, CAPTIONS[:1], seeds=i, steps=n, progress=False) for i, n in enumerate(steps)]
    sums = memsub.capture(pipe, CAPTIONS[:2], **CAPTURE).sums
    together, captured = {}, {}

    def work(i):
        captured[i] = memsub.capture(pipe, CAPTIONS[:2], **CAPTURE).sums
        together[i] = memsub.generate(pipe, CAPTIONS[:1], seeds=i, steps=steps[i], progress=False)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [np.array_equal(together[i], alone[i]) for i in range(3)] == [True] * 3
    assert all(torch.allclose(captured[i][layer], sums[layer], rtol=1e-4) for i in range(3) for layer in sums)
    assert pipe.scheduler is own


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_what_takes_gradients_takes_them_itself(off, micro, pairs):
    captions, images = pairs
    start = as_denoiser(micro).embed(captions).embeddings
    with off():
        moved = optimized_embeddings(micro, captions, target=0.0, steps=2, iterations=2)
        attacked = embedding_attack(micro, images, captions, iterations=1, noises=1, progress=False)
    assert not torch.equal(moved.embeddings, start) and not torch.equal(attacked.embeddings, start)


def test_a_device_or_dtype_that_is_none_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="there is no device 'gpu' here"):
        memsub.load_pipeline("tiny", device="gpu")
    with pytest.raises(ValueError, match=r"must be one of torch, such as torch\.float16"):
        memsub.load_pipeline("tiny", dtype=np.float16)
    with pytest.raises(FileNotFoundError, match="no folder of a CLIP at /nowhere"):
        memsub.load_metrics("tiny", prompt="/nowhere")


def test_statistics_are_statistics(micro):
    stats = memsub.capture(micro, CAPTIONS, **CAPTURE)
    for wrong in (micro, "null.safetensors"):
        with pytest.raises(ValueError, match=f"statistics expected.* got a {type(wrong).__name__}"):
            memsub.locate(micro, stats, wrong)
    with pytest.raises(ValueError, match=r"got 2 and '0\.5'"):
        memsub.locate(micro, stats, memsub.capture(micro, [""], **CAPTURE)).union(2, threshold="0.5")
    with pytest.raises(ValueError, match="guidance_scale must be a finite number; got None"):
        memsub.capture(micro, CAPTIONS, guidance_scale=None)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_chance_is_the_similarity_with_another_caption(metrics, pairs):
    captions, images = [pairs[0][0], pairs[0][0], pairs[0][1]], pairs[1]
    scored = memsub.score(lambda prompts, seeds: images, metrics, captions)
    assert (scored["chance"] < scored["prompt_similarity"])[0], "that of its own caption would be no floor"
    scored = memsub.score(lambda prompts, seeds: images[:2], metrics, captions[:2])
    assert scored["chance"].isna().all(), "there is no other caption"


def test_scores_of_something_else_are_refused(metrics, pairs):
    captions, images = pairs
    with pytest.raises(ValueError, match="1 images were sampled for 3 captions"):
        memsub.score(lambda prompts, seeds: images[:1], metrics, captions)
    with pytest.raises(ValueError, match=r"such as range\(3\); got 3"):
        memsub.score(lambda prompts, seeds: images, metrics, captions, seeds=3)
    scored = memsub.score(lambda prompts, seeds: images, metrics, captions)
    with pytest.raises(ValueError, match="without training images"):
        memsub.summary(scored, scored)
    named = copy.copy(metrics)
    named.more = {"prompt": lambda *given: np.zeros(3)}
    with pytest.raises(ValueError, match="named like the column 'prompt'"):
        memsub.score(lambda prompts, seeds: images, named, captions)
    with pytest.raises(ValueError, match="0 of 0 has no interval"):
        memsub.interval(0, 0)
    with pytest.raises(ValueError, match=r"features \(n, dim\) of one metric expected"):
        memsub.fid(images, images)


def test_home_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_artifact({"x": torch.ones(1)}, "~/there.safetensors", "Edit", {"of": np.int64(3)})
    assert (tmp_path / "there.safetensors").is_file()
    assert load_tensors("~/there.safetensors", "Edit")[1]["of"] == 3
    with pytest.raises(ValueError, match="text, numbers and lists of them can be saved; got a PosixPath"):
        save_artifact({}, tmp_path / "x", "Edit", {"of": tmp_path})
