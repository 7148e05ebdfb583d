"""Models on the Hugging Face hub and in its cache: configurations first, and weights if these are right.

hub_contents("owner/model", fetch=True)     # downloaded; refused before its weights are, if it cannot be loaded
family_config("dreamy.safetensors", 768)    # folder of Stable Diffusion 1.5's configurations and tokenizer
"""

from __future__ import annotations

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
            f"the hub has no model {repo!r} that you may read. If it is private or gated, accept its conditions there "
            "and log in (`hf auth login`)."
        ) from None
    except Exception:  # what the hub's HTTP client raises differs between its versions
        return None


def _snapshot(repo: str, names: list[str] | None) -> str:
    """The folder of a repository in the hub's cache, with files of these names; None: as it is, without a network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(repo, allow_patterns=names, local_files_only=names is None)
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"{repo} is not on this machine and the hub does not answer. `hf download {repo}` fetches it where there "
            "is a network; or give a folder or a .safetensors file."
        ) from None
