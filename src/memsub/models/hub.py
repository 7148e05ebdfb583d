"""Models on the Hugging Face hub and in its cache. Weights are downloaded only if the configurations are right."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from .contents import Contents, inspect


def hub_contents(repo: str, fetch: bool, **options: Any) -> Contents:
    """Inspects a repository like `inspect`; arguments and errors as in `find_contents`."""
    names = names_of(repo) if fetch else None
    contents = inspect(configurations(repo, names), names=names, **options)
    if names and not contents.problems:
        contents = inspect(_snapshot(repo, contents.files), names=contents.files, **options)
    return contents


def configurations(repo: str, names: list[str] | None = None) -> str:
    """The folder with a repository's configurations and tokenizer. `names`: from `names_of`; None: use the cache.

    Raises:
        FileNotFoundError: they are not cached, and the hub does not answer.
    """
    small = [n for n in names or () if n.endswith((".json", ".txt", ".model")) and n.count("/") < 2]
    return _snapshot(repo, small if names else None)


def names_of(repo: str) -> list[str] | None:
    """The names of the files of a repository on the hub; None if the hub does not answer.

    Raises:
        ValueError: there is no such repository, or it is private or gated.
    """
    from huggingface_hub import model_info
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return [sibling.rfilename for sibling in model_info(repo, timeout=10).siblings or ()]
    except RepositoryNotFoundError:
        raise ValueError(
            f"the hub has no model {repo!r} that you may read. If gated or private: accept its terms, `hf auth login`."
        ) from None
    except Exception:  # the errors of the hub's HTTP client differ between versions
        return None


def _snapshot(repo: str, names: list[str] | None) -> str:
    """The folder of a repository in the hub's cache, with the files `names`; None: as cached, without network."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError):
        if names is not None:
            return snapshot_download(repo, allow_patterns=names)
        # memsub downloads only the files that it uses, and huggingface_hub rejects incomplete snapshots.
        if isinstance(index := try_to_load_from_cache(repo, "model_index.json"), str):
            return str(Path(index).parent)
    raise FileNotFoundError(
        f"{repo} is not on this machine and the hub does not answer. `hf download {repo}` fetches it where there is a "
        "network; or give a folder or a .safetensors file."
    )
