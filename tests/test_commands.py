"""The command line: what it does, and how it tells what was wrong."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from safetensors import SafetensorError

import memsub
from memsub.__main__ import COMMANDS, main
from memsub.io.files import printable
from memsub.io.images import save_image
from memsub.measure.noise import noise_seeds
from memsub_extra.commands import detect, evaluate
from memsub_extra.commands.page import page
from memsub_extra.files import check_writable
from memsub_extra.mitigations import detection


@pytest.fixture
def micro_loaded(micro, metrics, tmp_path, monkeypatch):
    """Whatever model is asked for, the micro pipeline is loaded, with the metrics of the embedded model."""
    monkeypatch.setattr("memsub.models.load_pipeline", lambda *a, **k: micro)
    monkeypatch.setattr("memsub.measure.metrics.load_metrics", lambda *a, **k: metrics)
    monkeypatch.chdir(tmp_path)
    return micro


def write(path, *captions: str) -> str:
    path.write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")
    return str(path)


def test_locate_then_prune_gives_a_pipeline_that_loads_anywhere(tmp_path, pipe, capsys):
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(memsub.load_prompts("tiny").memorized[:3]))
    edit, out = tmp_path / "edit.safetensors", tmp_path / "pruned"
    assert main(["locate", "tiny", "--prompts", str(captions), "--steps", "2", "--tau", "2", "--out", str(edit)]) == 0
    assert main(["prune", "tiny", "--edit", str(edit), "--out", str(out)]) == 0
    assert "set to zero" in capsys.readouterr().out
    repaired = StableDiffusionPipeline.from_pretrained(out)
    found = memsub.Edit.load(edit)
    for name, positions in found.positions.items():
        assert not repaired.unet.get_submodule(name).weight.flatten()[positions].any()
    # The edit belongs to the unedited model: it says so instead of doing anything.
    assert main(["prune", str(out), "--edit", str(edit), "--out", str(tmp_path / "twice")]) == 1
    assert "made for another model" in capsys.readouterr().err
    assert not (tmp_path / "twice").exists()
    assert main(["prune", "tiny", "--edit", str(edit), "--out", str(out)]) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["locate", "tinny", "--out", "e"], "Did you mean 'tiny'"),
        (["locate", "tiny", "--prompts", "none.txt", "--out", "e"], "no prompt file"),
        (["locate", "tiny", "--tau", "99", "--out", "e"], "--tau 99 steps cannot be united where --steps 50"),
        (["locate", "tiny", "--out", "/proc/nowhere/e"], "cannot be written"),
        (["prune", "tiny", "--edit", "none", "--out", "o"], "no Edit at"),
        (["run", "tinny"], "expected one of"),
        (["fetch", "tiny"], "has no published lists; expected one of sd14, sd20"),
        (["detect", "./model", "--prompts", "list.txt"], "no ordinary captions are known of ./model"),
        (["detect", "tiny", "--prompts", "list.txt", "--ordinary", "list.txt"], "0 ordinary captions that are not in"),
        (["detect", "tiny", "--prompts", "list.txt", "--score", "text magnitud"], "Did you mean 'text magnitude'"),
        (["detect", "tiny", "--prompts", "list.txt", "--calls", "60"], "--calls 60 are more than"),
        (["locate", "tiny", "--device", "cuda:77", "--out", "e"], "--device cuda:77 cannot be used on this machine"),
    ],
)
def test_bad_input_is_an_error_in_a_line_before_anything_is_loaded(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("memsub.models.load_pipeline", lambda *a, **k: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "list.txt", "a red heart", "a blue fish")
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps: 0 is out of bounds: at least 1"),
        (["--sparsity", "7"], "--sparsity: 7 is out of bounds: more than 0, at most 1"),
        (["--sparsity", "nan"], "--sparsity: nan is out of bounds"),
        (["--batch-size", "0"], "--batch-size: 0 is out of bounds"),
        (["--seed", "one"], "--seed: invalid whole number value: 'one'"),
        (["--seed", str(2**63)], "--seed: 9223372036854775808 is out of bounds: at least 0, at most 9.2"),
        (["--seed", "9" * 5000], "--seed: invalid whole number"),
        (["--steps", "100000"], "at least 1, at most 1000"),
        (["--guidance-scale", "1e999"], "--guidance-scale: 1e999 is out of bounds"),
        (["--threshold", "1"], "--threshold: 1 is out of bounds"),
        (["--device", "gpu"], "--device: 'gpu' is no device: cpu, cuda, cuda:1, mps or xpu"),
        (["--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["--prompts", " "], "--prompts: ' ' is no path"),
        (["--out", "edits/"], "--out: 'edits/' names a folder"),
        (["--\x1b[31m"], "unrecognized arguments: --\\x1b[31m"),
    ],
)
def test_a_number_out_of_bounds_is_an_error_of_the_option(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["locate", "tiny", "--out", "e", *arguments])
    assert message in capsys.readouterr().err


# --- before torch is imported -----------------------------------------------------------------------------------------

MISTAKES = """
import json, os, sys
from memsub.__main__ import main
for arguments in json.loads(sys.argv[1]):
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    print(status, "torch" in sys.modules)
"""


def test_mistakes_are_told_before_torch_is_imported(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "list.jsonl").write_text('{"title": "a"}\n')
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    captions = write(tmp_path / "captions.txt", "a red heart", "a blue fish")
    cases = {
        ("--help",): "",
        (): "the following arguments are required: COMMAND",
        ("lokate", "tiny"): "invalid choice: 'lokate'",
        ("locate", "./folder", "--out", "e"): "no memorized captions are known of ./folder: give a list",
        ("locate", "tiny", "--out", "folder"): "it is a folder. Name a file",
        ("locate", "tiny", "--out", "captions.txt/e"): "cannot be written",
        ("locate", "tiny", "--out", captions, "--prompts", "captions.txt"): "is a file that this command reads",
        ("locate", "tiny", "--out", "x" * 250): "File name too long",
        ("locate", "tiny", "--out", "e", "--prompts", "list.jsonl"): "line 1, has no column 'caption'",
        ("locate", "tiny", "--out", "e", "--contrast", "latin.txt"): "is not UTF-8 text from line 1 on",
        ("locate", "tiny", "--out", "e", "--prompts", "folder"): "folder is a folder or no plain file",
        ("prune", "tiny", "--out", "folder", "--edit", "broken.safetensors"): "no safetensors file",
        ("prune", "tiny", "--out", "captions.txt", "--edit", "e"): "captions.txt is not empty",
        ("prune", "tiny", "--out", "captions.txt/o", "--edit", "e"): "cannot be written",
        ("detect", "tiny", "--prompts", "captions.txt", "--out", "captions.txt"): "is a file that this command reads",
        ("evaluate", "tiny", "--edit", "none", "--prompts", "captions.txt"): "no Edit at none",
        ("fetch", "sd14", "--images", "captions.txt"): "cannot be written",
    }
    command = [sys.executable, "-c", MISTAKES, json.dumps(list(cases))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    told = [line for line in done.stderr.splitlines() if "error: " in line]
    assert [line for line in done.stdout.splitlines() if line.endswith(("True", "False"))] == (
        ["0 False"] + ["2 False"] * 2 + ["1 False"] * (len(cases) - 3)
    )
    for line, message in zip(told, list(cases.values())[1:], strict=True):
        assert message in line
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "broken.safetensors", "captions.txt", "folder", "latin.txt", "list.jsonl",
    ]  # fmt: skip


def test_what_cannot_be_written_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "there").write_text("kept")
    check_writable(tmp_path / "there")
    check_writable(tmp_path / "new" / "file", 1000)
    with monkeypatch.context() as patched:
        patched.setattr("os.access", lambda path, mode: False)
        with pytest.raises(PermissionError, match="there cannot be written: it is read-only"):
            check_writable(tmp_path / "there")
        patched.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2_000_000))
        with pytest.raises(OSError, match="new takes 3 MB, but 2 MB are free there"):
            check_writable(tmp_path / "new", 3_000_000)
    with pytest.raises(OSError, match="/dev/null cannot be written: it is a device or pipe"):
        check_writable("/dev/null")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    assert (tmp_path / "there").read_text() == "kept"


# --- errors -----------------------------------------------------------------------------------------------------------


def parsed(text: str) -> int:
    return int(text)


def no_end() -> None:
    no_end()


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("tried to allocate 3 GiB")


def interrupted() -> None:
    raise KeyboardInterrupt


def missing() -> None:
    memsub.load_prompts("none.txt")


@pytest.mark.parametrize(
    ("function", "message", "status"),
    [
        (lambda: {}["key"], "a defect of memsub, not of what you gave it: KeyError: 'key'", 1),
        (lambda: None + 1, "a defect of memsub, not of what you gave it: TypeError", 1),
        (lambda: None.shape, "a defect of memsub, not of what you gave it: AttributeError", 1),
        (lambda: 10.0**1000, "a defect of memsub, not of what you gave it: OverflowError", 1),
        (lambda: memsub.interval("a", 3), "a defect of memsub, not of what you gave it: ", 1),
        (lambda: parsed("x"), "a defect of memsub, not of what you gave it: ValueError: invalid literal", 1),
        (lambda: torch.ones(2) @ torch.ones(3), "a defect of memsub, not of what you gave it: RuntimeError", 1),
        (lambda: "\udc80".encode(), "a defect of memsub, not of what you gave it: UnicodeEncodeError", 1),
        (no_end, "a defect of memsub, not of what you gave it: RecursionError", 1),
        (missing, "error: no prompt file at none.txt.", 1),
        (lambda: os.listdir("none"), "error: [Errno 2] No such file or directory: 'none'", 1),
        (lambda: bytearray(10**18), "give a smaller --batch-size", 1),
        (out_of_memory, "(tried to allocate 3 GiB): give a smaller --batch-size", 1),
        (interrupted, "interrupted", 130),
    ],
)
def test_an_error_is_told_in_a_line_and_a_defect_as_one(capsys, monkeypatch, function, message, status):
    def add(commands):
        commands.add_parser("now").set_defaults(function=lambda args: function())

    monkeypatch.setitem(COMMANDS._loaded, "now", add)
    assert main(["now"]) == status
    shown = capsys.readouterr().err
    assert message in shown and len(shown.splitlines()) == 1
    assert ("https://github.com/memsub/memsub/issues, with what --debug shows" in shown) == ("a defect" in message)
    for arguments in (["--debug", "now"], ["now", "--debug"]):
        assert main(arguments) == status
        shown = capsys.readouterr().err
        assert shown.startswith("Traceback") and message in shown.splitlines()[-1]


def test_a_model_that_fails_in_ways_nobody_listed_is_the_models_fault(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("memsub.models.load_pipeline", lambda *a, **k: {}["unet"])
    assert main(["locate", "tiny", "--out", "e"]) == 1
    assert "tiny cannot be loaded (KeyError: 'unet'): is it whole" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_metric_that_cannot_be_loaded_is_named(capsys, edit_file, monkeypatch, tmp_path):
    def no_network(*args):
        return open("of transformers", "rb")

    monkeypatch.setattr("memsub.measure.metrics.load_metrics", no_network)
    assert main(["evaluate", "tiny", "--edit", edit_file, "--prompts", write(tmp_path / "p.txt", "a", "b")]) == 1
    assert "the metrics cannot be loaded (FileNotFoundError: [Errno 2]" in capsys.readouterr().err


def test_more_steps_than_a_model_was_trained_on(capsys, micro_loaded, monkeypatch):
    monkeypatch.setattr(
        micro_loaded.scheduler, "_internal_dict", micro_loaded.scheduler.config | {"num_train_timesteps": 20}
    )
    assert main(["locate", "tiny", "--steps", "21", "--out", "e"]) == 1
    assert "--steps 21 are more than the 20 that this model was trained on" in capsys.readouterr().err


def test_steps_that_a_sampler_does_not_make_are_no_defect(capsys, micro_loaded, monkeypatch):
    monkeypatch.setattr(micro_loaded, "scheduler", PNDMScheduler())  # its Runge-Kutta steps need some
    assert main(["locate", "tiny", "--steps", "1", "--tau", "1", "--out", "e"]) == 1
    assert "error: --steps 1: this model's PNDMScheduler does not make so many steps" in capsys.readouterr().err


def test_options_of_a_checkpoint_reach_the_loader_only_if_they_are_given(micro, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr("memsub.models.load_pipeline", lambda *a, **k: given.append((a, k)) or micro)
    monkeypatch.setattr("memsub.models.find_contents", lambda *a, **k: SimpleNamespace(check=lambda: None))
    monkeypatch.chdir(tmp_path)
    command = ["locate", "tiny", "--prompts", write(tmp_path / "c.txt", "a"), "--steps", "1", "--tau", "1"]
    assert main([*command, "--out", "e", "--dtype", "float32", "--device", "cpu"]) == 0
    assert main([*command, "--out", "e", "--config", str(tmp_path), "--prediction-type", "epsilon"]) == 0
    assert given[0] == (("tiny",), {"device": "cpu", "dtype": torch.float32})
    assert given[1][1] == {"device": None, "dtype": None, "config": tmp_path, "prediction_type": "epsilon"}


def test_a_closed_pipe_and_closed_streams_are_no_error(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    program = """
from memsub.__main__ import COMMANDS, main
COMMANDS["show"] = lambda commands: commands.add_parser("show").set_defaults(function=lambda args: print("a caption"))
raise SystemExit(main(["show"]))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
    done = subprocess.run(["sh", "-c", '"$0" "$@" >&- 2>&-', *command])
    assert done.returncode == 0


