"""Downloads training images of published lists, from their addresses or, as most are dead, from web archives.

    table = fetch_images(rows, "gt_images")      # <index>/0.png, and sources.json: source and date of each
    print(described(table))                      # counts by source, and which images look alike
    fetch_and_describe(rows, "gt_images")        # both, for the registry of sources of training images

It tries the address itself, then the nearest capture of the Wayback Machine, then the index of Common Crawl. It checks
that the answer is an image and no error page. Each host gets one request at a time, with pauses between requests; a
request is repeated only if the server asks for it (`archives.session`). An error is written to the row of its address,
and the other downloads continue. A second call requests only missing images.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pandas as pd
import requests
from PIL import Image
from tqdm.auto import tqdm

from memsub.io.files import load_json, save_json
from memsub.io.images import image_files, rgb, save_image
from memsub.io.lists import plain_name

from .session import MOST_BYTES, PoliteSession

WAYBACK = "https://web.archive.org/web/"
COMMON_CRAWL = "https://index.commoncrawl.org/"
COMMON_CRAWL_DATA = "https://data.commoncrawl.org/"
CRAWLS = ("CC-MAIN-2021-04", "CC-MAIN-2019-35", "CC-MAIN-2017-34")
"""Crawls from the years that LAION was made of."""
YEAR = "2021"
"""The Wayback Machine returns the capture nearest to this year."""
MIN_SIDE = 64
"""Smallest side in pixels; smaller images are icons and placeholders."""
ABOUT = "sources.json"
_MOST_RECORDS = 20
"""Number of records of one address that are tried in one crawl."""
_decoding = threading.Lock()
"""Allows one conversion at a time: large images need a gigabyte for it, and many threads download."""


@dataclass(frozen=True)
class Answer:
    """A downloaded image: its bytes, the name of the source, and the date at which the source saw it (ISO)."""

    data: bytes
    source: str
    when: str


def from_address(session: PoliteSession, url: str) -> Answer:
    """The image at its address."""
    return Answer(session.get(url).content, "address", datetime.now(UTC).date().isoformat())


def from_wayback(session: PoliteSession, url: str) -> Answer:
    """The nearest capture of the Wayback Machine, unmodified (the `id_` form)."""
    answer = session.get(f"{WAYBACK}{YEAR}id_/{canonical(url)}")
    stamp = re.search(r"/web/(\d{8})\d*id_/", answer.url)
    return Answer(answer.content, "Wayback Machine", _date(stamp[1]) if stamp else "")


def canonical(url: str) -> str:
    """An address in the form that a crawler requests, to be appended to the address of an archive.

    Raises:
        ValueError: it would lead to another page of the archive ("..", also escaped).
    """
    for _ in range(2):  # the first round unescapes, the second resolves the result
        url = requests.Request("GET", url).prepare().url or ""
    url = url.partition("#")[0]
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or {".", ".."} & set(parts.path.split("/")) or "\\" in url:
        raise ValueError(f"{url[:200]!r} is no address that an archive can be asked for.")
    return url


def from_common_crawl(session: PoliteSession, url: str) -> Answer:
    """The record that the index of Common Crawl lists, cut out of its archive file.

    Raises:
        ValueError: no crawl in `CRAWLS` has it.
    """
    for crawl in CRAWLS:
        try:
            lines = session.get(f"{COMMON_CRAWL}{crawl}-index?url={quote(url, safe='')}&output=json").text.splitlines()
        except requests.RequestException:
            continue  # this crawl does not have it
        for line in lines[:_MOST_RECORDS]:
            try:
                return _from_record(session, json.loads(line))
            except Exception:  # after a broken line or record, the next one may be valid
                continue
    raise ValueError(f"no crawl holds {url}")


def _from_record(session: PoliteSession, record: dict[str, str]) -> Answer:
    """Downloads the record that a line of the index describes.

    Raises:
        ValueError: the capture is an error page, or is larger than `MOST_BYTES`.
    """
    from warcio.archiveiterator import ArchiveIterator

    start, size, name = int(record["offset"]), int(record["length"]), record["filename"]
    if record["status"] != "200" or start < 0 or not 0 < size <= MOST_BYTES:
        raise ValueError("no success, or no part of a file that is read.")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) or {".", ".."} & set(name.split("/")):
        raise ValueError(f"{name[:200]!r} is no name of an archive.")
    # A server that ignores the range sends a gigabyte, the whole archive; `limit` stops it.
    span = {"Range": f"bytes={start}-{start + size - 1}"}
    part = session.get(COMMON_CRAWL_DATA + name, headers=span, limit=size).content
    unpacker = zlib.decompressobj(wbits=31)  # a record is one gzip member
    whole = unpacker.decompress(part, MOST_BYTES)
    for response in ArchiveIterator(io.BytesIO(whole)):
        body = response.content_stream().read(MOST_BYTES + 1)
        if len(body) > MOST_BYTES or unpacker.unconsumed_tail:
            break
        return Answer(body, "Common Crawl", _date(record["timestamp"]))
    raise ValueError("an empty archive, or a record that is too large.")


SOURCES: tuple[Callable[[PoliteSession, str], Answer], ...] = (from_address, from_wayback, from_common_crawl)
"""The sources in the order in which they are tried."""


def _date(stamp: str) -> str:
    return f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}"


def decoded(data: bytes) -> np.ndarray:
    """Bytes as an image, uint8 (height, width, 3).

    Raises:
        ValueError: no image, a truncated one, or one smaller than `MIN_SIDE`.
    """
    image = rgb(data)
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"an image of {image.size} pixels is no training image")
    return np.asarray(image)


def fetch_and_describe(rows: pd.DataFrame, folder: str | Path) -> str:
    """`fetch_images`, and a description of the result in lines of text; raises like it."""
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

    Images that are in the folder are kept. The next call requests missing images again.

    Args:
        rows: columns url and index. Rows that lack either are omitted.
        workers: number of hosts at a time.

    Returns:
        One row an image: index, url, source (empty if missing; "before" if it was in the folder), when, sha256 (of
        the downloaded bytes), same_as (index of an earlier image that looks the same: perhaps a placeholder), failed
        (why the download failed).

    Raises:
        ValueError: a column is missing, an index is no plain name, or two rows have the same index and different
            addresses. Nothing was requested or written.
    """
    wanted = _checked(rows)
    folder, session = Path(folder), session or PoliteSession()
    known, failed = _known(folder / ABOUT), {}
    there = {index: _first_image(folder / index) for index in wanted}
    pool = ThreadPoolExecutor(workers)
    try:
        missing = {
            pool.submit(_fetch, session, url, folder, index): index
            for index, url in wanted.items()
            if there[index] is None
        }
        bar = tqdm(as_completed(missing), total=len(missing), desc="training images", disable=not progress)
        for done in bar:
            index, came = missing[done], done.result()
            if isinstance(came, str):
                failed[index] = came
                continue
            there[index] = _first_image(folder / index)
            known[index] = {"url": wanted[index]} | came
            save_json(known, folder / ABOUT)  # after each image, so that an interruption loses nothing
    finally:
        pool.shutdown(cancel_futures=True)
    table = []
    for index, url in wanted.items():
        about = {"source": "", "when": "", "sha256": ""}
        if there[index] is not None:
            about |= {"source": "before"} | known.get(index, {})
        table.append({"index": index, "url": url} | about | {"failed": failed.get(index, "")})
    return pd.DataFrame(table, columns=["index", "url", "source", "when", "sha256", "failed"]).assign(
        same_as=_look_alikes(there)
    )


