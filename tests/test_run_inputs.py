"""What a run needs of its files is checked before anything is loaded, by `memsub run` and by `memsub check`."""

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL
from memsub.__main__ import main
from memsub.io.images import save_image
from memsub_extra.notebooks import batch
from memsub_extra.notebooks.cost import work
from memsub_extra.run.parameters import Parameters

FILES = {"memorized": "list.jsonl", "ordinary": "ordinary.txt", "heldout": "heldout.txt"}
URL = "http://localhost/gone.png"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout whose runs end where the first notebook would begin; lists and images lie beside its notebooks."""
    for folder in ("notebooks", "papermill_params"):
        (tmp_path / folder).mkdir()
    here = tmp_path / "notebooks"
    rows = [{"caption": f"memorized {i}", "index": 100 + i, "url": URL} for i in range(14)]
    (here / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (here / "odd.jsonl").write_text("\n".join(map(json.dumps, [*rows[:2], rows[2] | {"rephrased": "['a"}, *rows[3:]])))
    for kind, n in {"ordinary": 12, "heldout": 8}.items():
        (here / f"{kind}.txt").write_text("\n".join(f"{kind} {i}" for i in range(n)))
    for folder, names in {"gt": range(100, 114), "coco": range(6)}.items():
        for name in names:
            save_image(np.zeros((9, 9, 3), np.uint8), here / folder / f"{name}.png")
    monkeypatch.setattr(batch, "project", lambda: tmp_path)
    monkeypatch.setattr(batch, "_execute_all", lambda *a: pytest.fail("began"))
    monkeypatch.setattr(batch, "load_pipeline", lambda *a: pytest.fail("loaded"))
    monkeypatch.setenv("MEMSUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("memsub_extra.notebooks.cost.describe", lambda *a, **k: "  what it takes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def given(project: Path, **data) -> str:
    """A parameter file of lists and images of one's own, with some of `data` changed; returns its path."""
    data = {"prompts": FILES, "images": "gt", "real": "coco"} | data
    parts = {key: data.pop(key) for key in SMALL if key in data}
    small = SMALL | {key: SMALL[key] | changed for key, changed in parts.items()}
    model = {"model": "owner/model", "metrics": {"more": []}}
    file = project / "p.yaml"
    file.write_text(json.dumps(Parameters.checked(small | model | {"data": data}).dump()))
    return str(file)


WRONG = [
    ({"real": "coca"}, r"data\.real names .*coca, where no folder is: name a folder of images that the model was not"),
    ({"images": "gtt"}, r"data\.images names .*gtt, where no folder is: .*docs/images\.md"),
    ({"prompts": FILES | {"ordinary": "none.txt"}}, r"no prompt file at .*none\.txt"),
    (
        {"prompts": "list.jsonl"},
        r"takes 12 ordinary captions \(as many .*\), and its list has none: name a file of them",
    ),
    ({"prompts": {k: FILES[k] for k in ("memorized", "ordinary")}}, r"takes 8 unseen captions \(heldout\) .* has none"),
    (
        {"grid": {"memorized": 15}},
        r"takes 15 memorized captions \(grid\.memorized is 15\), and its list has 14: give more",
    ),
    ({"grid": {"memorized": 13}}, r"takes 13 ordinary captions .* its list has 12"),
    ({"extraction": {"captions": 13}}, r"13 ordinary captions \(extraction\.captions is 13\), and its list has 12"),
    ({"baselines": {"never_seen": 5}}, r"10 unseen captions .*baselines\.never_seen is 5: so many choose .* has 8"),
    (
        {"deletion": {"targets": 9}, "real": None, "evaluation": {"real_images": 0}},
        r"9 unseen .*deletion\.targets is 9",
    ),
    (
        {"evaluation": {"real_images": 7}},
        r"coco has 6 images, and evaluation\.real_images or fid_images asks for 7: add",
    ),
    ({"evaluation": {"fid_images": 9}, "real": None}, r"data\.real names no folder, but KID and FID need 9"),
    ({"prompts": FILES | {"memorized": "odd.jsonl"}}, r"odd\.jsonl, line 3: the other wordings of 'memorized 2' are"),
    ({"prompts": None}, r"no prompt list named"),
]


@pytest.mark.parametrize(("changed", "told"), WRONG, ids=[str(changed)[:40] for changed, _ in WRONG])
def test_what_is_missing_ends_a_run_before_it_begins(project, changed, told, capsys):
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        batch.run([given(project, **dict(changed))], project / "run")
    assert not (project / "run").exists()
    checked = main(["check", str(project / "p.yaml")])
    said = capsys.readouterr().out
    if "no folder, but" in told:  # `check` says it with what a run takes, and files as they ship say it
        return
    assert checked == 1 and "will fail: " in said and "what it takes" not in said