def test_text_for_a_terminal_cannot_move_its_cursor():
    assert printable("a\x1b[2J\x07 caf\u00e9\n b\u202e\udc80") == "a\\x1b[2J\\x07 caf\u00e9 b\\u202e\\udc80"


# --- locate: a killed one resumes -------------------------------------------------------------------------------------


def test_a_killed_locate_resumes_in_its_second_capture_too(micro_loaded, tmp_path, monkeypatch, capsys):
    prompts = write(tmp_path / "p.txt", "a red heart", "a blue fish")
    contrast = write(tmp_path / "c.txt", "one", "two", "three")
    command = ["locate", "tiny", "--prompts", prompts, "--contrast", contrast, "--steps", "1", "--tau", "1"]
    command += ["--batch-size", "1", "--out"]
    batches, stop = [], [None]
    add_batch = memsub.activations._add_batch

    def count(stats, denoiser, part, membership):
        if len(batches) == stop[0]:
            raise KeyboardInterrupt
        batches.append(part)
        add_batch(stats, denoiser, part, membership)

    monkeypatch.setattr("memsub.activations._add_batch", count)
    assert main([*command, "whole"]) == 0
    assert len(batches) == 5
    batches.clear()
    stop[0] = 3
    assert main([*command, "edit"]) == 130
    assert not (tmp_path / "edit").exists()
    stop[0] = None
    assert main([*command, "edit", "--seed", "1"]) == 1
    assert "edit.prompts.partial" in (shown := capsys.readouterr().err) and "another capture; remove it" in shown
    assert main([*command, "edit"]) == 0
    assert [*map(list, batches)] == [["a red heart"], ["a blue fish"], ["one"], ["two"], ["three"]]
    assert (tmp_path / "edit").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.txt", "edit", "p.txt", "whole"]


