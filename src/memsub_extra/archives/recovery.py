"""Training images of published lists, most of whose addresses are dead: from there, or from archives of the web.

    table = fetch_images(rows, "gt_images")      # <index>/0.png, and sources.json: where each came from, and when
    print(described(table))                      # how many, by source; which look alike
    fetch_and_describe(rows, "gt_images")        # both, for the registry of sources of training images

Asked in this order: the address itself, the Wayback Machine's nearest capture, Common Crawl's index. What comes is
checked to be an image and not an error page. Politely: one request a host at a time, with a pause, and again only
where the server asks for patience. A second call asks only for what is missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pandas as pd
import requests
from PIL import Image, UnidentifiedImageError
from requests.adapters import HTTPAdapter, Retry
from tqdm.auto import tqdm

from memsub.io.files import load_json, save_json
from memsub.io.images import image_files, save_image

WAYBACK = "https://web.archive.org/web/"
COMMON_CRAWL = "https://index.commoncrawl.org/"
COMMON_CRAWL_DATA = "https://data.commoncrawl.org/"
CRAWLS = ("CC-MAIN-2021-04", "CC-MAIN-2019-35", "CC-MAIN-2017-34")
"""From the years whose crawls LAION was made of."""
YEAR = "2021"
"""The Wayback Machine is asked for the capture nearest to it."""
PAUSE = 1.0
"""Seconds between two requests to one host."""
MIN_SIDE = 64
"""Pixels: smaller images are icons and placeholders."""
LONGEST_INDEX = 200
"""Characters of an index, which is the name of a folder."""
_FAILED = (requests.RequestException, UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Answer:
    """An image as it came: its bytes, the source's name, and when the source saw it (ISO date)."""

    data: bytes
    source: str
    when: str


class PoliteSession:
    """Requests with a pause between two to one host; tries again when a server says it is busy, as it asks."""

    def __init__(self, timeout: float = 20, pause: float | None = None):
        self.timeout, self.pause = timeout, PAUSE if pause is None else pause
        self._session = requests.Session()
        retries = Retry(3, backoff_factor=1, status_forcelist=[429, 502, 503], respect_retry_after_header=True)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retries))
        self._hosts: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._next: dict[str, float] = {}

    def get(self, url: str, **options) -> requests.Response:
        """A whole answer; raises requests.RequestException for any that is not a success."""
        with self._turn(urlsplit(url).netloc):
            answer = self._session.get(url, timeout=self.timeout, **options)
        answer.raise_for_status()
        return answer

    @contextmanager
    def _turn(self, host: str) -> Iterator[None]:
        with self._hosts[host]:
            time.sleep(max(0.0, self._next.get(host, 0.0) - time.monotonic()))
            try:
                yield
            finally:
                self._next[host] = time.monotonic() + self.pause


def from_address(session: PoliteSession, url: str) -> Answer:
    """The image at its address."""
    return Answer(session.get(url).content, "address", datetime.now(UTC).date().isoformat())


def from_wayback(session: PoliteSession, url: str) -> Answer:
    """The Wayback Machine's nearest capture, as it was captured (the `id_` form)."""
    answer = session.get(f"{WAYBACK}{YEAR}id_/{url}")
    stamp = re.search(r"/web/(\d{8})\d*id_/", answer.url)
    return Answer(answer.content, "Wayback Machine", _date(stamp[1]) if stamp else "")


def from_common_crawl(session: PoliteSession, url: str) -> Answer:
    """The record that Common Crawl's index names, cut out of its archive.

    Raises:
        ValueError: none of `CRAWLS` holds it.
    """
    from warcio.archiveiterator import ArchiveIterator

    for crawl in CRAWLS:
        try:
            lines = session.get(f"{COMMON_CRAWL}{crawl}-index?url={quote(url, safe='')}&output=json").text.splitlines()
        except requests.RequestException:
            continue  # this index does not know it
        for record in map(json.loads, lines):
            if record.get("status") == "200":
                start = int(record["offset"])
                span = {"Range": f"bytes={start}-{start + int(record['length']) - 1}"}
                part = session.get(COMMON_CRAWL_DATA + record["filename"], headers=span).content
                for response in ArchiveIterator(io.BytesIO(part)):
                    return Answer(response.content_stream().read(), "Common Crawl", _date(record["timestamp"]))
    raise ValueError(f"no crawl holds {url}")


SOURCES: tuple[Callable[[PoliteSession, str], Answer], ...] = (from_address, from_wayback, from_common_crawl)
"""In the order in which they are asked."""


def _date(stamp: str) -> str:
    return f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}"


def decoded(data: bytes) -> np.ndarray:
    """Bytes as an image, uint8 (height, width, 3).

    Raises:
        ValueError, OSError, UnidentifiedImageError: no image, a truncated one, or one smaller than `MIN_SIDE`.
    """
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"an image of {image.size} pixels is no training image")
    return np.asarray(image)


