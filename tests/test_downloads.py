"""Published lists from a server that misbehaves, and a cache that others have written to."""

import hashlib
import json

import pytest

from memsub.io import downloads
from servers import serving

LIST = b'{"caption": "a red heart"}\n{"caption": "a blue fish"}\n'


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves `server.body` at every address, with the status 200."""

    def answer(request):
        http.asked += 1
        return 200, {"Content-Length": str(len(http.body) + http.missing)}, http.body

    with serving(answer) as http:
        http.body, http.missing, http.asked = LIST, 0, 0
        monkeypatch.setenv("MEMSUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setitem(downloads.SOURCES, "sd14", {"memorized": http.address + "list.jsonl"})
        yield http


@pytest.mark.parametrize(
    ("body", "missing", "told"),
    [
        (b"<!DOCTYPE html>\n<html>Sorry, this page is down</html>", 0, "is a web page and not the file of that name"),
        (b"\n<html>Sorry</html>", 0, "is a web page"),
        (LIST[:-10], 0, "no such file: it, line 2, is no JSON"),
        (LIST[:-10], 10, "could not be fetched"),
        (b"", 0, "it holds no captions"),
        (b'{"message": "rate limit exceeded"}', 0, "has no column 'caption'; its columns are: message"),
    ],
    ids=["page", "page after a line", "half", "shorter than announced", "nothing", "an error in JSON"],
)
def test_what_is_no_list_is_not_kept(server, body, missing, told):
    whole, server.body, server.missing = server.body, body, missing
    with pytest.raises((ValueError, ConnectionError), match=told):
        downloads.fetch("sd14", "memorized")
    assert not [path for path in downloads.cache().rglob("*") if path.is_file()]
    server.body, server.missing = whole, 0
    assert downloads.fetch("sd14", "memorized").read_bytes() == whole  # nothing was locked in


def test_a_cached_file_is_checked_whenever_it_is_asked_for(server):
    path = downloads.fetch("sd14", "memorized")
    assert downloads.fetch("sd14", "memorized") == path
    assert server.asked == 1
    path.write_bytes(LIST.replace(b"red", b"RED"))
    with pytest.raises(
        ValueError, match=r"list\.jsonl is not what was fetched first: its sha256 is \w{12}\.\.\., that"
    ):
        downloads.fetch("sd14", "memorized")


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_file_put_there_by_hand_must_be_the_published_one(server, monkeypatch, kind):
    digests = {body: hashlib.new(kind, body).hexdigest() for body in (LIST, b"another list\n")}
    monkeypatch.setitem(downloads.PUBLISHED, "list.jsonl", f"{kind}:{digests[LIST]}")
    path = downloads.cache() / "sd14-memorized-list.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another list\n")
    both = rf"{path} is not what was published: its {kind} is {digests[b'another list' + bytes([10])]}"
    with pytest.raises(ValueError, match=rf"{both}, published was {digests[LIST]}"):
        downloads.fetch("sd14", "memorized")
    assert not downloads.lock_file().exists()
    path.write_bytes(LIST)
    assert downloads.fetch("sd14", "memorized") == path
    assert json.loads(downloads.lock_file().read_text()) == {path.name: hashlib.sha256(LIST).hexdigest()}
    assert not server.asked


@pytest.mark.parametrize(
    ("body", "told"), [(b"<html>login</html>", "a web page"), (LIST[:-9], "no such file: it, line 2")]
)
def test_what_is_put_there_by_hand_is_read_before_it_is_locked_in(server, body, told):
    path = downloads.cache() / "sd14-memorized-list.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(body)
    with pytest.raises(ValueError, match=rf"list\.jsonl is {told}"):
        downloads.fetch("sd14", "memorized")
    assert not downloads.lock_file().exists()


def test_a_broken_lock_file_is_named(server):
    downloads.fetch("sd14", "memorized")
    for content, told in (("{", "truncated or no JSON"), ("[]", "no list of checksums")):
        downloads.lock_file().write_text(content)
        with pytest.raises(ValueError, match=rf"checksums\.json is {told}"):
            downloads.fetch("sd14", "memorized")