def test_a_run_whose_files_are_there_begins(project, capsys):
    file = given(project)
    with pytest.raises(pytest.fail.Exception, match="began"):
        batch.run([file], project / "run")
    assert main(["check", file]) == 0
    assert "what it takes" in capsys.readouterr().out


def test_training_images_are_counted_where_they_judge(project):
    for number in range(103, 114):
        (project / "notebooks" / "gt" / f"{number}.png").unlink()
    with pytest.raises(
        ValueError, match=r"has training images of \d of the 4 memorized .* of all 12 it has those of 3"
    ):
        batch.run([given(project)], project / "run")
    # Notebooks 01 to 03 sample nothing: they need no images, and no unseen captions.
    file = given(project, prompts={kind: FILES[kind] for kind in ("memorized", "ordinary")})
    with pytest.raises(pytest.fail.Exception, match="began"):
        batch.run([file], project / "run", only=["01", "02", "03"])


def test_tables_of_the_folder_may_name_captions_that_the_run_leaves_out(project):
    lines = ["prompt_idx,ref_file", *(f"{i},{100 + i}.png" for i in range(14))]  # the run takes 12
    (project / "notebooks" / "gt" / "prompt_to_ref.csv").write_text("\n".join(lines))
    with pytest.raises(pytest.fail.Exception, match="began"):
        batch.run([given(project)], project / "run")


def test_images_that_are_not_there_can_be_fetched_or_not(project, capsys):
    file = given(project, images=None)  # into the run's folder, by the addresses of the list
    with pytest.raises(pytest.fail.Exception, match="began"):
        batch.run([file], project / "run")
    plain = project / "notebooks" / "plain.txt"
    plain.write_text("\n".join(f"memorized {i}" for i in range(14)))
    with pytest.raises(ValueError, match=r"no addresses to fetch them from .*run/gt_images: name a folder of them"):
        batch.run([given(project, images=None, prompts=FILES | {"memorized": "plain.txt"})], project / "run")


def test_several_processes_find_files_where_notebooks_do(project, monkeypatch):
    found = []
    monkeypatch.setattr(batch, "processes", lambda: 2)
    monkeypatch.setattr(batch, "is_main", lambda: False)
    monkeypatch.setattr(batch, "precompute", lambda run: found.append(Path(run.parameters.data.real).is_dir()))
    assert batch.run([given(project)], project / "run") == []
    assert found == [True]


def test_check_lists_all_that_is_missing(project, capsys):
    prompts = FILES | {"heldout": "short.txt"}
    (project / "notebooks" / "short.txt").write_text("one\ntwo\n")
    assert main(["check", given(project, prompts=prompts, real="coca", grid={"memorized": 13})]) == 1
    failing = [line for line in capsys.readouterr().out.splitlines() if "will fail:" in line]
    assert len(failing) == 3
    assert "coca" in failing[0] and "13 ordinary captions" in failing[1] and "and its list has 2" in failing[2]


def test_training_images_that_change_make_a_run_run_again(tmp_path):
    parameters = Parameters.checked({"model": "tiny", "data": {"images": str(tmp_path)}})
    before = batch._content(parameters)
    (tmp_path / "1.png").write_bytes(b"an image")
    assert batch._content(parameters) != before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"deletion": {"edits": {"mine": "edit.safetensors"}}}, "truncated or no safetensors file"),
        ({"metrics": {"prompt": "no_such_clip"}}, "metrics.prompt: no CLIP named 'no_such_clip'"),
    ],
)
def test_what_a_run_reads_at_its_end_is_looked_at_first(given, said, tmp_path):
    (tmp_path / "edit.safetensors").write_bytes(b"no edit")
    if "deletion" in given:
        given = {"deletion": {"edits": {"mine": str(tmp_path / "edit.safetensors")}}}
    with pytest.raises(ValueError, match=said):
        batch._check_files(Parameters.checked({"model": "tiny", **given}))


def test_notebooks_that_are_not_executed_are_not_counted(tmp_path):
    lists = {"memorized": 20, "ordinary": 40, "heldout": 60}
    for kind, n in lists.items():
        (tmp_path / f"{kind}.txt").write_text("\n".join(f"{kind} caption {i}" for i in range(n)))
    data = {"prompts": {kind: str(tmp_path / f"{kind}.txt") for kind in lists}}
    grid = {"memorized": 12, "subsets": 2, "sizes": [2]}
    own = Parameters.checked(
        {"model": "tiny", "data": data, "grid": grid}
    )  # notebook 00 needs the world's own captions
    assert set(work(own, ["01_activation_capture"])["notebook"]) == {"01_activation_capture"}
