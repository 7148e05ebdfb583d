"""Training images from dead addresses: local servers stand in for the web and its archives, and behave badly."""

import contextlib
import gzip
import io
import json
import socket
import threading
import time

import numpy as np
import pandas as pd
import pytest
import requests
from PIL import Image

from memsub.io.files import save_json
from memsub.io.images import rgb
from memsub_extra.archives import TRAINING_IMAGES, recovery
from memsub_extra.archives import session as sessions
from memsub_extra.archives.recovery import PoliteSession, described, fetch_and_describe, fetch_images
from servers import serving

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

    def answer(request):
        asked.append((time.monotonic(), request.path))
        http.headers.append(dict(request.headers))
        given = answers.get(request.path, [(404, {}, b"gone")])
        status, headers, body = given.pop(0) if len(given) > 1 else given[0]
        if (span := request.headers.get("Range")) and not http.ignores_ranges:
            first, last = map(int, span.removeprefix("bytes=").split("-"))
            body = body[first : last + 1]
        return status, headers, body

    with serving(answer) as http:
        http.headers, http.ignores_ranges = [], False
        http.answers, http.asked = answers, asked
        monkeypatch.setattr(recovery, "WAYBACK", http.address + "web/")
        monkeypatch.setattr(recovery, "COMMON_CRAWL", http.address + "cc/")
        monkeypatch.setattr(recovery, "COMMON_CRAWL_DATA", http.address + "data/")
        monkeypatch.setattr(recovery, "CRAWLS", ("CC-1", "CC-2"))
        yield http


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
    monkeypatch.setitem(TRAINING_IMAGES, "web archives", fetch_and_describe)
    monkeypatch.setattr(sessions, "PAUSE", 0)
    monkeypatch.setattr(sessions, "PRIVATE", True)
    web.answers["/here.png"] = [(200, {}, png())]
    text = TRAINING_IMAGES["web archives"](rows(web, "here.png", "gone.png"), tmp_path / "gt")
    assert text.splitlines()[0] == "1 of 2 training images: 1 from address"
    assert "1 were not to be had, for example 4: HTTPError: 404" in text
    assert (tmp_path / "gt" / "3" / "0.png").is_file()


# --- hosts and archives that misbehave ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///etc/passwd", "is no address of the web"),
        ("ftp://example.org/a.png", "is no address of the web"),
        ("//example.org/a.png", "is no address of the web"),
        ("data:image/png;base64,xx", "is no address of the web"),
        ("no address", "is no address of the web"),
        ("http://[::1", "is no address"),
        ("http://127.0.0.1:{port}/a.png", "of this machine or of a private network"),
        ("http://localhost:{port}/a.png", "of this machine or of a private network"),
        ("http://2130706433:{port}/a.png", "of this machine or of a private network"),
        ("http://127.1:{port}/a.png", "of this machine or of a private network"),
    ],
)
def test_only_hosts_of_the_internet_are_asked(web, monkeypatch, tmp_path, url, why):
    web.answers["/a.png"] = [(200, {}, png())]
    monkeypatch.setattr(recovery, "SOURCES", recovery.SOURCES[:1])
    url = url.format(port=web.server_address[1])
    table = pd.DataFrame({"url": [url], "index": [3]})
    brought = fetch_images(table, tmp_path / "gt", session=PoliteSession(timeout=1, pause=0), progress=False)
    assert why in brought["failed"][0]
    assert not web.asked


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"],
)
def test_private_addresses(address):
    for same in (address, f"::ffff:{address}"):
        with pytest.raises(ValueError, match="is an address of this machine or of a private network"):
            sessions.check_public(same)


@pytest.mark.parametrize("address", ["::1", "::", "fe80::1%eth0", "fd00::1", "2002:7f00:1::", "ff02::1"])
def test_private_addresses_of_version_6(address):
    with pytest.raises(ValueError, match="is an address of this machine or of a private network"):
        sessions.check_public(address)


def test_public_addresses():
    for address in ("93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34"):
        sessions.check_public(address)


