"""`memsub check`: what a model is, what it takes and what will fail, from headers alone."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tools import costs

from conftest import SMALL
from memsub.__main__ import main
from memsub.models import Contents
from memsub_extra.full_size.shapes import AUTOENCODER, UNETS
from memsub_extra.notebooks import check, cost
from memsub_extra.notebooks.batch import find_parameters
from memsub_extra.unlearning.price import describe, price
from single_file import save_single_file


@pytest.fixture(scope="module")
def saved(micro, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    micro.save_pretrained(folder)
    return folder


def lines(capsys) -> dict[str, str]:
    """What was printed, by what stands before the colon."""
    out = capsys.readouterr().out.splitlines()
    return {line.strip().partition(":")[0]: line.strip().partition(": ")[2] for line in out}


def test_what_a_folder_is(saved, capsys):
    assert main(["check", str(saved)]) == 0
    said = lines(capsys)
    assert said["feed-forward layers"] == "4 with 256 neurons (4 of 16 rows of 64 weights)"
    assert said["sampler"] == "DDIMScheduler"
    assert said["prediction type"] == "epsilon"
    assert said["adapters"] == "none"
    assert said["dtype"].startswith("F32 (")
    assert "will fail" not in said


def test_its_parameters_are_the_networks(saved, micro, capsys):
    main(["check", str(saved)])
    counted = dict(part.split() for part in lines(capsys)["parameters (millions)"].split(", "))
    for part in ("unet", "vae", "text_encoder"):
        assert float(counted[part]) == round(sum(p.numel() for p in getattr(micro, part).parameters()) / 1e6, 1)


def test_it_says_what_will_fail_and_its_status_says_so_too(saved, tmp_path, capsys):
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"class_embed_type": "timestep", "in_channels": 9}))
    assert main(["check", str(saved), str(folder), str(tmp_path / "nothing"), "tinny"]) == 1
    captured = capsys.readouterr()
    failing = [line.strip() for line in captured.out.splitlines() if line.strip().startswith("will fail:")]
    assert len(failing) == 4
    assert "class embeddings" in failing[0] and "9 input" in failing[1]
    assert "no folder or file" in failing[2] and "Did you mean 'tiny'" in failing[3]
    assert str(saved) + "," not in captured.err


def test_a_single_file(micro, saved, tmp_path, capsys):
    file = save_single_file(micro, tmp_path / "dreamy.safetensors")
    assert main(["check", str(file)]) == 0
    said = lines(capsys)
    assert said["feed-forward layers"].startswith("4 with 256 neurons")
    assert said["configuration and tokenizer"].startswith("asked of the hub")
    assert main(["check", str(file), "--config", str(saved), "--prediction-type", "v_prediction"]) == 0
    said = lines(capsys)
    assert said["prediction type"] == "v_prediction"
    assert "configuration and tokenizer" not in said


def test_a_lora_beside_the_weights_is_told(saved, tmp_path, capsys):
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    (folder / "pytorch_lora_weights.safetensors").touch()
    assert main(["check", str(folder)]) == 0
    assert lines(capsys)["adapters"].startswith("pytorch_lora_weights.safetensors beside it")


def test_a_model_that_is_not_here_downloads_nothing(capsys, monkeypatch):
    monkeypatch.setattr("memsub.models.hub.names_of", lambda repo: pytest.fail("the hub was asked"))
    monkeypatch.setattr(check, "parameter_file", lambda name: None)
    assert main(["check", "sd14", "owner/model"]) == 0
    told = capsys.readouterr().out
    assert "CompVis/stable-diffusion-v1-4 is on the hub, not on this machine" in told
    assert "49,920 neurons" in told
    assert "owner/model is on the hub" in told


def test_a_model_is_checked_without_torch(saved):
    code = "import sys; from memsub.__main__ import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules"
    for name in (str(saved), "tiny-twin", "tiny-other", str(saved / "unet")):
        done = subprocess.run([sys.executable, "-c", code, "check", name], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("will fail:" in done.stdout) == (name == str(saved / "unet"))


def test_memory_is_what_shapes_say():
    """Of sampling, times the measured factor: on a GPU 16 images of SD1.4 took 12.4 GB, 8 of SD2.0 14.1."""
    for name, million, batch, gigabytes in (("sd14", 1066.2, 16, 12.4), ("sd20", 1289.9, 8, 14.1)):
        contents = Contents(Path(name), kind="StableDiffusionPipeline")
        contents.configs = {
            "unet": UNETS[name],
            "vae": {k: [*v] if isinstance(v, tuple) else v for k, v in AUTOENCODER.items()},
        }

        class Tensor:
            shape = (int(million * 1e6),)

        sizes = check.memory(contents, {"all": [Tensor]}, "float16")
        assert sizes[check.BATCHES.index(batch)] == pytest.approx(gigabytes, rel=0.08)


def test_parameters_tell_the_cost_and_download_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMSUB_CACHE", str(tmp_path / "cache"))
    lists = {kind: str(tmp_path / f"{kind}.txt") for kind in ("memorized", "ordinary", "heldout")}
    for kind, file in lists.items():
        Path(file).write_text("\n".join(f"{kind} {i}" for i in range(40)))
        (tmp_path / "run" / "gt_images" / f"{len(kind)}").mkdir(parents=True, exist_ok=True)
    for number in range(1, 13):
        (tmp_path / "run" / "gt_images" / f"{number}.png").touch()
    monkeypatch.setattr(cost, "ESTIMATES", {"memory": lambda p: pytest.fail("takes a minute, and was not asked for")})
    parameters = tmp_path / "few.yaml"
    few = SMALL | {
        "folder": str(tmp_path / "run"),
        "capture": {"steps": 50},
        "sampling": {"batch_size": 60},
        "grid": SMALL["grid"],
    }
    parameters.write_text(yaml.safe_dump(few | {"model": "tiny", "extraction": {"captions": 2}}))
    assert main(["check", str(parameters)]) == 0
    told = capsys.readouterr().out
    assert "feed-forward layers: 16 with 5,504 neurons" in told
    assert "minutes: on cpu here, " in told and "decoding, metrics and the start of a kernel" in told
    assert "MB of statistics" in told
    row = next(line for line in told.splitlines() if "capture of the grid" in line)
    # 12 memorized, 12 ordinary and the empty prompt, 60 at a time; 10 steps of each, and of the empty prompt by itself
    assert row.split()[5:8] == ["25", "20", "250"]
    monkeypatch.setattr(
        cost, "work", lambda p, only: cost.pd.DataFrame({"notebook": [""], "part": [""], "rows": [0], "steps": [0]})
    )
    parameters.write_text(parameters.read_text().replace("tiny", "sd14"))
    assert main(["check", str(parameters)]) == 0
    told = capsys.readouterr().out
    assert "the model was not timed here (it has to be downloaded first)" in told
    assert "published lists that are not on this machine yet" in told and "0 minutes" in told
    parameters.write_text(parameters.read_text().replace("sd14", "owner/model") + f"data: {{prompts: {lists}}}\n")
    assert main(["check", str(parameters)]) == 0
    told = capsys.readouterr().out
    assert "minutes: not known, the model was not timed here (it has to be downloaded first)" in told
    assert " minutes\n" not in told, "said after it was not known"


def test_parameters_that_are_not_right_fail(capsys, tmp_path):
    (tmp_path / "bad.yaml").write_text("model: tiny\nsteps: 5\n")
    assert main(["check", str(tmp_path / "bad.yaml"), str(tmp_path / "none.yaml")]) == 1
    out = capsys.readouterr().out
    assert "will fail: unknown key 'steps'" in out
    assert out.count("will fail:") == 2


def test_what_is_known_of_a_shipped_file_is_what_counting_says(monkeypatch):
    parameters, _ = find_parameters("quick")
    known = cost.known_work(parameters)
    assert known.equals(cost.work(parameters)), "call `python -m tools.costs`"
    monkeypatch.setattr(cost, "work", lambda p, only: pytest.fail("counted again"))
    assert [cost.known_work(find_parameters(name)[0])["steps"].sum() > 0 for name in costs.FILES] == [True] * len(
        costs.FILES
    )


@pytest.mark.parametrize("name", ["sd14-quick", "sd20-quick"])
def test_a_first_result_takes_half_an_hour_and_nine_gigabytes(name, capsys):
    assert main(["check", name]) == 0
    told = capsys.readouterr().out
    parameters, _ = find_parameters(name)
    table = cost.known_work(parameters)
    assert table["steps"].sum() <= 25_000
    asked = table.set_index("part")["steps"]
    assert asked.pop("05 KID and FID") == 0
    assert asked.pop("01 capture in control models") == 0  # there are none
    assert (asked > 0).all()  # all else of the paper's figures is there
    assert parameters.missing_images() == "" and "requires:" not in told
    assert parameters.sampling.batch_size <= 4
    assert max(cost._known(parameters)["memory"].values()) <= 9
    assert "minutes: on one NVIDIA H200, " in told and "; network calls alone: decoding, metrics" in told
    assert len(parameters.grid.sizes) > 1  # the overlap against m is a line, not a point
    assert asked["01 capture of the grid"] == 1010  # larger sets are of the same captions
    assert "on a GPU, peak gigabytes from shapes, times 1.35: sampling" in told


def test_the_page_says_the_minutes_that_check_says(capsys):
    """The table of docs/full-size.md, and what the command prints of the files as they ship."""
    page = (Path(__file__).parents[1] / "docs" / "full-size.md").read_text()
    assert "KID on 2,000 images" in page
    for column, name in enumerate(("sd14", "sd20")):
        assert main(["check", name]) == 0
        printed = dict(re.findall(r"^ *(\d\d [a-zA-Z,. ]+?) +\d+ +\d+ +\d+ +([\d.]+)$", capsys.readouterr().out, re.M))
        rows = re.findall(r"^\| (\d\d [^|]+) \(min\) \| ([\d,.]+) \| ([\d,.]+) \|$", page, re.M)
        assert {part: f"{float(cells[column].replace(',', '')):.1f}" for part, *cells in rows} == printed
        assert "05 KID and FID" in printed and len(printed) > 10
        assert find_parameters(name)[0].evaluation.real_images == 2000


def test_removals_tell_their_price_before_they_begin():
    regrowth = price("regrowth", "sd14", 500)
    assert (regrowth.steps, regrowth.pairs, regrowth.gigabytes) == (1800, 500, 19.1)
    assert price("SISS", "sd14", 33).steps == 40 * 3  # epochs of three batches
    assert price("pruning", "sd14", 33).minutes is None  # it trains nothing
    assert price("regrowth", "sd20", 500).gigabytes is None  # of a GPU nobody has measured it
    text = describe(find_parameters("sd14")[0])
    assert "which nobody has made on these weights" in text and "not measured" in text
    assert describe(find_parameters("sd20")[0]).count("not measured") == 8  # no removal's memory, of eight
    assert describe(find_parameters("tiny")[0]) == ""


def test_what_halves_a_run_is_half_of_it(capsys):
    table = cost.pd.DataFrame(
        {"part": ["01 capture of the grid", "05 KID and FID", "04 sweep", "05 timing"], "steps": [40, 41, 10, 9]}
    )
    told = cost.halved(table)
    assert "05 KID and FID (evaluation.real_images: 0, evaluation.fid_images: 0); 04 sweep (sweep.sparsity)" in told
    assert told.endswith("51% of the steps") and "timing" not in told
    assert main(["check", "sd14"]) == 0
    assert "requires: data.real names no folder" in capsys.readouterr().out


def test_fid_is_asked_for_by_itself():
    asked = {"evaluation": {"real_images": 8, "fid_images": 40}, "model": "sd14"}
    parameters = cost.Parameters.checked(asked)
    assert (parameters.fid_images, parameters.distance_images) == (40, 40)
    assert cost.Parameters.checked({"model": "sd14"}).fid_images == 0
    assert cost.Parameters.checked({"model": "tiny"}).fid_images == 32  # of a world they cost nothing more
    with pytest.raises(ValueError, match="real_images: a distance needs four images or more, got 2"):
        cost.Parameters.checked({"evaluation": {"real_images": 2}})


def test_another_parameter_or_baseline_is_counted(monkeypatch):
    parameters, _ = find_parameters("quick")
    digest = cost.digest(parameters)
    assert digest == cost.digest(parameters.model_copy(update={"folder": "elsewhere"}))
    assert digest != cost.digest(parameters.model_copy(update={"seed": 1}))
    monkeypatch.setitem(cost.BASELINES, "mine", None)
    assert digest != cost.digest(parameters)