def _checked(rows: pd.DataFrame) -> dict[str, str]:
    """Index to address, after checks: an index from a stranger's file becomes the name of a folder.

    Two rows with the same index and address are two captions of one image. With two addresses, the image in the folder
    could not be assigned to a caption.

    Raises:
        ValueError: as `fetch_images`; the message names the row.
    """
    if columns := {"url", "index"} - set(rows.columns):
        raise ValueError(f"the prompt list has no column {min(columns)!r}: its training images cannot be fetched.")
    wanted: dict[str, str] = {}
    first: dict[str, int] = {}
    if lacking := int((rows["index"].isna() | rows["url"].isna()).sum()):
        warnings.warn(f"{lacking} of {len(rows)} rows of the prompt list have no index or no url.", stacklevel=3)
    for number, (index, url) in enumerate(zip(rows["index"], rows["url"], strict=True), start=1):
        if pd.isna(index) or pd.isna(url):
            continue
        try:
            name = plain_name(index)
        except ValueError as error:
            raise ValueError(f"row {number} of the prompt list has the {error}") from None
        key = name.casefold()  # some file systems ignore case
        if key == ABOUT:
            raise ValueError(f"row {number} of the prompt list has the index {name!r}, a file of the folder of images.")
        if key not in first:
            wanted[name], first[key] = str(url), number
        elif wanted.get(name) != str(url):
            raise ValueError(
                f"rows {first[key]} and {number} of the prompt list have one index, {name!r}, and other addresses: "
                "their images would overwrite each other. Give each row another index."
            )
    return wanted