def test_redirects_are_checked_like_addresses(web, session, monkeypatch, tmp_path):
    """A host that anybody may have bought by now sends on to one of this network."""
    monkeypatch.setattr(recovery, "SOURCES", recovery.SOURCES[:1])

    def check(address: str) -> None:
        checked.append(address)
        if len(checked) > 2:  # the first host, before and after the connection
            raise sessions._Private(f"{address} is private")

    checked: list[str] = []
    monkeypatch.setattr(sessions, "check_public", check)
    web.answers["/a.png"] = [(302, {"Location": "/secret.png"}, b"")]
    table = rows(web, "a.png")
    brought = fetch_images(table, tmp_path, session=PoliteSession(timeout=1, pause=0), progress=False)
    assert [path for _, path in web.asked] == ["/a.png"]
    assert "is private" in brought["failed"][0]
    web.answers["/a.png"] = [(302, {"Location": "file:///etc/passwd"}, b"")]
    assert "is no address of the web" in fetch_images(table, tmp_path, session=session, progress=False)["failed"][0]
    web.answers["/a.png"] = [(302, {"Location": "/a.png"}, b"")]
    assert "redirects without end" in fetch_images(table, tmp_path, session=session, progress=False)["failed"][0]


def test_no_credentials_go_to_hosts_of_a_list(web, session, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    web.answers["/a.png"] = [(200, {}, b"x")]
    session.get(web.address + "a.png")
    assert "Authorization" not in web.headers[-1]


def test_answers_have_limits(web, session):
    page = gzip.compress(bytes(10_000_000))
    web.answers["/bomb"] = [(200, {"Content-Encoding": "gzip"}, page)]
    web.answers["/large"] = [(200, {}, bytes(200_000))]
    assert len(page) < 20_000
    for name in ("bomb", "large"):
        with pytest.raises(sessions.Refused, match="is larger than 100,000 bytes"):
            session.get(web.address + name, limit=100_000)
    web.answers["/busy"] = [(503, {"Retry-After": "999999"}, b"")]
    with pytest.raises(sessions.Refused, match="is busy"):
        session.get(web.address + "busy")


@pytest.mark.parametrize("where", ["headers", "body"])
def test_a_server_that_sends_a_byte_now_and_then_is_cut_off(where):
    """It keeps within every timeout between two bytes."""
    listening = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connected, _ = listening.accept()
        with connected, contextlib.suppress(OSError):
            connected.sendall(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if where == "body" else b"X: "))
            for _ in range(200):
                connected.sendall(b"x")
                time.sleep(0.05)

    threading.Thread(target=drip, daemon=True).start()
    began = time.monotonic()
    with listening, pytest.raises(requests.RequestException):
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        PoliteSession(timeout=1, pause=0, private=True, seconds=0.3).get(address)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("change", "body"),
    [
        ({}, b"<html>busy</html>"),
        ({"filename": "../../account"}, None),
        ({"filename": "/etc/passwd"}, None),
        ({"offset": "-5"}, None),
        ({"length": "99999999999"}, None),
        ({"length": "5"}, None),
        ({"offset": "many"}, None),
        ({"filename": None}, None),
        ({"timestamp": None}, None),
    ],
)
def test_a_broken_record_ends_nothing(web, session, tmp_path, change, body):
    """The record before the right one is broken: the right one is taken, and the other row gets its image."""
    crawled, here = png(), png()
    in_common_crawl(web, web.address + "crawled.png", crawled)
    web.answers["/here.png"] = [(200, {}, here)]
    asked = "/cc/CC-2-index?url=" + recovery.quote(web.address + "crawled.png", safe="") + "&output=json"
    line = json.loads(web.answers[asked][0][2].splitlines()[1])
    broken = {k: v for k, v in (line | change).items() if v is not None}
    if body:
        web.answers["/data/page"] = [(200, {}, body)]
        broken |= {"filename": "page", "offset": "0", "length": str(len(body))}
    web.answers[asked] = [(200, {}, b"\n".join([b"{", b"[]", json.dumps(broken).encode(), json.dumps(line).encode()]))]
    brought = fetch_images(rows(web, "crawled.png", "here.png"), tmp_path / "gt", session=session, progress=False)
    assert brought["source"].tolist() == ["Common Crawl", "address"]
    assert all(
        path.startswith(("/data/file", "/data/page", "/cc/")) for _, path in web.asked if path[1:3] in ("da", "cc")
    )
    np.testing.assert_array_equal(rgb(tmp_path / "gt" / "3" / "0.png"), rgb(crawled))


