"""`memsub check`: what a model is, what it takes and what will fail, from headers alone."""

import json
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
    for name in (str(saved), "tiny-twin", str(saved / "unet")):
        done = subprocess.run([sys.executable, "-c", code, "check", name], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("will fail:" in done.stdout) == (name == str(saved / "unet"))


def test_memory_is_what_shapes_say():
    """Of sampling, as `memsub_extra.full_size.memory` has it: 9.3 GB for 16 images of SD1.4, 11.0 for 8 of SD2.0."""
    for name, million, batch, gigabytes in (("sd14", 1066.2, 16, 9.3), ("sd20", 1289.9, 8, 11.0)):
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
    monkeypatch.setattr(cost, "ESTIMATES", {"memory": lambda p: pytest.fail("takes a minute, and was not asked for")})
    parameters = tmp_path / "few.yaml"
    few = SMALL | {"capture": {"steps": 50}, "sampling": {"batch_size": 60}, "grid": SMALL["grid"]}
    parameters.write_text(yaml.safe_dump(few | {"model": "tiny", "extraction": {"captions": 2}}))
    assert main(["check", str(parameters)]) == 0
    told = capsys.readouterr().out
    assert "feed-forward layers: 16 with 16,512 neurons" in told
    assert "ms an image and step on cpu" in told
    assert "MB of statistics" in told
    row = next(line for line in told.splitlines() if "capture of the grid" in line)
    # 12 memorized, 12 ordinary and the empty prompt, 60 at a time; 50 steps of each, and of the empty prompt by itself
    assert row.split()[5:8] == ["25", "100", "1250"]
    monkeypatch.setattr(
        cost, "work", lambda p: cost.pd.DataFrame({"notebook": [""], "part": [""], "rows": [0], "steps": [0]})
    )
    parameters.write_text(parameters.read_text().replace("tiny", "sd14"))
    assert main(["check", str(parameters)]) == 0
    assert "no time estimate: the model is not on this machine yet" in capsys.readouterr().out


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
    monkeypatch.setattr(cost, "work", lambda p: pytest.fail("counted again"))
    assert [cost.known_work(find_parameters(name)[0])["steps"].sum() > 0 for name in costs.FILES] == [True] * 4


def test_another_parameter_or_baseline_is_counted(monkeypatch):
    parameters, _ = find_parameters("quick")
    digest = cost.digest(parameters)
    assert digest == cost.digest(parameters.model_copy(update={"folder": "elsewhere"}))
    assert digest != cost.digest(parameters.model_copy(update={"seed": 1}))
    monkeypatch.setitem(cost.BASELINES, "mine", None)
    assert digest != cost.digest(parameters)
