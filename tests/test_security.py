"""Hostile and broken files, text and moments: each is refused in a sentence, or does no harm (docs/security.md)."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from safetensors.torch import save_file

from memsub import activations
from memsub.activations import ActivationStats, capture
from memsub.io import files
from memsub.io.files import (
    FORMAT,
    exclusive,
    load_json,
    printable,
    save_json,
    save_tensors,
    save_text,
    write_atomically,
)
from memsub.measure.sscd import CONSENT, KNOWN, SSCD, sscd
from memsub.neurons import WeightMasks
from memsub.pruning import Edit
from memsub_extra.files import check_writable, load_table, save_table
from memsub_extra.lab import plots as lab_plots
from memsub_extra.notebooks import batch, plots
from memsub_extra.notebooks.findings import read_findings, result
from memsub_extra.notebooks.report import write_report
from memsub_extra.run.parameters import Parameters
from micro import CAPTIONS

OPTIONS = {"steps": 2, "guidance_scale": 3.0, "progress": False}

# --- code from strangers ------------------------------------------------------------------------------------------


class Descriptor(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.fixture
def program(tmp_path):
    torch.jit.script(Descriptor()).save(str(tmp_path / "sscd.pt"))
    return tmp_path / "sscd.pt"


def test_a_program_is_not_even_loaded_without_consent(program, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("executed"))
    digest = sha256(program.read_bytes()).hexdigest()
    for consent in ("", "1", "true", digest[:-1], "0" * 64):
        monkeypatch.setenv(CONSENT, consent)
        with pytest.raises(ValueError, match=rf"sscd\.pt is TorchScript, a program .* {CONSENT}={digest}; or use ONNX"):
            sscd(program)


def test_consent_is_to_one_content(program, monkeypatch):
    monkeypatch.setenv(CONSENT, f"{'0' * 64}, {sha256(program.read_bytes()).hexdigest()}")
    assert sscd(program).identity.endswith(sha256(program.read_bytes()).hexdigest())
    program.write_bytes(program.read_bytes() + b" ")
    with pytest.raises(ValueError, match="its content is unknown here"):
        sscd(program)


def test_a_published_name_is_no_consent(program, monkeypatch, tmp_path):
    """What a server sends in the place of the published file is as unknown as any other."""
    monkeypatch.setattr("memsub.measure.sscd.fetch_url", lambda *_: program)
    for name in SSCD:
        with pytest.raises(ValueError, match="its content is unknown here"):
            sscd(name)
    assert set(KNOWN.values()) <= set(SSCD)


def test_a_run_tells_of_missing_consent_before_it_executes_anything(program, tmp_path, monkeypatch):
    (tmp_path / "p.yaml").write_text(f"model: tiny\nmetrics: {{copy: {program}}}\n")
    monkeypatch.setattr(batch, "execute", lambda *_, **__: pytest.fail("executed"))
    with pytest.raises(ValueError, match="is TorchScript, a program"):
        batch.run([str(tmp_path / "p.yaml")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- files that say something else than they should ---------------------------------------------------------------

LOADERS = {"Edit": Edit.load, "ActivationStats": ActivationStats.load, "WeightMasks": WeightMasks.load}


def written(path: Path, about: object, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    text = about if isinstance(about, str) else json.dumps(about)
    save_file(tensors or {"x": torch.zeros(1)}, path, {"about": text})
    return path


ABOUTS = [
    "no JSON",
    "",
    "[1]",
    "null",
    '"Edit"',
    "[" * 100_000,
    '{"a":' * 50_000,
    "9" * 5_000,
    '{"kind": ["x"]}',
    '{"kind": {"a": 1}}',
    '{"kind": "KIND"}',
    '{"kind": "KIND", "format": [2]}',
    '{"kind": "KIND", "format": 2}',
    '{"kind": "KIND", "format": 2, "shapes": 5, "counts": 5, "provenance": 5, "prompts": 5}',
    '{"kind": "KIND", "format": 2, "shapes": [1], "counts": [1], "provenance": {"model": "m"}, "prompts": [1]}',
    '{"kind": "KIND", "format": 2, "shapes": {"a": 3}, "counts": {"a": "x"}, "provenance": {"model": "m", "layers": 3'
    "}}",
    '{"kind": "KIND", "format": 2, "shapes": {"x": [1, 1]}, "counts": {"a": 1}, "provenance": {"model": 3, '
    '"layers": ["x"]}, "prompts": [], "whole": [[1]]}',
    '{"kind": "KIND", "format": 2, "shapes": {"x": [1, NaN]}, "counts": {"a": true}, "provenance": {"model": "m", '
    '"layers": [["x"]]}, "prompts": [], "whole": ["x"]}',
    '{"kind": "KIND", "format": 2, "shapes": {"x": [1, 1]}, "counts": {"a": 0}, "provenance": {"model": "m", "layers": '
    '["x", "y"]}, "prompts": null, "whole": ["y"]}',
]


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("about", ABOUTS, ids=range(len(ABOUTS)))
def test_whatever_metadata_says_the_error_is_a_sentence_that_names_the_file(tmp_path, kind, about):
    path = written(tmp_path / "bad.safetensors", about.replace("KIND", kind))
    with pytest.raises(ValueError, match=r"bad\.safetensors") as error:
        LOADERS[kind](path)
    assert len(str(error.value)) < 700


HEADERS = [
    b"",
    b"\x00" * 7,
    b"\xff" * 8 + b"{}",
    (2**40).to_bytes(8, "little") + b"{}",
    (2).to_bytes(8, "little") + b"[]",
    *(
        len(text).to_bytes(8, "little") + text
        for text in (
            b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b'{"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}',
            b'{"x":{"dtype":"EVIL","shape":[],"data_offsets":[0,0]}}',
            b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
            b'{"__metadata__":{"about":5}}',
        )
    ),
    b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.",  # a pickle
    b"PK\x03\x04 a torch.save",
    b"<!DOCTYPE html><html>not found</html>",
]


@pytest.mark.parametrize("content", HEADERS, ids=range(len(HEADERS)))
def test_whatever_bytes_a_file_holds_it_is_refused_and_nothing_is_executed(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(content)
    for load in LOADERS.values():
        with pytest.raises(ValueError, match=r"bad\.safetensors"):
            load(tmp_path / "bad.safetensors")
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.parquet is truncated or no parquet"):
        load_table(tmp_path / "bad.parquet")
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.json is truncated or no JSON"):
        load_json(tmp_path / "bad.json")
    assert not (tmp_path / "pwned").exists()


MODEL = {"model": "m"}
EDITS = [
    ({"a": [2**31, 2**31]}, ["a"], {}, r"layer a of this edit: \[2147483648, 2147483648\] is no shape"),
    ({"a": [2**16, 2**15]}, ["a"], {}, "layer a of this edit: .* is no shape"),
    ({n: [2**15, 2**15] for n in "xbc"}, ["b", "c"], {"x": torch.tensor([1])}, "sets 2,147,483,648 weights of whole"),
    ({"a": [2] * 9}, ["a"], {}, "is no shape"),
    ({"a": [2.0, 2]}, ["a"], {}, "is no shape"),
    ({"a": [True, 2]}, ["a"], {}, "is no shape"),
    ({"a": []}, ["a"], {}, "is no shape"),
    ({"a": [2, 2]}, ["b"], {"a": torch.tensor([1])}, "layer b of this edit: its shape is missing"),
    ({"a": [2, 2]}, [], {"a": torch.tensor([1]), "b": torch.tensor([1])}, "layer b of this edit: its shape is missing"),
    ({"a": [2, 2]}, [], {"b.values": torch.tensor([1.0])}, "layer . of this edit"),
    ({"a": [2, 2]}, [], {"a": torch.tensor([1], dtype=torch.uint64)}, "must be integers in one row"),
    ({"a": [2, 2]}, [], {"a": torch.tensor([1]), "a.values": torch.tensor([1])}, "values must be float16"),
    ({"a": [2, 2]}, [], {"a": torch.tensor([1]), "a.values": torch.ones(1).to(torch.float8_e4m3fn)}, "must be float16"),
    ({"a": [2, 2]}, ["a"], {"a.values": torch.ones(3).half()}, "4 positions need as many values; got"),
    ({"a\x1b[31m": [0]}, [], {}, r"layer a\\x1b\[31m of this edit"),
]


@pytest.mark.parametrize(("shapes", "whole", "tensors", "message"), EDITS, ids=range(len(EDITS)))
def test_an_edit_file_by_its_schema(tmp_path, shapes, whole, tensors, message):
    about = {"kind": "Edit", "format": FORMAT, "shapes": shapes, "whole": whole, "provenance": MODEL}
    with pytest.raises(ValueError, match=rf"bad\.safetensors: .*{message}"):
        Edit.load(written(tmp_path / "bad.safetensors", about, tensors))


def stats_file(path: Path, sums: torch.Tensor, counts: dict) -> Path:
    about = {"kind": "ActivationStats", "format": FORMAT, "counts": counts, "prompts": ["p"]}
    return written(path, about | {"provenance": {"model": "m", "layers": ["a"]}}, {"a": sums})


def test_statistics_and_masks_by_their_schema(tmp_path):
    path = tmp_path / "bad.safetensors"
    assert ActivationStats.load(stats_file(path, torch.ones(1, 2, 3), {"all": 1})).counts == {"all": 1}
    for sums, counts in (
        (torch.ones(2, 3), {"all": 1}),
        (torch.ones(1, 2, 3).double(), {"all": 1}),
        (torch.ones(2, 2, 3), {"all": 1}),
        (torch.ones(1, 2, 3), {"all": -1}),
        (torch.ones(1, 2, 3), {}),
    ):
        with pytest.raises(ValueError, match=r"bad\.safetensors: its (sums|groups)"):
            ActivationStats.load(stats_file(path, sums, counts))
    about = {"kind": "WeightMasks", "format": FORMAT, "provenance": MODEL, "shapes": {"a": [2, 4]}}
    good = {"a.columns": torch.tensor([1, 3], dtype=torch.int16), "a.counts": torch.tensor([[1, 1]], dtype=torch.int32)}
    assert WeightMasks.load(written(path, about, good)).steps == 1
    for name, tensor in (
        ("a.columns", torch.tensor([1, 4], dtype=torch.int16)),
        ("a.columns", torch.tensor([-1, 3], dtype=torch.int16)),
        ("a.columns", torch.tensor([1.0, 3.0])),
        ("a.counts", torch.tensor([[1, 2]], dtype=torch.int32)),
        ("a.counts", torch.tensor([[-1, 3]], dtype=torch.int32)),
        ("a.counts", torch.tensor([[2]], dtype=torch.int32)),
    ):
        with pytest.raises(ValueError, match="its columns and counts are not those of a mask 2 x 4"):
            WeightMasks.load(written(path, about, good | {name: tensor}))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"claims": []}',
        '{"claims": {"a": 1}, "facts": {}}',
        '{"claims": {}, "facts": 3}',
        "[" * 9999,
        '{"claims": {"a": {"verdict": "<b>", "relation": "exact", "value": 1, "bound": 1, "low": 0, "high": 0}}}',
    ],
)
def test_findings_that_are_none_are_a_sentence(tmp_path, content):
    (tmp_path / "04_x.json").write_text(content)
    with pytest.raises(ValueError, match=r"04_x\.json"):
        read_findings(tmp_path / "04_x.json")


# --- wrong results without a word -----------------------------------------------------------------------------------


def test_one_process_does_not_resume_what_two_began(micro, tmp_path, monkeypatch):
    options = OPTIONS | {"batch_size": 1, "checkpoint": tmp_path / "part"}
    whole = capture(micro, CAPTIONS, **OPTIONS | {"batch_size": 1})
    save = ActivationStats.save

    def save_and_die(self, path):
        save(self, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as two:
        two.setattr(activations, "processes", lambda: 2)
        two.setattr(activations, "shard", lambda items: items[::2])
        two.setattr(ActivationStats, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            capture(micro, CAPTIONS, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["part.0-of-2"]
    alone = capture(micro, CAPTIONS, **options)
    assert all(torch.equal(alone.sums[name], sums) for name, sums in whole.sums.items())
    assert not list(tmp_path.iterdir())  # what two left is of no use any more


@pytest.mark.parametrize(
    "indices",
    [
        *([True, False], [0.0], ["0"], "01", [-1], [4], [[0]], 0, None, [None], [], [2**70]),
        *([np.float64(1)], np.array([[0, 1]]), np.array([True]), torch.tensor([True])),
    ],
    ids=repr,
)
def test_indices_that_name_no_prompts_are_told_before_sampling(micro, monkeypatch, indices):
    monkeypatch.setattr(activations, "_add_batch", lambda *_: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=r"group 'A' (must be a list of whole numbers|holds no prompts|names prompt)"):
        capture(micro, CAPTIONS, groups={"A": indices}, **OPTIONS)


def test_indices_of_numpy_and_torch_are_indices(micro):
    groups = {"a": np.array([0, 1]), "b": torch.tensor([0, 1]), "c": range(2), "d": (1, 0), "e": [0, 1, 1]}
    stats = capture(micro, CAPTIONS[:2], groups=groups, steps=1, progress=False)
    assert stats.counts == {"a": 2, "b": 2, "c": 2, "d": 2, "e": 3}  # what stands twice counts twice


def test_a_run_folder_is_used_by_one_at_a_time(tmp_path):
    with batch.one_at_a_time(tmp_path):
        told = rf"is used by another run \(process {os.getpid()} on .*, since .*\): wait for its end, or name another"
        with pytest.raises(BlockingIOError, match=told), batch.one_at_a_time(tmp_path):
            pass
    with batch.one_at_a_time(tmp_path):  # what is left of the first is no lock
        assert (tmp_path / "run.lock").is_file()


def executed(folder: Path, digest: str, rate: float) -> Path:
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 04 · X")]), folder / "04_x.ipynb")
    claim = {"verdict": "holds", "relation": "at most", "value": rate, "bound": 1.0, "low": None, "high": None}
    save_json({"claims": {"less": claim}, "facts": {}}, folder / "findings" / "04_x.json")
    batch._sign(folder, "04_x", digest)
    return folder / "04_x.ipynb"


def test_a_notebook_counts_only_with_what_made_it_and_what_it_found(tmp_path):
    path = executed(tmp_path, "one", 0.5)
    assert batch._made_of(tmp_path, "04_x") == "one"
    assert "0.5 (at most 1)" in write_report([path], tmp_path / "report.html", "x").read_text()
    findings = load_json(tmp_path / "findings" / "04_x.json")
    findings["claims"]["less"]["value"] = 0.7  # as of another run
    save_json(findings, tmp_path / "findings" / "04_x.json")
    assert batch._made_of(tmp_path, "04_x") == ""  # so it is executed again
    with pytest.raises(ValueError, match=r"04_x\.json is not what 04_x\.ipynb found"):
        write_report([path], tmp_path / "report.html", "x")
    for content in ("", "{", "[]", '{"metadata": []}', '{"metadata": {"memsub": 3}}'):
        path.write_text(content)
        assert batch._made_of(tmp_path, "04_x") == ""


def test_a_changed_file_of_a_run_is_another_run(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "project", lambda: tmp_path)
    (tmp_path / "notebooks").mkdir()
    lists = {kind: str(tmp_path / f"{kind}.txt") for kind in ("memorized", "ordinary", "heldout")}
    for path in lists.values():
        save_text("a\nb\n", path)
    parameters = Parameters.checked({"data": {"prompts": lists}})
    before = batch._content(parameters)
    assert len(before) == 3
    save_text("a\nc\n", lists["ordinary"])
    assert batch._content(parameters) != before


def test_the_folder_of_parameters_is_where_a_run_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "project", lambda: tmp_path)
    named = Parameters.checked({"folder": "../elsewhere"})
    assert batch._folder(named, "x", None, 1) == tmp_path / "elsewhere"
    assert batch._folder(named, "x", tmp_path / "out", 1) == tmp_path / "out"
    assert batch._folder(named, "x", tmp_path / "out", 2) == tmp_path / "out" / "x"
    assert batch._folder(Parameters(), "x", None, 1) == Path("runs/x").resolve()


def test_two_parameter_files_do_not_share_a_folder(tmp_path):
    for part in ("a", "b"):
        save_text("model: tiny\n", tmp_path / part / "same.yaml")
    with pytest.raises(ValueError, match="two of these parameter files lead to one run folder"):
        batch.run([str(tmp_path / part / "same.yaml") for part in ("a", "b")], tmp_path / "out")


# --- text that is data ----------------------------------------------------------------------------------------------

HOSTILE = [
    "Now $20 or $30",
    "#cash$ $\\frac{",
    "<script>alert(1)</script>",
    "a | b | c",
    "one\n\n# two",
    "\u202egnp.exe",
    "nul \x00 nul",
    "\x1b[2J\x1b]0;owned\x07",
    "`code` ![x](http://127.0.0.1/x.png) [y](javascript:alert(1))",
    "data:image/png;base64,AAAA",
    "x" * 20_000,
    "word " * 5_000,
    "\ud83d half",
    "",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_caption_is_text_in_figures_sentences_and_the_report(tmp_path, monkeypatch, text):
    figure = plots.image_grid({text: np.zeros((1, 4, 4, 3), np.uint8)}, [text], title=text)
    figure.draw_without_rendering()
    assert not any(found.get_parse_math() for found in figure.findobj(Text) if "$" in found.get_text())
    lab_plots.attack_lines({"x": [{"iteration": 0, "similarity": 0.1, "replicates": False}]}, 0.5, text)
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda markdown: shown.append(markdown.data))
    result("{caption}", caption=text)
    assert "\n" not in shown[0] and printable(shown[0]) == shown[0].rstrip() and "](" not in shown[0]
    safe = text.encode("utf-8", "replace").decode()  # what a table or a page can hold
    outputs = [new_output("stream", name="stdout", text=safe), new_output("display_data", {"text/markdown": shown[0]})]
    path = tmp_path / "04_x.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 04 · X"), new_code_cell(outputs=outputs)]), path)
    report = write_report([path], tmp_path / "report.html", safe, {"model": safe}).read_text()
    assert report.count("<script") == 1
    assert not re.search(r"src=[\"']?http|href=[\"']?javascript", report)


@pytest.mark.parametrize(
    ("text", "shown"), [("a\x1b[31mb", "a\\x1b[31mb"), ("\u202eab", "\\u202eab"), ("ä 中 👍", "ä 中 👍")]
)
def test_what_a_terminal_is_shown(text, shown):
    assert printable(text) == shown


def test_papermill_writes_values_as_values():
    from papermill.translators import PythonTranslator

    evil = "\"; import os; os.abort() #\n'''\\"
    given = {"model": evil, "deletion": {"edits": {evil: evil}}, "x": [evil, None, 0.1]}
    namespace: dict = {}
    exec(PythonTranslator.codify(given), namespace)
    assert {name: namespace[name] for name in given} == given


# --- moments --------------------------------------------------------------------------------------------------------


def test_all_files_have_the_mode_that_the_umask_asks(tmp_path):
    for mask in (0o022, 0o027, 0o077):
        before = os.umask(mask)
        try:
            save_tensors({"x": torch.zeros(1)}, tmp_path / "a", {})
            save_table(pd.DataFrame({"x": [1]}), tmp_path / "b")
            save_json(1, tmp_path / "c")
        finally:
            os.umask(before)
        assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "abc"} == {0o666 & ~mask}


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("a.json", f"a.json.{os.getpid()}.tmp"):  # what earlier versions wrote to
        (tmp_path / name).symlink_to(victim)
    save_json([1], tmp_path / "a.json")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "a.json").is_symlink() and load_json(tmp_path / "a.json") == [1]


def test_what_a_killed_writer_left_is_cleaned_and_what_a_living_one_writes_is_not(tmp_path, monkeypatch):
    if not (writer := os.fork()):
        write_atomically(tmp_path / "a", lambda path: (path.write_text("half"), time.sleep(60)))
        os._exit(0)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("*/part")):
        assert time.monotonic() < end
        time.sleep(0.01)
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))  # long ago
    monkeypatch.setattr(files, "_TIDY", set())
    save_text("x", tmp_path / "b")
    assert left.exists()
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    files._TIDY.clear()
    save_text("x", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="could not be written, and is as it was before"):
        save_text("x", tmp_path / "file" / "below")
    with pytest.raises(OSError, match="cannot be written"):
        check_writable(tmp_path / "file" / "below")
    with pytest.raises(IsADirectoryError, match=r"it is a folder\. Name a file"):
        check_writable(tmp_path)
    save_text("x", tmp_path / ("long" * 60 + ".json"))  # 245 characters: the temporary name is not longer
    with pytest.raises(OSError, match="could not be written"):
        save_text("x", tmp_path / ("long" * 70))

    def vanish(path: Path) -> None:
        path.write_text("x")
        path.parent.rename(tmp_path / "moved")

    with pytest.raises(OSError, match="could not be written"):
        write_atomically(tmp_path / "b", vanish)
    assert not (tmp_path / "b").exists()


def test_a_lock_ends_with_its_holder(tmp_path):
    with exclusive(tmp_path) as mine, exclusive(tmp_path) as second:
        assert (mine, second) == (True, False)
    with exclusive(tmp_path) as mine:
        assert mine
    with exclusive(tmp_path / "nothing") as mine:
        assert mine is None


@pytest.mark.slow
def test_no_worker_goes_on_when_its_run_is_killed(tmp_path):
    code = (
        "import time, sys, os, multiprocessing\nfrom pathlib import Path\n"
        "from concurrent.futures import ProcessPoolExecutor\nfrom memsub_extra.notebooks.execution import begin\n"
        "def work(path):\n    while True:\n        Path(path).write_text(str(time.time())); time.sleep(0.05)\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(2, multiprocessing.get_context('spawn'), begin, (1,))\n"
        "    pool.submit(work, sys.argv[1]).result()\n"
    )
    (tmp_path / "run.py").write_text(code)
    beat = tmp_path / "beat"
    run = subprocess.Popen([sys.executable, str(tmp_path / "run.py"), str(beat)])
    end = time.monotonic() + 120
    while not beat.exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    run.kill()
    run.wait()
    time.sleep(1)
    last = beat.read_text()
    time.sleep(0.5)
    assert beat.read_text() == last
