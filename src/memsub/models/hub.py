"""Models on the Hugging Face hub and in its cache: configurations first, and weights if these are right."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from .contents import Contents, inspect


def hub_contents(repo: str, fetch: bool, **options: Any) -> Contents:
    """What a repository holds, see `inspect`; as `find_contents`."""
    names = names_of(repo) if fetch else None
    contents = inspect(configurations(repo, names), names=names, **options)
    if names and not contents.problems:
        contents = inspect(_snapshot(repo, contents.files), names=contents.files, **options)
    return contents


def configurations(repo: str, names: list[str] | None = None) -> str:
    """The folder of a repository's configurations and tokenizer; of `names_of` it, or as the cache has it.

    Raises:
        FileNotFoundError: it is not on this machine, and the hub does not answer.
    """
    small = [n for n in names or () if n.endswith((".json", ".txt", ".model")) and n.count("/") < 2]
    return _snapshot(repo, small if names else None)


def names_of(repo: str) -> list[str] | None:
    """What a repository on the hub holds; None if nobody answers.

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
    except Exception:  # what the hub's HTTP client raises differs between its versions
        return None


def _snapshot(repo: str, names: list[str] | None) -> str:
    """The folder of a repository in the hub's cache, with files of these names; None: as it is, without a network."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError):
        if names is not None:
            return snapshot_download(repo, allow_patterns=names)
        # The hub's own way refuses a snapshot that lacks files: those that memsub has no use for are not downloaded.
        if isinstance(index := try_to_load_from_cache(repo, "model_index.json"), str):
            return str(Path(index).parent)
    raise FileNotFoundError(
        f"{repo} is not on this machine and the hub does not answer. `hf download {repo}` fetches it where there is a "
        "network; or give a folder or a .safetensors file."
    )
