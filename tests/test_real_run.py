"""The chain once on a pipeline of files, as the scheduled workflow runs it on real ones; results that people send."""

import json
from pathlib import Path

import pytest
import yaml
from tools import real_run, results

from memsub_extra.notebooks.batch import project
from memsub_extra.notebooks.published import Found

FOLDER = Path(project()) / results.FOLDER


def test_a_folder_of_random_weights(micro, tmp_path, monkeypatch):
    micro.save_pretrained(tmp_path / "micro")
    monkeypatch.setitem(real_run.SETTINGS, "sparsity", 0.1)  # of rows of 64 weights
    out = tmp_path / "out"
    result = real_run.real_run(str(tmp_path / "micro"), out, "random", "a test")
    assert len(result.checks) == 8 and all(result.checks.values()), result.checks
    assert results.Result.load(out / "result.json") == result
    assert str(tmp_path) not in (out / "result.json").read_text()
    assert (result.model, result.weights, result.kind) == ("micro", "random", "smoke")
    assert len(list((out / "images").glob("*.png"))) == 4


def test_a_folder_with_other_files_is_not_emptied(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "letters.txt").write_text("of years")
    with pytest.raises(ValueError, match=r"holds other files, such as letters\.txt: name a new folder"):
        real_run.real_run("tiny", tmp_path)
    assert (tmp_path / "letters.txt").exists()


def test_the_workflow_runs_this_script_on_models_that_memsub_takes():
    workflow = yaml.safe_load((project() / ".github" / "workflows" / "real-weights.yml").read_text())
    assert "schedule" in workflow[True]  # YAML reads the key `on` as true
    (job,) = workflow["jobs"].values()
    assert [row["model"] for row in job["strategy"]["matrix"]["include"]] == [
        "hf-internal-testing/tiny-sd-pipe",
        "sd14",
    ]
    assert any("tools.real_run" in step.get("run", "") for step in job["steps"])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.name)
def test_every_file_is_as_the_schema_says(path):
    if path.name == results.SCHEMA:
        written = json.loads(path.read_text())
        assert written == json.loads(json.dumps(results.Result.model_json_schema())), "python -m tools.results --schema"
    else:
        assert all(results.Result.load(path).checks.values())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"kind": "rumour"}, "kind"),
        ({"model": "<script>"}, "model"),
        ({"minutes": -1}, "minutes"),
        ({"captions": ["a caption"]}, "captions"),
        ({"settings": {"metrics": {"copy": "/home/somebody/sscd.pt"}}}, "looks like a path"),
        ({"settings": {"baselines": {"strengths": {"..\\mine": [1]}}}}, "looks like a path"),
        ({"quantities": [{"quantity": "beauty", "method": "none", "value": 1, "n": 3}]}, "quantity"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, changed, named):
    example = json.loads((FOLDER / "tiny-smoke.json").read_text())
    (tmp_path / "sent.json").write_text(json.dumps(example | changed))
    with pytest.raises(ValueError, match=rf"sent\.json is no result: (?s:.*){named}"):
        results.Result.load(tmp_path / "sent.json")


def test_the_result_of_a_run(tmp_path):
    claim = {
        "verdict": "holds",
        "relation": "at least",
        "value": 0.9,
        "bound": 0.8,
        "low": 0.85,
        "high": 0.95,
        "varies": 0,
    }
    findings = {"claims": {"it works": claim}, "facts": {}, "network_rows": 3}
    parameters = {
        "model": "/somewhere/my-model",
        "folder": "../runs/x",
        "seed": 3,
        "data": {"images": "/home/somebody"},
    }
    found = Found(quantity="detection, area under the curve", method="text magnitude", value=0.97, n=200)
    for name, content in {
        "parameters.json": parameters,
        "findings/05_attack_evaluation.json": findings,
        "quantities/detection.json": [found.model_dump()],
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    result = results.of_run(tmp_path)
    assert (result.model, result.settings, result.quantities) == ("my-model", {"seed": 3}, [found])
    assert result.claims["05_attack_evaluation"]["it works"].verdict == "holds"
    # A run of an earlier version: nothing of the machine that this tool runs on takes its place.
    assert (result.machine.hardware, result.minutes, result.gigabytes) == ("not recorded", None, None)
    result.save(tmp_path / "result.json")
    assert results.Result.load(tmp_path / "result.json") == result
    assert "somebody" not in (tmp_path / "result.json").read_text()
    with pytest.raises(FileNotFoundError, match=r"parameters\.json"):
        results.of_run(tmp_path / "findings")


def test_minutes_memory_and_machine_are_those_of_the_run(tmp_path):
    def write(name, content):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))

    gpu = {"hardware": "a GPU", "system": "Linux x86_64", "python": "3.12.1", "versions": {"torch": "2.9"}}
    write("parameters.json", {"model": "sd14"})
    for name, minutes, gigabytes in (("01_activation_capture", 2.5, 6.0), ("04_pruning", 10, 8.5)):
        write(f"findings/{name}.json", {"claims": {}, "facts": {}, "network_rows": 3})
        write(f"took/{name}.json", gpu | {"date": "2026-11-30", "minutes": minutes, "gigabytes": gigabytes, "rows": 3})
    result = results.of_run(tmp_path)
    assert (result.minutes, result.gigabytes, result.weights) == (12.5, 8.5, "published")
    assert result.machine.model_dump() == gpu
    assert result.minutes_by_notebook == {"01_activation_capture": 2.5, "04_pruning": 10}
    write("findings/05_attack_evaluation.json", {"claims": {}, "facts": {}, "network_rows": 3})
    some = results.of_run(tmp_path)  # a notebook without a record: no sum of the others alone
    assert (some.minutes, some.gigabytes, some.minutes_by_notebook["04_pruning"]) == (None, None, 10)
    other = gpu | {"hardware": "another GPU", "date": "2026-11-30", "minutes": 1, "gigabytes": 1, "rows": 3}
    write("took/05_attack_evaluation.json", other)
    with pytest.raises(ValueError, match=r"different machines or versions \(a GPU, another GPU\)(?s:.*)--fresh"):
        results.of_run(tmp_path)


def test_settings_hold_no_paths_and_published_names_stay():
    given = {
        "model": "sd14",
        "folder": "/home/somebody/run",
        "metrics": {"copy": "/home/somebody/sscd.pt", "prompt": "ViT-L/14", "more": ["sharpness"]},
        "edit": {"steps": 10, "layers": ["C:\\mine"]},
    }
    assert results.changed(given) == {
        "metrics": {"copy": results.OWN, "prompt": "ViT-L/14", "more": ["sharpness"]},
        "edit": {"steps": 10, "layers": [results.OWN]},
    }
    assert results.changed({"metrics": {"copy": "mine"}})["metrics"]["copy"] == results.OWN  # a file without a suffix
    assert results.changed({"metrics": {"copy": "sscd_disc_large"}})["metrics"]["copy"] == "sscd_disc_large"


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("sd14", "published"),
        ("CompVis/stable-diffusion-v1-4", "published"),
        ("tiny", "embedded"),
        ("tiny-twin", "embedded"),
        ("owner/private-model", "own"),
        ("runs/a-folder-that-is-gone", "own"),
        ("tiny-of-mine", "own"),
    ],
)
def test_only_what_is_known_as_published_is_called_so(model, weights):
    assert results.weights_of(model) == weights
