"""What comes from the network: published prompt lists, and the training images whose addresses they give.

    path = fetch("sd14", "memorized")                       # cached; checked against the checksum seen first
    found = fetch_images(rows, "gt_images")                 # what is still there of the training images

Nothing fetched is executed or unpickled: text, tables and pictures only.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
import requests
from PIL import Image, UnidentifiedImageError
from requests.adapters import HTTPAdapter, Retry
from tqdm.auto import tqdm

from .distributed import first_on_each_machine
from .files import save_image, save_json

_GITHUB = "https://raw.githubusercontent.com/"
_WEN = _GITHUB + "YuxinWenRick/diffusion_memorization/ca60157f40a5d3bc41763e922ce27187fdf1adc4/"
_NEMO = _GITHUB + "ml-research/localizing_memorization_in_diffusion_models/c8de0c620ec511cdb9e937905d1503cd9758910b/"
_WEBSTER = "https://huggingface.co/datasets/fraisdufour/templates-verbs/resolve/main/groundtruth_parquets/"

SOURCES: dict[str, dict[str, str]] = {
    "sd14": {
        "memorized": _WEN
        + "examples/sdv1_500_memorized.jsonl",  # 500 captions of Webster (2023), as Wen et al. use them
        "ordinary": _NEMO + "prompts/unmemorized_laion_prompts.csv",
        "heldout": _NEMO + "prompts/coco2014_val_10000.csv",
    },
    "sd20": {
        "memorized": _WEBSTER + "sdv2_bb_edge_groundtruth.parquet",
        "ordinary": _NEMO + "prompts/unmemorized_laion_prompts.csv",
        "heldout": _NEMO + "prompts/coco2014_val_10000.csv",
    },
}
"""Public prompt lists: model, kind of prompts, address."""


def cache() -> Path:
    """Where downloads lie: the environment variable MEMSUB_CACHE, or the user's cache folder."""
    return Path(os.environ.get("MEMSUB_CACHE") or pooch.os_cache("memsub"))


def lock_file() -> Path:
    """Checksums of everything that was ever fetched; copy it into another machine's cache to get the same there."""
    return cache() / "checksums.json"


def checksums() -> dict[str, str]:
    """What `lock_file` holds: file name to sha256."""
    return json.loads(lock_file().read_text()) if lock_file().is_file() else {}


def verify(path: Path) -> str:
    """The sha256 of a file in the cache, written to the lock if the file was put there by hand.

    Raises:
        ValueError: it is not the one in the lock.
    """
    found, seen = pooch.file_hash(str(path)), checksums()
    if found != seen.setdefault(path.name, found):
        raise ValueError(
            f"{path} is not what was fetched first: its sha256 is {found[:12]}..., that in {lock_file()} "
            f"{seen[path.name][:12]}.... Remove the file to fetch it again, or its line there to accept it."
        )
    save_json(seen, lock_file())
    return found


def fetch(model: str, kind: str, timeout: float = 20) -> Path:
    """The file of a published prompt list, see `fetch_url`."""
    url = SOURCES[model][kind]
    return fetch_url(url, f"{kind} prompts of {model}", f"{model}-{kind}-{url.rsplit('/', 1)[-1]}", timeout)


def fetch_url(url: str, what: str, name: str | None = None, timeout: float = 20) -> Path:
    """A file from the network, downloaded on first use into the cache, under `name`.

    Its checksum is written to `checksums.json` in the cache the first time, and must be the same ever after.

    Raises:
        ConnectionError: it cannot be had; names the file to put where.
        ValueError: what came is not what came before.
    """
    with first_on_each_machine():
        return _fetch_url(url, what, name or url.rsplit("/", 1)[-1], timeout)


def _fetch_url(url: str, what: str, name: str, timeout: float) -> Path:
    path, lock, seen = cache() / name, lock_file(), checksums()
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        downloader = pooch.HTTPDownloader(timeout=timeout, progressbar=True)
        pooch.retrieve(url, seen.get(name), name, cache(), downloader=downloader)
    except ValueError as error:  # pooch deletes what does not match
        raise ValueError(f"{url} is not what it was when it was fetched first, or came incomplete: {error}") from None
    except (requests.RequestException, OSError) as error:
        raise ConnectionError(
            f"the {what} could not be fetched from {url} ({type(error).__name__}). "
            f"If this machine has no network, put that file at {path}."
        ) from None
    save_json(seen | {name: pooch.file_hash(str(path))}, lock)
    return path


def fetch_images(
    rows: pd.DataFrame, folder: str | Path, *, workers: int = 16, timeout: float = 10, progress: bool = True
) -> dict[str, int]:
    """Downloads the pictures at `rows["url"]` to `folder/<index>/0.png`, the layout of published archives.

    Most addresses of old lists are dead. What is there is kept, what is missing is tried again by the next call.

    Args:
        rows: columns url and index.

    Returns:
        Numbers: found (with those that were there before), missing.

    Raises:
        ValueError: a column is missing.
    """
    if lacking := {"url", "index"} - set(rows.columns):
        raise ValueError(
            f"the prompt list has no column {sorted(lacking)[0]!r}: its training images cannot be fetched."
        )
    folder = Path(folder)
    wanted = [(str(r.url), folder / str(r.index) / "0.png") for r in rows[["url", "index"]].itertuples(index=False)]
    todo = [(url, path) for url, path in wanted if not any(path.parent.glob("*.[pj][np]g"))]
    with requests.Session() as session, ThreadPoolExecutor(workers) as pool:
        session.mount(
            "http://", adapter := HTTPAdapter(max_retries=Retry(2, backoff_factor=0.5, status_forcelist=[502, 503]))
        )
        session.mount("https://", adapter)
        got = pool.map(lambda pair: _image(session.get, pair[0], pair[1], timeout), todo)
        bar = tqdm(got, total=len(todo), desc="training images", unit="image", disable=not progress)
        found = sum(bar) + len(wanted) - len(todo)
    return {"found": found, "missing": len(wanted) - found}


def _image(get: Callable, url: str, path: Path, timeout: float) -> bool:
    try:
        answer = get(url, timeout=timeout)
        answer.raise_for_status()
        picture = Image.open(io.BytesIO(answer.content)).convert("RGB")
    except (requests.RequestException, UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return False
    save_image(np.asarray(picture), path)
    return True
