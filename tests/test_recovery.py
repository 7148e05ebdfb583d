"""Training images from dead addresses: local servers stand in for the web and its archives, and behave badly."""

import gzip
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from memsub_extra.archives import recovery
from memsub_extra.archives import session as sessions
from memsub_extra.archives.recovery import PoliteSession, described, fetch_and_describe, fetch_images

RNG = np.random.default_rng(0)


def png(side: int = 80) -> bytes:
    buffer = io.BytesIO()
    blocks = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def warc(url: str, body: bytes) -> bytes:
    """A record as Common Crawl keeps it: its own gzip member."""
    http = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n" + body
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nContent-Length: {len(http)}\r\n"
    head += "Content-Type: application/http; msgtype=response\r\n\r\n"
    return gzip.compress(head.encode() + http + b"\r\n\r\n")


@pytest.fixture
def web(monkeypatch):
    """The web: `web.answers` maps a path to a list of answers, the last of which is repeated."""
    answers: dict[str, list[tuple[int, dict, bytes]]] = {}
    asked: list[tuple[float, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((time.monotonic(), self.path))
            given = answers.get(self.path, [(404, {}, b"gone")])
            status, headers, body = given.pop(0) if len(given) > 1 else given[0]
            if span := self.headers.get("Range"):
                first, last = map(int, span.removeprefix("bytes=").split("-"))
                body = body[first : last + 1]
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    http.answers, http.asked, http.address = answers, asked, f"http://127.0.0.1:{http.server_address[1]}/"
    monkeypatch.setattr(recovery, "WAYBACK", http.address + "web/")
    monkeypatch.setattr(recovery, "COMMON_CRAWL", http.address + "cc/")
    monkeypatch.setattr(recovery, "COMMON_CRAWL_DATA", http.address + "data/")
    monkeypatch.setattr(recovery, "CRAWLS", ("CC-1", "CC-2"))
    yield http
    http.shutdown()
    http.server_close()


@pytest.fixture
def session():
    return PoliteSession(timeout=1, pause=0, private=True)


def rows(web, *names: str) -> pd.DataFrame:
    return pd.DataFrame({"url": [web.address + n for n in names], "index": range(3, 3 + len(names))})


def in_common_crawl(web, url: str, body: bytes) -> None:
    before, record = b"another record", warc(url, body)
    web.answers["/data/file.warc.gz"] = [(200, {}, before + record + b"and another")]
    line = {"status": "200", "filename": "file.warc.gz", "offset": str(len(before)), "length": str(len(record))}
    lines = json.dumps({"status": "404"}) + "\n" + json.dumps(line | {"timestamp": "20190823010203"})
    asked = "/cc/CC-2-index?url=" + recovery.quote(url, safe="") + "&output=json"
    web.answers[asked] = [(200, {}, lines.encode())]


def test_each_source_is_asked_in_turn_and_named(web, session, tmp_path):
    live, archived, crawled = png(), png(), png()
    table = rows(web, "here.png", "archived.png", "crawled.png", "nowhere.png")
    web.answers["/here.png"] = [(200, {}, live)]
    capture = f"/web/20200102030405id_/{web.address}archived.png"
    web.answers[f"/web/2021id_/{web.address}archived.png"] = [(302, {"Location": capture}, b"")]
    web.answers[capture] = [(200, {}, archived)]
    in_common_crawl(web, web.address + "crawled.png", crawled)
    brought = fetch_images(table, tmp_path / "gt", session=session, progress=False)
    assert brought["source"].tolist() == ["address", "Wayback Machine", "Common Crawl", ""]
    assert brought["when"].tolist()[1:] == ["2020-01-02", "2019-08-23", ""]
    for index, body in zip("345", (live, archived, crawled), strict=True):
        saved = np.asarray(Image.open(tmp_path / "gt" / index / "0.png"))
        np.testing.assert_array_equal(saved, np.asarray(Image.open(io.BytesIO(body))))
    assert "3 of 4 training images: 1 from Common Crawl, 1 from Wayback Machine, 1 from address" in described(brought)


def test_error_pages_stubs_and_halves_are_no_images(web, session, tmp_path):
    table = rows(web, "page.png", "icon.png", "half.png", "short.png")
    web.answers["/page.png"] = [(200, {}, b"<html>this image is no longer available</html>")]
    web.answers["/icon.png"] = [(200, {}, png(16))]
    web.answers["/half.png"] = [(200, {}, png()[:100])]
    web.answers["/short.png"] = [(200, {"Content-Length": "100000"}, png())]
    brought = fetch_images(table, tmp_path / "gt", session=session, progress=False)
    assert brought["source"].tolist() == [""] * 4
    assert not list((tmp_path / "gt").rglob("*.png"))


def test_a_second_call_asks_only_for_what_is_missing(web, session, tmp_path):
    table = rows(web, "here.png", "late.png")
    web.answers["/here.png"] = [(200, {}, png())]
    first = fetch_images(table, tmp_path / "gt", session=session, progress=False)
    web.answers["/late.png"] = [(200, {}, png())]
    web.asked.clear()
    second = fetch_images(table, tmp_path / "gt", session=session, progress=False)
    assert [path for _, path in web.asked] == ["/late.png"]
    assert second["source"].tolist() == ["address", "address"]
    assert second["sha256"][0] == first["sha256"][0] != ""
    (tmp_path / "gt" / "sources.json").unlink()
    assert fetch_images(table, tmp_path / "gt", session=session, progress=False)["source"].tolist() == ["before"] * 2


def test_images_that_look_alike_are_suspicious(web, session, tmp_path):
    placeholder = png()
    for name in ("a.png", "b.png", "c.png"):
        web.answers[f"/{name}"] = [(200, {}, png() if name == "c.png" else placeholder)]
    brought = fetch_images(rows(web, "a.png", "b.png", "c.png"), tmp_path / "gt", session=session, progress=False)
    assert brought["same_as"].tolist() == ["", "3", ""]
    assert "1 look like an earlier one, perhaps placeholders: 4 like 3" in described(brought)


def test_a_busy_server_is_given_the_time_it_asks_for(web, tmp_path):
    web.answers["/busy.png"] = [(429, {"Retry-After": "1"}, b""), (200, {}, png())]
    began = time.monotonic()
    brought = fetch_images(
        rows(web, "busy.png"), tmp_path / "gt", session=PoliteSession(timeout=1, pause=0, private=True), progress=False
    )
    assert brought["source"].tolist() == ["address"]
    assert time.monotonic() - began >= 1


def test_a_host_gets_a_pause_between_requests(web, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        web.answers[f"/{name}"] = [(200, {}, png())]
    fetch_images(
        rows(web, "a.png", "b.png", "c.png"),
        tmp_path,
        session=PoliteSession(timeout=1, pause=0.2, private=True),
        progress=False,
    )
    times = sorted(at for at, _ in web.asked)
    assert np.diff(times).min() >= 0.15


def test_a_list_without_addresses_is_refused(web, tmp_path):
    with pytest.raises(ValueError, match="no column 'url'"):
        fetch_images(rows(web, "a.png")[["index"]], tmp_path)


@pytest.mark.parametrize(
    "index",
    ["../outside", "/tmp/x", "", ".", "..", "a/b", "a\\b", "C:x", " x", "x\n", "x\0", "x" * 201, "\u00e9" * 101],
)
def test_an_index_that_is_no_plain_name_is_refused_before_anything_is_asked_for(web, session, tmp_path, index):
    web.answers["/a.png"] = web.answers["/b.png"] = [(200, {}, png())]
    table = rows(web, "a.png", "b.png").assign(index=["fine", index])
    with pytest.raises(ValueError, match=r"^row 2 of the prompt list has the index .*, which is no plain name"):
        fetch_images(table, tmp_path / "in" / "gt", session=session, progress=False)
    assert not web.asked
    assert not list(tmp_path.iterdir())


def test_plain_names_are_kept(web, session, tmp_path):
    names = ["0", "caption 3", "a.b", "-1", "x" * 200, "\u00e9"]
    table = rows(web, *["a.png"] * len(names)).assign(index=names)
    web.answers["/a.png"] = [(200, {}, png())]
    brought = fetch_images(table, tmp_path / "gt", session=session, progress=False)
    assert brought["source"].eq("address").all()
    assert sorted(path.parent.name for path in (tmp_path / "gt").rglob("*.png")) == sorted(names)


def test_two_rows_of_one_index_are_refused_before_anything_is_asked_for(web, session, tmp_path):
    table = rows(web, "a.png", "b.png", "c.png").assign(index=[5, 6, 5])
    with pytest.raises(ValueError, match="rows 1 and 3 of the prompt list have one index, '5'"):
        fetch_images(table, tmp_path / "gt", session=session, progress=False)
    assert not web.asked
    assert not list(tmp_path.iterdir())


def test_a_list_of_any_source_is_fetched_and_described(web, tmp_path, monkeypatch):
    """As the registry of sources of training images calls it."""
    from memsub_extra.run.data import TRAINING_IMAGES

    monkeypatch.setitem(TRAINING_IMAGES, "web archives", fetch_and_describe)
    monkeypatch.setattr(sessions, "PAUSE", 0)
    monkeypatch.setattr(sessions, "PRIVATE", True)
    web.answers["/here.png"] = [(200, {}, png())]
    text = TRAINING_IMAGES["web archives"](rows(web, "here.png", "gone.png"), tmp_path / "gt")
    assert text.splitlines()[0] == "1 of 2 training images: 1 from address"
    assert "1 were not to be had, for example 4: HTTPError: 404" in text
    assert (tmp_path / "gt" / "3" / "0.png").is_file()