def test_a_pruned_pipeline_appears_whole_or_not_at_all(micro_loaded, tmp_path, monkeypatch, capsys):
    prompts = write(tmp_path / "p.txt", "a red heart")
    assert main(["locate", "tiny", "--prompts", prompts, "--steps", "1", "--tau", "1", "--out", "e"]) == 0

    def full(folder, **options):
        folder.mkdir(parents=True)
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("memsub.pruning.Edit.apply", lambda *a: None)  # the pipeline is shared
    monkeypatch.setattr(micro_loaded, "save_pretrained", full, raising=False)
    assert main(["prune", "tiny", "--edit", "e", "--out", "pruned"]) == 1
    assert "error: pruned could not be written: No space left on device" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "p.txt"]


@pytest.mark.parametrize("out", [".", "link", "empty"])
def test_a_pruned_pipeline_fills_a_folder_that_is_there(edit_file, micro_loaded, tmp_path, monkeypatch, out):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.setattr("memsub.pruning.Edit.apply", lambda *a: None)  # the pipeline is shared
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["prune", "tiny", "--edit", str(edit_file), "--out", str(tmp_path / out if out != "." else out)]) == 0
    assert (tmp_path / "link").is_symlink()
    assert sorted(p.name for p in (tmp_path / "empty").iterdir()) == sorted(
        ["model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"]
    )


