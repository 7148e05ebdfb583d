"""Edits on a hub: a local server that speaks the hub's API for the calls that are made."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pandas as pd
import pytest
import torch

from memsub.models import fingerprint
from memsub.pruning import Edit
from memsub_extra.archives.hub import edit_from_hub, push_edit

REPO = "somebody/an-edit"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one repository; `hub.files` is what lies in it, `hub.sent` counts the bytes of each that it sent."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    files: dict[str, bytes] = {}
    sent: dict[str, int] = {}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, value=None, body=b"", status=200, **headers):
            body = json.dumps(value).encode() if value is not None else body
            self.send_response(status)
            for name, text in {"Content-Length": str(len(body)), "X-Repo-Commit": "0" * 40, **headers}.items():
                self.send_header(name, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self):
            given = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                self.answer({"url": f"{http.address}/{REPO}"})
            elif "/preupload/" in self.path:
                wanted = json.loads(given)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]
                self.answer({"files": modes})
            elif "/commit/" in self.path:
                for line in map(json.loads, given.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.answer({"commitUrl": f"{http.address}/{REPO}/commit/0", "commitOid": "0" * 40})
            else:  # the check of the card's front matter
                self.answer({"errors": [], "warnings": []})

        def do_GET(self):
            name = self.path.partition("/resolve/")[2].partition("/")[2]
            if name not in files:
                self.answer({"error": "Entry not found"}, status=404, **{"X-Error-Code": "EntryNotFound"})
                return
            body = files[name]
            if span := self.headers.get("Range"):
                first, last = span.removeprefix("bytes=").split("-")
                body = body[int(first) : int(last or len(body)) + 1]
            if self.command == "GET":
                sent[name] = sent.get(name, 0) + len(body)
            self.answer(body=body, ETag='"1"')

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.files, http.sent, http.address = files, sent, f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


@pytest.fixture
def edit(micro):
    """Large enough that its head is not the whole of it."""
    n = 200_000
    return Edit({"a.layer": torch.arange(0, 2 * n, 2)}, {"a.layer": (1000, 1000)}, {"model": fingerprint(micro)})


def test_an_edit_goes_to_the_hub_and_comes_back(hub, micro, edit):
    table = pd.DataFrame({"model": ["unedited", "edited"], "replicated": [1.0, 0.25]})
    address = push_edit(edit, REPO, audit=table, token="hf_x", endpoint=hub.address)
    assert address == f"{hub.address}/{REPO}"
    card = hub.files["README.md"].decode()
    assert "| edited | 0.25 |" in card
    assert f'edit_from_hub("{REPO}", pipe)' in card
    assert fingerprint(micro)[:12] in card
    again = edit_from_hub(REPO, micro, endpoint=hub.address)
    assert torch.equal(again.positions["a.layer"], edit.positions["a.layer"])
    assert again.provenance == edit.provenance


def test_the_edit_of_another_model_is_refused_before_it_is_downloaded(hub, other_micro, edit):
    push_edit(edit, REPO, token="hf_x", endpoint=hub.address)
    with pytest.raises(ValueError, match=f"the edit in {REPO} was made for another model"):
        edit_from_hub(REPO, other_micro, endpoint=hub.address)
    assert hub.sent["edit.safetensors"] < 0.2 * len(hub.files["edit.safetensors"])


def test_names_and_repositories_that_are_wrong_are_refused(hub, micro, edit):
    for wrong in ("an-edit", "a/b/c", "/x"):
        with pytest.raises(ValueError, match=rf"named 'owner/name'; got '{wrong}'"):
            push_edit(edit, wrong, endpoint=hub.address)
        with pytest.raises(ValueError, match=rf"named 'owner/name'; got '{wrong}'"):
            edit_from_hub(wrong, micro, endpoint=hub.address)
    from safetensors.torch import save

    hub.files["edit.safetensors"] = save({"x": torch.zeros(1)}, {"format": "pt"})
    with pytest.raises(ValueError, match="holds no Edit of memsub"):
        edit_from_hub(REPO, micro, endpoint=hub.address)
