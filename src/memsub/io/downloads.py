"""Downloads: published prompt lists and metrics.

    path = fetch("sd14", "memorized")      # cached; checked against published and earlier checksums

Prompt lists are text and tables; nothing is unpickled. The copy descriptor is TorchScript, which is a program.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pooch
import requests

from .distributed import first_on_each_machine
from .files import load_json, save_json
from .lists import read_rows

_GITHUB = "https://raw.githubusercontent.com/"
_WEN = _GITHUB + "YuxinWenRick/diffusion_memorization/ca60157f40a5d3bc41763e922ce27187fdf1adc4/"
NEMO = _GITHUB + "ml-research/localizing_memorization_in_diffusion_models/c8de0c620ec511cdb9e937905d1503cd9758910b/"
_WEBSTER = "https://huggingface.co/datasets/fraisdufour/templates-verbs/resolve/main/groundtruth_parquets/"

_UNSEEN = {
    "ordinary": NEMO + "prompts/unmemorized_laion_prompts.csv",
    "heldout": NEMO + "prompts/coco2014_val_10000.csv",
}
SOURCES: dict[str, dict[str, str]] = {
    # 500 captions of Webster (2023), as Wen et al. use them
    "sd14": {"memorized": _WEN + "examples/sdv1_500_memorized.jsonl", **_UNSEEN},
    "sd20": {"memorized": _WEBSTER + "sdv2_bb_edge_groundtruth.parquet", **_UNSEEN},
}
"""Addresses of public prompt lists, by model and kind of prompts."""
PUBLISHED = {
    "sdv1_bb_edge_groundtruth.parquet": "md5:72c2dded275dda496de9c3f7c33c4f3d",
    "sdv2_bb_edge_groundtruth.parquet": "md5:c700ae1d156a9330940d339a24740ed1",
}
"""Checksums published by the authors, by file name."""


def cache() -> Path:
    """The folder of downloads: the environment variable MEMSUB_CACHE, or the user's cache folder."""
    return Path(os.environ.get("MEMSUB_CACHE") or pooch.os_cache("memsub"))


def lock_file() -> Path:
    """File with the checksums of all fetched files. A copy in another machine's cache makes it accept only the same."""
    return cache() / "checksums.json"


def checksums() -> dict[str, str]:
    """The content of `lock_file`: file name to sha256; raises ValueError if the file is broken."""
    seen = load_json(lock_file()) if lock_file().is_file() else {}
    if not isinstance(seen, dict):
        raise ValueError(f"{lock_file()} is no list of checksums as memsub writes it: remove it.")
    return seen


def verify(path: Path) -> str:
    """The sha256 of a file in the cache; it is added to `lock_file` if it is new there.

    Raises:
        ValueError: it differs from the one in `lock_file`.
    """
    digest, seen = pooch.file_hash(str(path)), checksums()
    if path.name not in seen:
        save_json(seen | {path.name: digest}, lock_file())
    elif digest != seen[path.name]:
        raise ValueError(
            f"{path} is not what was fetched first: its sha256 is {digest[:12]}..., that in {lock_file()} "
            f"{seen[path.name][:12]}.... Remove the file to fetch it again, or its line there to accept it."
        )
    return digest


def fetch(model: str, kind: str, timeout: float = 20) -> Path:
    """The file of a published prompt list; see `fetch_url`."""
    url = SOURCES[model][kind]
    name = f"{model}-{kind}-{url.rsplit('/', 1)[-1]}"
    return fetch_url(url, f"{kind} prompts of {model}", name, timeout, read_rows)


def fetch_url(
    url: str,
    what: str,
    name: str | None = None,
    timeout: float = 20,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """A file from the network, downloaded into the cache on first use, under `name`.

    Its checksum is written to `checksums.json` in the cache at the first download. Every later call compares the file
    with it.

    Args:
        check: reads the file, and raises ValueError if it is of another kind; such a file is not kept.

    Raises:
        ConnectionError: the file cannot be fetched; the message says which file to put where.
        ValueError: the file, downloaded or cached, is not the published one, or not the one that was fetched first.
    """
    with first_on_each_machine():
        return _fetch_url(url, what, name or url.rsplit("/", 1)[-1], timeout, check)


def _fetch_url(url: str, what: str, name: str, timeout: float, check: Callable[[Path], object] | None) -> Path:
    path, seen = cache() / name, checksums()
    if path.is_file():
        _check(path, str(path), url, check)
        verify(path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(dir=cache()) as folder:  # under its own name: the suffix says how to read it
            came = Path(folder) / name
            pooch.HTTPDownloader(timeout=timeout, progressbar=True)(url, str(came), None)
            _check(came, url, url, check)
            if seen.get(name, digest := pooch.file_hash(str(came))) != digest:
                raise ValueError(f"{url} is not what was published or fetched first: see {name} in {lock_file()}.")
            came.replace(path)
    except (requests.RequestException, OSError) as error:
        raise ConnectionError(
            f"the {what} could not be fetched from {url} ({type(error).__name__}). "
            f"If this machine has no network, put that file at {path}."
        ) from None
    verify(path)
    return path


def _check(path: Path, name: str, url: str, check: Callable[[Path], object] | None) -> None:
    """Raises ValueError if a file differs from its published checksum, is a web page, or does not pass `check`."""
    kind, _, published = PUBLISHED.get(url.rsplit("/", 1)[-1], "").partition(":")
    if published and (digest := pooch.file_hash(str(path), kind)) != published:
        raise ValueError(f"{name} is not what was published: its {kind} is {digest}, published was {published}.")
    with path.open("rb") as file:
        if file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise ValueError(f"{name} is a web page and not the file of that name.")
    try:
        with warnings.catch_warnings(action="ignore"):  # they appear when the file is read for use
            if check:
                check(path)
    except ValueError as error:
        raise ValueError(f"{name} is no such file: {str(error).replace(str(path), 'it')}") from None