def test_records_have_limits(web, session, monkeypatch):
    """An archive that ignores the range sends all of itself; a record of a few bytes unpacks to gigabytes."""
    url = web.address + "x.png"
    in_common_crawl(web, url, png())
    assert recovery.from_common_crawl(session, url).source == "Common Crawl"
    monkeypatch.setattr(recovery, "MOST_BYTES", 2_000)
    in_common_crawl(web, url, bytes(1_000_000))
    with pytest.raises(ValueError, match="no crawl holds"):
        recovery.from_common_crawl(session, url)
    web.ignores_ranges = True
    monkeypatch.setattr(recovery, "MOST_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="no crawl holds"):
        recovery.from_common_crawl(session, url)


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://a.org/x.png#part", "http://a.org/x.png"),
        ("http://a.org/b/../x.png", "http://a.org/x.png"),
        ("http://a.org/../../../../save/http://evil.org", "http://a.org/save/http://evil.org"),
        ("http://a.org/%2e%2e/%2E%2E/%2e%2e/%2e%2e/x.png", "http://a.org/x.png"),
        ("http://a.org/%252e%252e/x.png", "http://a.org/%252e%252e/x.png"),
        ("http://a.org/ä b.png?q=../..", "http://a.org/%C3%A4%20b.png?q=../.."),
    ],
)
def test_an_address_reaches_no_other_page_of_an_archive(web, session, url, asked):
    assert recovery.canonical(url) == asked
    with pytest.raises(requests.RequestException):
        recovery.from_wayback(session, url)
    assert web.asked[-1][1] == f"/web/2021id_/{asked}"


def test_what_came_is_recorded_when_the_rest_stops(web, session, monkeypatch, tmp_path):
    web.answers["/here.png"] = [(200, {}, png())]
    held = threading.Event()

    def source(session, url):
        if url.endswith("here.png"):
            return recovery.from_address(session, url)
        held.wait(5)
        raise KeyboardInterrupt

    monkeypatch.setattr(recovery, "SOURCES", (source,))
    monkeypatch.setattr(recovery, "save_json", lambda *args: (save_json(*args), held.set()))
    with pytest.raises(KeyboardInterrupt):
        fetch_images(rows(web, "slow.png", "here.png"), tmp_path / "gt", session=session, progress=False)
    assert json.loads((tmp_path / "gt" / "sources.json").read_text())["4"]["source"] == "address"


def test_rows_of_one_index_and_one_address_are_one_image(web, session, tmp_path):
    web.answers["/a.png"] = [(200, {}, png())]
    table = rows(web, "a.png", "a.png", "a.png").assign(index=[5, "5", 5.0])
    brought = fetch_images(table, tmp_path / "gt", session=session, progress=False)
    assert brought["index"].tolist() == ["5"]
    assert len(web.asked) == 1


def test_rows_without_index_or_address_are_told(web, session, tmp_path):
    web.answers["/a.png"] = [(200, {}, png())]
    table = rows(web, "a.png", "b.png", "c.png").assign(index=[5, None, 7], url=[web.address + "a.png", "x", None])
    with pytest.warns(UserWarning, match="2 of 3 rows of the prompt list have no index or no url"):
        brought = fetch_images(table, tmp_path / "gt", session=session, progress=False)
    assert brought["index"].tolist() == ["5"]


def test_what_lies_in_the_folder_is_looked_at(web, session, tmp_path):
    """A file of any suffix counts as there, a broken one does not; nothing leaves the folder through a link."""
    for name in ("a.png", "b.png", "c.png"):
        web.answers[f"/{name}"] = [(200, {}, png())]
    (tmp_path / "gt" / "3").mkdir(parents=True)
    Image.new("RGB", (70, 70)).save(tmp_path / "gt" / "3" / "photo.JPG", "JPEG")
    (tmp_path / "gt" / "4").mkdir()
    (tmp_path / "gt" / "4" / "0.png").write_bytes(png()[:50])
    (tmp_path / "outside").mkdir()
    (tmp_path / "gt" / "5").symlink_to(tmp_path / "outside")
    brought = fetch_images(rows(web, "a.png", "b.png", "c.png"), tmp_path / "gt", session=session, progress=False)
    assert brought["source"].tolist() == ["before", "address", ""]
    assert "leads out of the folder" in brought["failed"][2]
    assert not list((tmp_path / "outside").iterdir())
    (tmp_path / "gt" / "sources.json").write_text("[]")
    with pytest.raises(ValueError, match=r"sources\.json is no list of sources"):
        fetch_images(rows(web, "a.png"), tmp_path / "gt", session=session, progress=False)