def _known(path: Path) -> dict[str, dict[str, str]]:
    known = load_json(path) if path.is_file() else {}
    if not isinstance(known, dict) or not all(isinstance(about, dict) for about in known.values()):
        raise ValueError(f"{path} is no list of sources as memsub writes it: remove it.")
    return {
        index: {key: str(about.get(key, "")) for key in ("url", "source", "when", "sha256")}
        for index, about in known.items()
    }


def _fetch(session: PoliteSession, url: str, folder: Path, index: str) -> dict[str, str] | str:
    """Tries the sources in order until one has an image. Returns its origin, or the error of the first source."""
    reasons = []
    for source in SOURCES:
        try:
            answer = source(session, url)
            with _decoding:
                image = decoded(answer.data)
            if not (folder / index).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{folder / index} leads out of the folder.")
            save_image(image, folder / index / "0.png")
        except Exception as error:  # any error concerns only this address
            reasons.append(f"{type(error).__name__}: {error}"[:300])
            continue
        return {"source": answer.source, "when": answer.when, "sha256": hashlib.sha256(answer.data).hexdigest()}
    return reasons[0]


def _first_image(folder: Path) -> Image.Image | None:
    """The first readable image of a folder, reduced to 8 x 8 gray pixels; None if there is none."""
    for file in image_files(folder):
        try:
            with _decoding:
                return rgb(file).convert("L").resize((8, 8), Image.Resampling.BOX)
        except ValueError:
            continue
    return None


def _look_alikes(images: dict[str, Image.Image | None]) -> list[str]:
    """For each image, the index of the first earlier image that looks the same: the same of its 8 x 8 gray pixels
    are above the mean, and the means agree in steps of 16. Empty if there is none."""
    seen: dict[bytes, str] = {}
    earlier = []
    for index, image in images.items():
        if image is None:
            earlier.append("")
            continue
        gray = np.asarray(image, np.float32)
        key = np.packbits(gray > gray.mean()).tobytes() + bytes([round(float(gray.mean()) / 16)])
        earlier.append(seen.get(key, ""))
        seen.setdefault(key, index)
    return earlier


def described(table: pd.DataFrame) -> str:
    """The result of `fetch_images` in lines of text."""
    present = table[table["source"] != ""]
    sources = ", ".join(f"{n} from {source}" for source, n in present.groupby("source").size().items())
    lines = [f"{len(present)} of {len(table)} training images" + (f": {sources}" if sources else "")]
    if len(alike := table[table["same_as"] != ""]):
        pairs = ", ".join(f"{r.index} like {r.same_as}" for r in alike.head(10).itertuples(index=False))
        lines.append(f"{len(alike)} look like an earlier one, perhaps placeholders: {pairs}")
    if len(without := table[table["failed"] != ""]):
        reasons = "; ".join(f"{r.index}: {r.failed[:120]}" for r in without.head(3).itertuples(index=False))
        lines.append(f"{len(without)} were not to be had, for example {reasons}")
    return "\n".join(lines)
