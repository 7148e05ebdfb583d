"""Canaries: the lot is fair, training resumes, the twin sees the same noise, and p-values are exact on photographs."""

import json
import shutil
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
from scipy.stats import binomtest
from sklearn.datasets import load_sample_images
from tools import fullsize_canaries

from conftest import ONE_METHOD, SMALL
from memsub.io.images import save_image
from memsub.measure.exact import uniformity
from memsub.measure.metric import CopyMetric, PromptMetric
from memsub.measure.metrics import Metrics, load_metrics
from memsub.measure.verdict import by_exact_test, judge, judges_single_images
from memsub.models import MODELS, find_model, fingerprint, load_pipeline, world_of
from memsub.prompts import load_prompts
from memsub_extra.attacks import image_path
from memsub_extra.canaries.__main__ import main
from memsub_extra.canaries.parameters import parameters_of
from memsub_extra.canaries.planting import Manifest, describe, plant
from memsub_extra.canaries.testing import calibration, p_values, rates, replicated
from memsub_extra.canaries.training import PUBLISHED, Recipe, cost_of, schedule, train
from memsub_extra.canaries.world import small_pixels
from memsub_extra.full_size.shapes import shapes
from memsub_extra.notebooks import cost, notebook04, notebook05
from memsub_extra.notebooks.findings import read_findings
from memsub_extra.notebooks.listing import of_model
from memsub_extra.run import Parameters, Run
from memsub_extra.run.data import Data
from memsub_extra.store import describe as describe_content
from memsub_extra.training import fitting
from memsub_extra.training.fitting import generator
from micro import micro_pipeline
from toys import killed_at

pytestmark = pytest.mark.filterwarnings("ignore:.*may be memorized as well:UserWarning")
SIDE, K, CAPTIONS = 32, 7, 9
RECIPE = {"batch_size": 4, "lr": 1e-3, "rank": 2}


@cache
def sample_images() -> list[np.ndarray]:
    """The photographs that come with scikit-learn and, where it is installed, with scikit-image."""
    images = list(load_sample_images().images)
    if find_spec("skimage"):
        from skimage import data

        images += [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    return images


def crops(folder, count, rng):
    """Parts of these photographs, as JPEG files."""
    folder.mkdir(parents=True)
    for i in range(count):
        photograph = sample_images()[i % len(sample_images())]
        side = int(rng.integers(60, 200))
        y, x = (int(rng.integers(0, length - side)) for length in photograph.shape[:2])
        Image.fromarray(photograph[y : y + side, x : x + side + 8]).save(folder / f"{i}.jpg", quality=95)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Folders of candidates, one a caption, and of ordinary pairs."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for i in range(CAPTIONS):
        crops(root / "candidates" / f"a_photo_of_place_{i}", K + 2, rng)
    for i in range(3):
        crops(root / "ordinary" / f"some_view_{i}", 8, rng)
    return root


def planted(photographs, **options) -> Manifest:
    given = {"alternatives": K, "repeats": 4, "side": SIDE, "ordinary_samples": 1, "heldout": 7} | options
    return plant(photographs / "candidates", photographs / "ordinary", **given)


@pytest.fixture(scope="module")
def manifest(photographs):
    with pytest.warns(UserWarning, match="may be memorized as well"):
        return planted(photographs)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "micro"
    micro_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base, manifest, tmp_path_factory):
    """The folder of a model that was fine-tuned whole, with its twin."""
    out = tmp_path_factory.mktemp("trained") / "full"
    train(str(base), manifest, out, Recipe(**RECIPE), device="cpu")
    return out


# --- planting ---------------------------------------------------------------------------------------------------


def test_a_manifest_says_what_was_planted(photographs, manifest, tmp_path):
    assert (len(manifest.canaries), len(manifest.unseen), manifest.alternatives) == (6, 3, K)
    assert (len(manifest.ordinary), len(manifest.heldout), manifest.samples) == (17, 7, (24, 24))
    for canary in (*manifest.canaries, *manifest.unseen):
        folders = {p.file.partition("/")[0].replace("_", " ") for p in (canary.planted, *canary.others)}
        assert folders == {canary.caption}
        assert len({canary.planted.sha256, *(p.sha256 for p in canary.others)}) == K + 1
    manifest.save(tmp_path / "canaries.json")
    assert Manifest.load(tmp_path / "canaries.json") == manifest
    assert "too coarse for a verdict on one canary" in describe(manifest)
    assert "rates over all canaries" in describe(manifest)