def fetch_and_describe(rows: pd.DataFrame, folder: str | Path) -> str:
    """`fetch_images`, and what came of it in lines for people; raises as it does."""
    return described(fetch_images(rows, folder))


def fetch_images(
    rows: pd.DataFrame,
    folder: str | Path,
    *,
    session: PoliteSession | None = None,
    workers: int = 16,
    progress: bool = True,
) -> pd.DataFrame:
    """Downloads the images at `rows["url"]` to `folder/<index>/0.png`, the layout of published archives.

    What is already in the folder is kept; what is missing is asked for again by the next call.

    Args:
        rows: columns url and index.
        workers: hosts that are asked at a time.

    Returns:
        One row an image: index, url, source (empty if it is missing; "before" if the folder held it), when, sha256 (of
        the bytes that came), same_as (index of an earlier image that looks the same: perhaps a placeholder).

    Raises:
        ValueError: a column is missing, an index is no plain name, or two rows have one index. Nothing is asked for
            then, and nothing written.
    """
    wanted = _checked(rows)
    folder, session = Path(folder), session or PoliteSession()
    about = folder / "sources.json"
    known = load_json(about) if about.is_file() else {}
    missing = [(index, url) for index, url in wanted if not image_files(folder / index)]
    with ThreadPoolExecutor(workers) as pool:
        fetched = pool.map(lambda pair: _fetch(session, pair[1], folder / pair[0] / "0.png"), missing)
        bar = tqdm(zip(missing, fetched, strict=True), total=len(missing), desc="training images", disable=not progress)
        for (index, url), origin in bar:
            if origin:
                known[index] = {"url": url} | origin
                save_json(known, about)
    nothing = {"source": "", "when": "", "sha256": ""}
    table = []
    for index, url in wanted:
        in_folder = nothing | ({"source": "before"} if image_files(folder / index) else {})
        table.append({"index": index, "url": url} | in_folder | known.get(index, {}))
    return pd.DataFrame(table).assign(same_as=_look_alikes(folder, [index for index, _ in wanted]))


def _checked(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Index and address of each row. An index becomes the name of a folder, and comes from a file of a stranger.

    Raises:
        ValueError: as `fetch_images`; names the row.
    """
    if lacking := {"url", "index"} - set(rows.columns):
        raise ValueError(
            f"the prompt list has no column {sorted(lacking)[0]!r}: its training images cannot be fetched."
        )
    wanted = [(str(row.index), str(row.url)) for row in rows[["index", "url"]].itertuples(index=False)]
    first: dict[str, int] = {}
    for number, (index, _) in enumerate(wanted, start=1):
        if not _is_plain(index):
            raise ValueError(
                f"row {number} of the prompt list has the index {index[:60]!r}, which is no plain name: it names the "
                f"folder of its image, so it must hold no '/', '\\' or ':' and at most {LONGEST_INDEX} characters."
            )
        if index in first:
            raise ValueError(
                f"rows {first[index]} and {number} of the prompt list have one index, {index!r}: their images would "
                "overwrite each other. Give each row another index."
            )
        first[index] = number
    return wanted


def _is_plain(index: str) -> bool:
    """Whether it names a folder inside another one, on every system."""
    separated = re.search(r"[/\\:\x00-\x1f]", index)
    return bool(index.strip(". ")) and index == index.strip() and not separated and len(index.encode()) <= LONGEST_INDEX


def _fetch(session: PoliteSession, url: str, path: Path) -> dict[str, str] | None:
    """Asks one source after the other until an image comes."""
    for source in SOURCES:
        try:
            answer = source(session, url)
            image = decoded(answer.data)
        except _FAILED:
            continue
        save_image(image, path)
        return {"source": answer.source, "when": answer.when, "sha256": hashlib.sha256(answer.data).hexdigest()}
    return None


def _look_alikes(folder: Path, indices: list[str]) -> list[str]:
    """For each the index of the first image before it that is the same in 8 x 8 gray pixels; empty if none is."""
    seen: dict[bytes, str] = {}
    earlier = []
    for index in indices:
        files = image_files(folder / index)
        if not files:
            earlier.append("")
            continue
        gray = np.asarray(Image.open(files[0]).convert("L").resize((8, 8), Image.Resampling.BOX), np.float32)
        key = np.packbits(gray > gray.mean()).tobytes() + bytes([round(float(gray.mean()) / 16)])
        earlier.append(seen.get(key, ""))
        seen.setdefault(key, index)
    return earlier


def described(table: pd.DataFrame) -> str:
    """What `fetch_images` brought, in lines for people."""
    present = table[table["source"] != ""]
    sources = ", ".join(f"{n} from {source}" for source, n in present.groupby("source").size().items())
    lines = [f"{len(present)} of {len(table)} training images" + (f": {sources}" if sources else "")]
    if len(alike := table[table["same_as"] != ""]):
        pairs = ", ".join(f"{r.index} like {r.same_as}" for r in alike.head(10).itertuples(index=False))
        lines.append(f"{len(alike)} look like an earlier one, perhaps placeholders: {pairs}")
    return "\n".join(lines)