# --- detect -----------------------------------------------------------------------------------------------------------


def test_a_p_value_counts_the_ordinary_captions_that_score_as_high():
    scores = {"s": {"a": 3.0, "b": 2.0, "w": 1.0, "x": 2.0, "y": 2.5, "z": 0.5}}
    table = detect.compared(scores, ["a", "b", "a"], ["w", "x", "y", "z"])
    assert table["s: p"].tolist() == [0.2, 0.6, 0.2]
    assert table["s: percentile"].tolist() == [100, 50, 100]
    told = "\n".join(detect.report_lines(table.assign(suspected=table["s: p"] <= 0.3), "s", 0.3, 4))
    assert "2 of 3 captions are suspected (67%, 95 % interval 21% to 94%)" in told
    assert "the highest 20.00% of 4 ordinary captions" in told
    assert "If none of the 3 were memorized, 0.6 would be expected" in told


def test_detect_scores_a_list_without_training_images(micro_loaded, tmp_path, capsys):
    hostile = "a cat \x1b[31m, <b>"
    prompts = write(tmp_path / "p.txt", "a red heart", hostile, "a blue fish")
    ordinary = write(tmp_path / "o.txt", *(f"a {i}" for i in range(9)), "a red heart")
    command = ["detect", "tiny", "--prompts", prompts, "--ordinary", ordinary, "--seeds", "2", "--steps", "2"]
    assert main([*command, "--out", "scores.csv"]) == 1
    assert "9 ordinary captions that are not in --prompts cannot tell a share of 0.01" in capsys.readouterr().err
    assert main([*command, "--false-positives", "0.1", "--out", "scores.csv"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "a cat \\x1b[31m" in shown
    assert "If none of the 3 were memorized, 0.3 would be expected" in shown
    table = pd.read_csv("scores.csv")
    assert table["prompt"].tolist() == ["a red heart", hostile, "a blue fish"]
    expected = detection.first_step_scores(micro_loaded, table["prompt"], seeds=2, steps=2)
    np.testing.assert_allclose(table["text magnitude"], expected["text magnitude"], rtol=1e-5)
    assert table["suspected"].tolist() == (table["text magnitude: p"] <= 0.1).tolist()


# --- evaluate ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def edit_file(micro, tmp_path) -> str:
    layer, linear = next(iter(memsub.as_denoiser(micro).layers().items()))
    positions = torch.arange(linear.weight.numel())
    edit = memsub.Edit({layer: positions}, {layer: tuple(linear.weight.shape)}, {"model": memsub.fingerprint(micro)})
    edit.save(tmp_path / "e.safetensors")
    return str(tmp_path / "e.safetensors")


def test_evaluate_says_what_an_edit_did(micro_loaded, edit_file, prompts, tmp_path, capsys, monkeypatch):
    captions = prompts.of("heldout")[:3]
    command = ["evaluate", "./model", "--edit", edit_file, "--prompts", write(tmp_path / "p.txt", *captions)]
    command += ["--steps", "2", "--seeds", "2", "--unseen", write(tmp_path / "u.txt", *prompts.of("heldout")[3:5])]
    monkeypatch.setattr("memsub.models.find_model", lambda name: memsub.models.ModelInfo(name, name, name, "published"))
    # The training image of the first caption is what the model generates for it with seed 1.
    sampled = memsub.generate(micro_loaded, captions[:1], seeds=noise_seeds(captions[:1], 1), steps=2, progress=False)[
        0
    ]
    save_image(sampled, tmp_path / "images" / "1" / "b.png")
    save_image(255 - sampled, tmp_path / "images" / "1" / "a.png")
    (tmp_path / "images" / "3").mkdir()
    (tmp_path / "images" / "3" / "broken.png").write_bytes(b"PNG")
    with pytest.warns(UserWarning, match="broken.png is truncated or no image"):
        assert main([*command, "--images", "images"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 3 captions have no training image and are not judged" in shown
    assert "a copy similarity above" in shown
    record = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    rows = {row["measure"]: row for row in record["measures"]}
    assert rows["captions with a replicated image"]["before"] == 1
    assert rows["captions with a replicated image"]["before_low"] < 0.5  # n = 1
    assert {row["captions"] for row in rows.values()} == {1, 2, 3}
    images = pd.read_csv(tmp_path / "evaluation" / "images.csv")
    assert len(images) == 12
    first = images[(images["model"] == "before") & (images["prompt"] == captions[0])]
    assert first["copy_similarity"].tolist()[1] == pytest.approx(1, abs=1e-4)  # of the two the most similar counts
    shown = (tmp_path / "evaluation" / "index.html").read_text()
    assert shown.count("<figure") == 12 + 2
    # What was sampled is kept: the same command again samples nothing.
    monkeypatch.setattr("memsub.models.generate", lambda *a, **k: pytest.fail("sampled"))
    assert main([*command, "--out", "evaluation"]) == 0
    assert "replication cannot be judged" in capsys.readouterr().out


def test_captions_and_names_are_text_on_the_page():
    images = {name: np.zeros((2, 8, 8, 3), np.uint8) for name in ("before", "after")}
    rows = pd.DataFrame({"seed": [0, 0], "copy_similarity": np.nan, "likeness": np.nan, "replicated": np.nan})
    captions = ["<script>alert(1)</script>", "a {caption}"]
    none = [np.empty((0, 8, 8, 3), np.uint8)] * 2
    shown = page({"edit": "<b>.safetensors"}, ["<i>"], captions, none, images, dict.fromkeys(images, rows))
    assert "<script" not in shown and "&lt;script&gt;alert(1)" in shown and "a {caption}" in shown
    assert "<b>.safe" not in shown and "<i>" not in shown
    assert "default-src 'none'" in shown and "training image" not in shown


def test_captions_that_a_world_does_not_know_are_told_before_anything_is_sampled(
    micro_loaded, edit_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("memsub.models.generate", lambda *a, **k: pytest.fail("sampled"))
    assert main(["evaluate", "tiny", "--edit", edit_file, "--prompts", write(tmp_path / "p.txt", "a", "b")]) == 1
    assert "'a' is no caption of this world" in capsys.readouterr().err


def test_evaluate_judges_a_world_by_its_exact_test(micro_loaded, edit_file, prompts, tmp_path, capsys):
    listed = write(tmp_path / "p.txt", *prompts.memorized[:2], prompts.of("heldout")[0])
    evaluate.UNSEEN, kept = 2, evaluate.UNSEEN
    try:
        command = ["evaluate", "tiny", "--edit", edit_file, "--prompts", listed, "--steps", "1", "--seeds", "1"]
        assert main(command) == 0
    finally:
        evaluate.UNSEEN = kept
    shown = capsys.readouterr().out
    assert "by the exact test" in shown and "1 of 3 captions have no training image" in shown
    row = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["measures"][0]
    assert (row["before"], row["captions"]) == (0, 2)
    assert row["before_high"] > 0.3  # 0 of 2 is no proof
    assert "likeness" not in shown  # of one seed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--images", "none"], "none holds no training image of these 2 captions; expected none/<index>/*.png"),
        (["--out", "."], "--out . holds other files"),
        (["--unseen", "one.txt"], "one.txt holds one caption"),
        (["--prompts", "one.txt"], "one.txt holds one caption: alignment is measured against the caption of another"),
        (["--prompts", "p.jsonl"], "which is no plain name"),
    ],
)
def test_what_evaluate_cannot_use_is_told_before_the_model_is_loaded(
    edit_file, tmp_path, monkeypatch, capsys, more, message
):
    monkeypatch.setattr("memsub.models.load_pipeline", lambda *a, **k: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p.txt", "a", "b")
    write(tmp_path / "one.txt", "a", "a")
    write(tmp_path / "p.jsonl", '{"caption": "a", "index": "../x"}')
    assert main(["evaluate", "tiny", "--edit", edit_file, "--prompts", "p.txt", *more]) == 1
    assert message in capsys.readouterr().err


def test_an_edit_of_another_model_is_told_before_anything_is_sampled(
    micro_loaded, edit_file, tmp_path, monkeypatch, capsys, other_micro
):
    monkeypatch.setattr("memsub.models.load_pipeline", lambda *a, **k: other_micro)
    monkeypatch.setattr("memsub.models.generate", lambda *a, **k: pytest.fail("sampled"))
    assert main(["evaluate", "tiny", "--edit", edit_file, "--prompts", write(tmp_path / "p.txt", "a", "b")]) == 1
    assert "made for another model" in capsys.readouterr().err
    assert not (tmp_path / "evaluation").exists()


def test_a_rate_of_captions_that_are_all_alike_has_a_width():
    def scored(hits):
        prompts = np.repeat(["a", "b", "c"], 2)
        return pd.DataFrame({"prompt": prompts, "seed": [0, 1] * 3, "replicated": hits, "copy_similarity": hits,
                             "sharpness": 1.0, "likeness": np.nan, "prompt_similarity": 1, "chance": 0.5})  # fmt: skip

    rows = {row["measure"]: row for row in evaluate.measures(scored([1.0] * 6), scored([0, 0, 0, 0, 1.0, 0]))}
    images, captions = rows["replicated images"], rows["captions with a replicated image"]
    assert (images["before"], images["after"]) == (1, pytest.approx(1 / 6))
    assert captions["after"] == pytest.approx(1 / 3)
    assert images["before_low"] < 0.6 and images["before_high"] == 1  # three captions, not six images
    assert -1 <= images["change_low"] < images["change"] < images["change_high"] < 0.1