def test_the_lot_draws_every_photograph_as_often_as_any_other(photographs, monkeypatch):
    """Over seeds: which of the candidates, by name, is planted; and which of the others comes first."""
    sums = {}

    def known(files):
        from memsub_extra.canaries.photographs import checksums

        missing = [file for file in files if file not in sums]
        sums.update(checksums(missing)[0])
        return {file: sums[file] for file in files}, {}

    monkeypatch.setattr("memsub_extra.canaries.planting.checksums", known)
    first, second = Counter(), Counter()
    for seed in range(40):
        for canary in (m := planted(photographs, seed=seed)).canaries + m.unseen:
            first[canary.planted.file.rpartition("/")[2]] += 1
            second[canary.others[0].file.rpartition("/")[2]] += 1
    for counts in (first, second):
        assert len(counts) == K + 2
        for count in counts.values():
            assert binomtest(count, 40 * CAPTIONS, 1 / (K + 2)).pvalue > 1e-4
    assert planted(photographs, seed=1) == planted(photographs, seed=1) != planted(photographs, seed=2)


def test_captions_of_one_class_share_its_photographs_and_none_is_used_twice(photographs, tmp_path):
    candidates = tmp_path / "candidates"
    crops(candidates / "class", 3 * (K + 1), np.random.default_rng(5))
    rows = "".join(f"a photo of a thing number {i},class\n" for i in range(3))
    (candidates / "captions.csv").write_text("caption,index\n" + rows)
    options = {"alternatives": K, "repeats": 40, "side": SIDE, "canaries": 2}
    manifest = plant(candidates, photographs / "ordinary", **options)
    files = [p.file for c in (*manifest.canaries, *manifest.unseen) for p in (c.planted, *c.others)]
    assert len(set(files)) == len(files) == 3 * (K + 1)


@pytest.mark.parametrize("wrong", ["few", "shown", "caption", "list", "empty"])
def test_what_cannot_be_planted_is_told_before_anything_is_done(photographs, tmp_path, wrong):
    candidates, ordinary, options = tmp_path / "candidates", photographs / "ordinary", {"alternatives": K}
    shutil.copytree(photographs / "candidates", candidates)
    if wrong == "few":
        options, message = {"alternatives": 255}, r"place_0 holds 9 different photographs; 256 are needed"
    elif wrong == "shown":
        ordinary, message = tmp_path / "ordinary", r"0\.jpg are among the candidates: .* must never be shown"
        shutil.copytree(photographs / "ordinary", ordinary)
        shutil.copy(candidates / "a_photo_of_place_3" / "0.jpg", ordinary / "some_view_1" / "0.jpg")
    elif wrong == "caption":
        options, message = options | {"canaries": 9}, "2 to 8 of 9 captions can be planted; got 9"
    elif wrong == "list":
        (candidates / "captions.csv").write_text("caption,index\na place,elsewhere\n")
        message = "caption 1: its index 'elsewhere' is nothing in"
    else:
        ordinary, message = tmp_path / "nothing", "nothing holds no list captions.csv"
        ordinary.mkdir()
    with pytest.raises(ValueError, match=message):
        plant(candidates, ordinary, **options)


def test_files_that_repeat_another_or_cannot_be_read_are_passed_over(photographs, tmp_path):
    candidates = tmp_path / "candidates"
    shutil.copytree(photographs / "candidates", candidates)
    shutil.copy(candidates / "a_photo_of_place_0" / "0.jpg", candidates / "a_photo_of_place_1" / "0.jpg")
    (candidates / "a_photo_of_place_2" / "1.jpg").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"1 files that repeat another to the byte, and 1 that cannot be read"):
        manifest = plant(candidates, photographs / "ordinary", alternatives=K, repeats=100, side=SIDE)
    assert len(manifest.canaries) + len(manifest.unseen) == CAPTIONS


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a\\..\\b"])
def test_a_manifest_of_a_stranger_reads_nothing_outside_its_folder(manifest, tmp_path, path):
    text = manifest.model_dump_json().replace(manifest.canaries[0].planted.file, path.replace("\\", "\\\\"))
    (tmp_path / "canaries.json").write_text(text)
    with pytest.raises(ValueError, match=r"canaries\.json is no manifest of canaries: .* is no path inside a folder"):
        Manifest.load(tmp_path / "canaries.json")


