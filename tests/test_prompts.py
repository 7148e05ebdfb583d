"""Prompt lists in their published forms, and everything that can be wrong with them."""

import hashlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from PIL import Image

from memsub import downloads, recovery
from memsub.__main__ import main
from memsub.metrics import SSCD
from memsub.prompts import Prompts, load_prompts, near_duplicates, read_prompts, too_long

CAPTIONS = ["A red house; by night", 'The "Best" Podcast', "Ein Haus am Wasser, Öl"]


def test_the_published_forms(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(CAPTIONS) + "\n", encoding="utf-8")
    rows = [{"caption": c, "index": i, "url": f"http://x/{i}.jpg"} for i, c in enumerate(CAPTIONS)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = pd.DataFrame({"Caption": CAPTIONS, "URL": "http://x/1.jpg", "type": ["VM", "TM", "N"], "Index": [5, 6, 7]})
    table.to_csv(tmp_path / "a.csv", sep=";")
    table.rename(columns=str.lower).rename(columns={"type": "overfit_type"}).to_parquet(tmp_path / "a.parquet")
    assert read_prompts(tmp_path / "a.txt")["prompt"].tolist() == CAPTIONS
    jsonl = read_prompts(tmp_path / "a.jsonl")
    assert jsonl["prompt"].tolist() == CAPTIONS
    assert jsonl["url"][2] == "http://x/2.jpg"
    for name in ("a.csv", "a.parquet"):
        found = read_prompts(tmp_path / name)
        assert found["prompt"].tolist() == CAPTIONS[:2]  # the third is marked as not memorized
        assert found["kind"].tolist() == ["verbatim", "template"]
        assert found["index"].tolist() == [5, 6]
    assert load_prompts(tmp_path / "a.csv").memorized == CAPTIONS[:2]
    together = load_prompts({"memorized": tmp_path / "a.csv", "heldout": tmp_path / "a.txt"})
    assert [str(i) for i in together.memorized_rows["index"]] == ["5", "6"]  # names of folders of training images


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"", "holds no captions"),
        ("a.txt", b" \n\n", "holds no captions"),
        ("a.txt", b"\xff\xfe\x00\x9f", "is not UTF-8"),
        ("a.txt", b"\x00\x01\x02", "holds no captions"),
        ("a.jsonl", b'{"caption": "a"}\n{"cap', "line 2, is no JSON"),
        ("a.jsonl", b'{"text": "a"}', "no column 'caption'; its columns are: text"),
        ("a.csv", b"URL;type\nx;VM\n", "no column 'caption'; its columns are: url, type"),
        ("a.csv", b"", "no table"),
        ("a.parquet", b"PAR1 half a file", "truncated or no parquet"),
        ("a.xls", b"x", "unknown kind '.xls'"),
    ],
)
def test_a_file_that_is_no_list_is_named(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*{told}"):
        read_prompts(tmp_path / name)


def test_unknown_lists():
    with pytest.raises(ValueError, match=r"no prompt list named 'sd15'\. Did you mean 'sd14'"):
        load_prompts("sd15")
    with pytest.raises(FileNotFoundError, match=r"no prompt file at nothing\.txt"):
        load_prompts("nothing.txt")


def test_near_duplicates_and_captions_that_are_cut(pipe):
    captions = ["A cat on a red sofa in the sun", "Something else entirely", "A cat on a red sofa in the sun!"]
    assert near_duplicates(captions) == [None, None, 0]
    assert list(too_long(["a red heart", "a red heart " * 20], pipe.tokenizer)) == [1]
    table = pd.DataFrame({"prompt": [*captions, captions[0]], "kind": ["memorized"] * 3 + ["heldout"]})
    kept = Prompts(table, ("memorized",)).without_near_duplicates()
    assert kept.memorized == captions[:2]
    assert kept.of("heldout") == captions[:1]


# --- downloads, from a server of our own ---------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves what `server.files` holds; "half" sends half of what it promises, "slow" nothing for a while."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.lstrip("/")
            if name == "slow":
                stop.wait(5)
                return
            body = files.get(name)
            self.send_response(404 if body is None else 200)
            body = body or b""
            self.send_header("Content-Length", str(len(body) * (2 if name.startswith("half") else 1)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    stop = threading.Event()
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    http.files, http.address = files, f"http://127.0.0.1:{http.server_address[1]}/"
    monkeypatch.setenv("MEMSUB_CACHE", str(tmp_path / "cache"))
    yield http
    stop.set()
    http.shutdown()
    http.server_close()


def sources(monkeypatch, server, name: str) -> None:
    monkeypatch.setitem(downloads.SOURCES, "sd14", {"memorized": server.address + name})


def test_a_list_is_fetched_once_and_its_checksum_kept(server, monkeypatch):
    server.files["list.txt"] = b"one\ntwo\n"
    sources(monkeypatch, server, "list.txt")
    path = downloads.fetch("sd14", "memorized")
    assert path.read_bytes() == b"one\ntwo\n"
    lock = json.loads((downloads.cache() / "checksums.json").read_text())
    assert lock == {path.name: hashlib.sha256(b"one\ntwo\n").hexdigest()}
    server.files["list.txt"] = b"something else"
    assert downloads.fetch("sd14", "memorized").read_bytes() == b"one\ntwo\n"  # cached
    path.unlink()
    with pytest.raises(ValueError, match="not what was published or fetched first"):
        downloads.fetch("sd14", "memorized")
    assert not path.exists()


def test_the_fetch_command_writes_the_checksums_it_saw(server, monkeypatch, tmp_path, capsys):
    rows = [{"caption": "red", "index": 3, "url": server.address + "red.png"}]
    rows.append({"caption": "gone", "index": 4, "url": server.address + "gone.png"})
    server.files |= {
        "list.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "sscd.pt": b"metric",
        "red.png": png("red"),
    }
    sources(monkeypatch, server, "list.jsonl")
    monkeypatch.setitem(SSCD, "sscd_disc_large", server.address + "sscd.pt")
    monkeypatch.setattr(recovery, "SOURCES", recovery.SOURCES[:1])  # not the web's archives
    command = ["fetch", "sd14", "--images", str(tmp_path / "gt")]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "1 of 2 training images" in told
    lock = json.loads((downloads.cache() / "checksums.json").read_text())
    assert lock["sscd.pt"] == hashlib.sha256(b"metric").hexdigest()
    assert all(checksum in told for checksum in lock.values())
    (downloads.cache() / "sscd.pt").write_bytes(b"something else")
    assert main(command) == 1
    assert "sscd.pt is not what was fetched first" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["missing.txt", "half.txt", "slow"])
def test_a_server_that_fails_is_told_and_leaves_nothing(server, monkeypatch, name):
    server.files["half.txt"] = b"one\n" * 1000
    sources(monkeypatch, server, name)
    with pytest.raises(ConnectionError, match=rf"could not be fetched from {server.address}{name}.*put that file at"):
        downloads.fetch("sd14", "memorized", timeout=0.5)
    assert not list(downloads.cache().glob("*.txt"))


def png(colour) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 70), colour).save(buffer, "PNG")
    return buffer.getvalue()