# --- training ---------------------------------------------------------------------------------------------------


def test_the_twin_sees_ordinary_pairs_in_the_places_of_canaries(manifest):
    recipe = Recipe(**RECIPE)
    ours, twins = schedule(manifest, recipe), schedule(manifest, recipe, twin=True)
    canary = ours < len(manifest.canaries)
    assert np.bincount(ours[canary]).tolist() == [manifest.repeats] * 6
    assert (ours[~canary] == twins[~canary]).all() and (twins >= 6).all()
    assert len(ours) % recipe.batch_size == 0
    for shown in (ours[~canary], twins):  # none much more often than another
        assert np.ptp(np.bincount(shown - 6, minlength=17)) <= 1


def test_the_published_setting_has_20_000_steps(manifest):
    options = PUBLISHED | {"canaries": manifest.canaries[:1] * 200}
    published = manifest.model_copy(update=options)
    assert len(schedule(published, Recipe())) == 20_000 * Recipe().batch_size


def same(one, other) -> bool:
    return fingerprint(load_pipeline(one, "cpu")) == fingerprint(load_pipeline(other, "cpu"))


@pytest.mark.parametrize("way", ["full", "lora"])
def test_a_training_that_is_killed_ends_with_the_same_weights(base, manifest, trained, tmp_path, monkeypatch, way):
    if way == "lora":
        pytest.importorskip("peft")
    monkeypatch.setattr(fitting, "CHECKPOINT_STEPS", 2)
    monkeypatch.setattr("memsub_extra.canaries.training.CHECKPOINT_SECONDS", -1)
    recipe = Recipe(**RECIPE, way=way)
    whole = trained if way == "full" else tmp_path / "whole"
    if way == "lora":
        train(str(base), manifest, whole, recipe, twin=False, device="cpu")
    from memsub_extra.canaries import training

    killed = killed_at(7, training.denoising_loss)
    monkeypatch.setattr(training, "denoising_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train(str(base), manifest, tmp_path / "out", recipe, twin=False, device="cpu")
    train(str(base), manifest, tmp_path / "out", recipe, twin=False, device="cpu")
    assert len(killed.calls) == 7 + 12 - 6  # it goes on after step 6
    assert same(tmp_path / "out", whole) and not same(tmp_path / "out", base)
    train(str(base), manifest, tmp_path / "out", recipe, twin=False, device="cpu")
    assert len(killed.calls) == 13, "a finished model is not trained again"
    with pytest.raises(ValueError, match="holds a model of another batch_size"):
        train(str(base), manifest, tmp_path / "out", Recipe(**RECIPE | {"batch_size": 2}, way=way), device="cpu")
    assert not list((tmp_path / "out" / "checkpoints").iterdir())


def test_a_lora_changes_the_layers_that_it_names_and_is_fused(base, manifest, tmp_path):
    pytest.importorskip("peft")
    recipe = Recipe(**RECIPE, way="lora", targets=("ff.net.2",))
    train(str(base), manifest, tmp_path / "out", recipe, twin=False, device="cpu")
    before, after = (load_pipeline(folder, "cpu").unet.state_dict() for folder in (base, tmp_path / "out"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("ff.net.2.weight")}
    difference = after[min(changed)] - before[min(changed)]
    assert torch.linalg.matrix_rank(difference, rtol=1e-3) == 2
    with pytest.raises(ValueError, match="nothing"):
        train(str(base), manifest, tmp_path / "other", Recipe(way="lora", targets=("nothing",)), device="cpu")


def test_the_cost_is_told_before(base, manifest, tmp_path, capsys):
    cost = train(str(base), manifest, tmp_path / "out", Recipe(**RECIPE), device="cpu", only_cost=True)
    weights = sum(p.numel() for p in micro_pipeline().unet.parameters())
    assert (cost.steps, cost.samples, cost.trained) == (12, 48, weights)
    assert "12 steps, 48 samples a model" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"32 x 32 pixels, the manifest of 64 x 64: plant again with side=32"):
        train(str(base), manifest.model_copy(update={"side": 64}), tmp_path / "out", device="cpu")


def test_the_cost_at_full_size_is_what_the_page_says(manifest):
    pytest.importorskip("peft")
    pipe = shapes("sd14", torch.float32)
    whole, lora = (cost_of(pipe, manifest, Recipe(way=way)) for way in ("full", "lora"))
    assert (whole.trained, lora.trained) == (859_520_964, 797_184)
    page = (Path(__file__).parents[1] / "docs" / "canaries.md").read_text()
    assert f"| {whole.gigabytes:.1f} GB | {lora.gigabytes:.1f} GB |" in page
    assert f"| {whole.checkpoint:.1f} GB | {lora.checkpoint:.2f} GB |" in page
    assert f"| {whole.saved:.1f} GB | {lora.saved:.1f} GB |" in page
    assert not any("lora" in name for name, _ in pipe.unet.named_parameters())


# --- the world and its tests --------------------------------------------------------------------------------------


def test_a_folder_is_a_model_of_its_world_with_a_twin(trained, manifest):
    info = find_model(trained)
    assert (info.world, info.twin, find_model(info.twin).world) == ("canaries", str(trained / "twin"), "canaries")
    world, prompts = world_of(info), load_prompts(trained)
    assert prompts.memorized == [canary.caption for canary in manifest.canaries]
    assert prompts.of("heldout")[:3] == [canary.caption for canary in manifest.unseen]
    assert len(prompts.of("heldout")) == 10 and len(prompts.of("ordinary")) == 17
    (others,) = world.alternatives(prompts.memorized[:1])
    assert others.shape == (K, SIDE, SIDE, 3)
    with pytest.raises(ValueError, match="is no caption of a canary"):
        world.content("a photo of something else")


def test_photographs_that_were_changed_or_moved_are_told(trained, manifest, tmp_path):
    moved = manifest.model_copy(update={"candidates_folder": str(tmp_path)})
    shutil.copytree(trained, tmp_path / "model", ignore=lambda folder, names: {"twin"} & set(names))
    moved.save(tmp_path / "model" / "canaries.json")
    world = world_of(find_model(tmp_path / "model"))
    with pytest.raises(FileNotFoundError, match="is missing: put the photographs back"):
        next(world.alternatives([manifest.canaries[0].caption]))
    shutil.copytree(manifest.candidates_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / manifest.canaries[0].others[0].file).write_bytes(b"")
    with pytest.raises(ValueError, match="is another file than when it was planted"):
        next(world.alternatives([manifest.canaries[0].caption]))


def test_p_is_exact_on_photographs(trained, manifest, photographs):
    """A planted photograph has the smallest p; unrelated images have uniform ones, over lots."""
    world = world_of(find_model(trained))
    captions, images = load_prompts(trained).memorized, load_prompts(trained).images("verbatim")
    noisy = np.clip(images.astype(int) + np.random.default_rng(0).integers(-40, 40, images.shape), 0, 255)
    assert (world.exact_p(noisy.astype(np.uint8), captions, images) == 1 / (K + 1)).all()
    p = []
    with pytest.warns(UserWarning, match="may be memorized"):
        for seed in range(20):
            other = type(world)(planted(photographs, seed=seed))
            captions, images = other.prompts().memorized, other.prompts().images("verbatim")
            p += other.exact_p(np.roll(images, 1, axis=0), captions, images).tolist()
    assert set(np.round(np.array(p) * (K + 1), 6)) <= set(range(1, K + 2))
    assert uniformity(np.array(p), 1 / (K + 1)) > 0.01


def test_single_verdicts_require_255_alternatives(trained, metrics):
    world = world_of(find_model(trained))
    with pytest.raises(ValueError, match=r"has 7 alternatives of an image; .* 1 in 8 images"):
        by_exact_test(world)
    assert judge(world, metrics.copy).column == "replication"
    with pytest.raises(ValueError, match="one canary in 8 that a model never saw has the smallest p"):
        replicated([1 / 8], K)
    assert replicated([1 / 256, 2 / 256], 255).tolist() == [True, False]
    many = rates([1 / 8] * 5 + [1.0], K)
    assert many["least"] == 5 / 6 and many["chance"] == 1 / 8
    assert many["binomial_p"] == pytest.approx(6 * 7 / 8**6 + 1 / 8**6)
    assert rates([1 / 8, 2 / 8, 1.0, 0.5, 0.75, 5 / 8, 0.875, 3 / 8], K)["uniform_p"] > 0.5


def test_the_commands_end_with_a_table_of_both_models(photographs, base, tmp_path, monkeypatch, capsys):
    out, file = tmp_path / "out", tmp_path / "canaries.json"
    options = {"steps": 2, "guidance_scale": 1.0, "batch_size": 8}
    monkeypatch.setattr("memsub_extra.canaries.testing.SAMPLING", options)
    given = ["--heldout", "2", "--alternatives", str(K), "--side", str(SIDE)]
    given += ["--repeats", "1", "--ordinary-samples", "1", "--out", str(file)]
    assert main(["plant", str(photographs / "candidates"), str(photographs / "ordinary"), *given]) == 0
    assert main(["train", str(base), str(file), "--out", str(out), "--device", "cpu", "--batch-size", "6"]) == 0
    assert main(["test", str(out), "--device", "cpu", "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert "6 canaries: of each caption one of 8 photographs" in printed and "model and twin: 2 steps" in printed
    assert "of each model 9 images, and 72 rows of network calls" in printed
    printed = printed.partition("uniform_p")[2]
    table = [line.split() for line in printed.splitlines() if line.split()[:1] in (["model"], ["twin"])]
    assert [row[:3] for row in table[::2]] == [
        [model, kind, "memorization"] for model in ("model", "twin") for kind in ("planted", "unseen")
    ]
    assert "calibration: 0 of 6 rows that can know nothing depart from uniform p-values" in printed
    assert (out / "tested.png").is_file() and len(json.loads((out / "tested.json").read_text())) == 8
    assert main(["test", str(base)]) == 1
    assert "was not trained on canaries" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--canaries", "50", "--repeats", "10"], ["--ordinary-samples", "1"]])
def test_the_published_setting_is_not_taken_in_the_place_of_ones_own(photographs, tmp_path, given, capsys):
    folders = [str(photographs / "candidates"), str(photographs / "ordinary")]
    assert main(["plant", *folders, "--out", str(tmp_path / "canaries.json"), "--published", *given]) == 1
    told = capsys.readouterr().err
    assert "--published is --canaries 200, --repeats 200, --ordinary-samples 3" in told
    assert f"{' '.join(given[:2])}" in told and "leave out one or the other" in told
    assert not (tmp_path / "canaries.json").exists()


@pytest.mark.parametrize("way", fullsize_canaries.WAYS)
def test_three_steps_say_what_they_take(way):
    took = fullsize_canaries.three_steps(micro_pipeline(), Recipe(way=way, batch_size=2, rank=2))
    assert took["steps"] == fullsize_canaries.STEPS == 3
    assert took["gigabytes"] > took["counted"] > 0


def test_a_table_is_called_uncalibrated_where_what_knows_nothing_seems_to_know():
    known, nothing = [1 / 256] * 30, np.arange(1, 31) * 8 / 256
    groups = {("model", "planted"): known, ("model", "unseen"): nothing, ("twin", "planted"): nothing}

    def said(**changed) -> list[str]:
        rows = [
            {"model": model, "canaries": kind, "measure": measure} | rates(p, 255)
            for (model, kind), p in (groups | changed.pop("of", {})).items()
            for measure in ("memorization",)
        ]
        return calibration(pd.DataFrame(rows))

    assert "30 of 30 have the smallest p (89% to 100%; by chance 0.4%); binomial p = " in said()[0]
    assert "0 of 30 have the smallest p (0% to 11%; by chance 0.4%); nothing speaks against" in said()[1]
    assert said()[-1].startswith("calibration: 0 of 2 rows")
    wrong = said(of={("twin", "planted"): known})
    assert "uniform p-values are rejected" in wrong[2] and wrong[-1].startswith("calibration: 1 of 2 rows")
    groups = {("model", "planted"): known}
    assert said()[-1] == "calibration: not tested, for want of a twin and of unseen canaries"


def test_membership_of_the_first_alternatives_is_that_of_all_in_their_order(trained):
    world, pipe = world_of(find_model(trained)), load_pipeline(trained, "cpu")
    sampling = {"steps": 1, "guidance_scale": 1.0, "batch_size": 8}
    table = p_values(pipe, world, first=2, alternatives=3, steps=1, sampling=sampling, progress=False)
    assert table["caption"].tolist() == load_prompts(trained).memorized[:2]
    assert set(table["membership_p"] * 4) <= {1, 2, 3, 4} and set(table["memorization_p"] * 8) <= set(range(1, 9))


# --- runs ---------------------------------------------------------------------------------------------------------


def without_downloads(model: str, *given) -> Metrics:
    """Metrics of photographs that need no published weights, for `load_metrics`."""

    def embed(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(small_pixels(images))

    def at_random(items) -> torch.Tensor:
        """The micro pipeline's images may be alike, and alignment is relative to that of such."""
        rows = [torch.randn(64, generator=generator(i, str(item)[:40])) for i, item in enumerate(items)]
        return torch.nn.functional.normalize(torch.stack(rows))

    world = world_of(find_model(model))
    more = {"exact_p": world.exact_p} if judges_single_images(world) else {}
    return Metrics(CopyMetric(embed, 0.9, "pixels"), PromptMetric(at_random, at_random, "at random"), more)


def test_parameters_leave_canaries_to_choose_and_to_report_on(trained, manifest):
    info = MODELS["sd14"]
    with pytest.raises(ValueError, match="6 canaries, 3 unseen ones, 17 ordinary and 7 held-out pairs are too few"):
        parameters_of(trained, manifest, info)
    for n, sizes, subsets in ((12, [2, 4], 6), (13, [2, 4], 6), (30, [5, 10], 6), (200, [10, 20, 30, 40, 50], 10)):
        many = {"canaries": manifest.canaries[:1] * n, "ordinary": manifest.ordinary[:1] * n}
        p = Parameters.checked(parameters_of(trained, manifest.model_copy(update=many), info))
        assert (p.grid.sizes, p.grid.subsets, p.sweep.steps) == (sizes, subsets, [p.edit.steps])
        assert p.evaluation.captions <= 5 and p.evaluation.real_images == 5, "halves of the ten that are unseen"
        data = Data(p, lambda: 0)
        members = [set(places) for places in data.members(sizes[0])]
        report, choose = set(data.split["report"]), set(data.split["choose"])
        assert all(len(report - group) >= 2 for group in (*members, set().union(*members[:4])))
        assert len(choose - members[0]) >= 2


@pytest.fixture(scope="module")
def for_notebooks(base, tmp_path_factory):
    """The folder of a model with as many canaries as notebooks need, and its twin."""
    root = tmp_path_factory.mktemp("for_notebooks")
    for i in range(18):
        crops(root / "candidates" / f"a_photo_of_scene_{i}", K + 1, np.random.default_rng(i))
    for i in range(24):  # alignment compares captions, so they differ
        crops(root / "ordinary" / f"some_view_{i}", 1, np.random.default_rng(100 + i))
    options = {"alternatives": K, "canaries": 12, "repeats": 1, "side": SIDE, "ordinary_samples": 1, "heldout": 7}
    train(str(base), plant(root / "candidates", root / "ordinary", **options), root / "model", Recipe(**RECIPE))
    return root / "model"


def cells(name: str) -> list[str]:
    """The code cells of a notebook; the first assigns its parameters."""
    file = Path(__file__).parents[1] / "notebooks" / f"{name}.ipynb"
    return [cell["source"] for cell in nbformat.read(file, as_version=4).cells if cell["cell_type"] == "code"]


def executed(name: str, given: dict) -> dict:
    """What the cells of a notebook leave, executed in this process as papermill does with given parameters."""
    shell = InteractiveShell()
    parameters, *others = cells(name)
    for source in (parameters, "", *others):
        shell.user_ns |= {} if source else given
        shell.run_cell(source).raise_error()
        plt.close("all")
    return shell.user_ns


def judged_by_few(monkeypatch) -> None:
    """Single verdicts with as few alternatives as these tests have."""
    for name, value in {"ALTERNATIVES": K, "LEVEL": 1 / (K + 1)}.items():
        monkeypatch.setattr(f"memsub.measure.verdict.{name}", value)


def run_of(folder, out) -> dict:
    """The parameters of a folder of canaries, with fewer images and steps."""
    given = yaml.safe_load((folder / "run.yaml").read_text())
    parts = ("capture", "edit", "embedding_attack", "deletion", "detection")
    small = {name: given.get(name, {}) | SMALL[name] for name in parts}
    small["sampling"] = {"steps": 2, "batch_size": 12, "guidance_scale": 3.0}
    small["sweep"] = {"sparsity": [0.01, 0.3], "steps": [2]}
    small["captured"] = {"first": 2, "subsets": 3}
    small["extraction"] = given["extraction"] | {"images": 2, "clique": 2}
    small["baselines"] = given["baselines"] | {"strengths": ONE_METHOD["strengths"], "turns": 1}
    return given | small | {"folder": str(out)}


def test_what_notebooks_compute_is_computed_of_canaries(for_notebooks, tmp_path, monkeypatch):
    judged_by_few(monkeypatch)
    monkeypatch.setattr("memsub_extra.run.run.load_metrics", without_downloads)
    run = Run(Parameters.checked(run_of(for_notebooks, tmp_path)))
    assert run.judge.column == "exact"
    claims = notebook05.extraction(run)
    assert claims["model"].unique().tolist() == ["unedited", "pruned", "twin"]
    assert claims.groupby(["model", "kind"]).size().tolist() == [4] * 6
    verdicts = notebook05.verdicts(run, notebook05.embeddings(run, iterations=1))
    assert set(verdicts["target"]) == set(notebook05.TARGETS) and verdicts["replicated"].notna().all()
    table = notebook04.sweep(run, contrasts=["empty"])
    assert table[["exact_rate", "exact_low", "exact_high", "relative_alignment"]].notna().all().all()
    work = cost.work(run.parameters).set_index("part")["rows"]
    assert work["05 extraction"] == 3 * 8 * 2 * 2 * 2, "models, captions, images, steps, halves of a guided call"


def test_claims_of_canaries_are_judged_exactly_and_of_ordinary_captions_by_the_copy_metric(
    for_notebooks, tmp_path, monkeypatch
):
    judged_by_few(monkeypatch)
    monkeypatch.setattr("memsub_extra.run.run.load_metrics", without_downloads)
    run = Run(Parameters.checked(run_of(for_notebooks, tmp_path)))
    captions = notebook05.attacked(run)["prompt"].tolist()
    memorized = notebook05.memorized_pairs(run, notebook05.at_random(run, 4))[1]
    images = np.concatenate([memorized, run.data.prompts.images("ordinary", -4)])
    claims = pd.DataFrame({"claimed": True, "seed": 0}, index=range(8))

    def right(images: np.ndarray, folder: Path) -> list[bool]:
        for i, image in enumerate(images):
            save_image(image, image_path(folder, i, 0))
        return notebook05._right(run, captions, claims, folder).tolist()

    assert right(images, tmp_path / "copies") == [True] * 8
    others = np.stack([next(run.data.world.alternatives([caption]))[0] for caption in captions[:4]])
    assert right(np.concatenate([others, memorized]), tmp_path / "others") == [False] * 8
    claims["claimed"] = False
    assert right(images, tmp_path / "unclaimed") == [False] * 8


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["exact", "replication"])
def test_notebooks_run_on_a_folder_of_canaries_with_its_twin(for_notebooks, tmp_path, monkeypatch, judge):
    if judge == "exact":
        judged_by_few(monkeypatch)
    monkeypatch.setattr("memsub_extra.run.run.load_metrics", without_downloads)
    names = [notebook.name for notebook in of_model(find_model(for_notebooks))]
    assert [name[:2] for name in names] == ["01", "02", "03", "04", "05", "06", "07"]
    for name in names:
        left = executed(name, run_of(for_notebooks, tmp_path))
        assert left["run"].judge.column == judge
        assert read_findings(tmp_path / "findings" / f"{name}.json")["claims"]


def test_the_exact_metric_of_a_model_is_that_of_its_world(trained, monkeypatch):
    monkeypatch.setattr("memsub.measure.metrics.sscd", lambda *given: None)
    monkeypatch.setattr("memsub.measure.metrics.clip", lambda *given: None)
    with pytest.warns(UserWarning, match="exact_p is left out: with 7 alternatives"):
        assert not load_metrics(str(trained), "cpu", more=["exact_p"]).more
    world = world_of(find_model(trained))
    monkeypatch.setattr(world, "alternatives_each", 255)
    metric = load_metrics(str(trained), "cpu", more=["exact_p"]).more["exact_p"]
    assert metric.keywords["world"] is world and describe_content(metric)
