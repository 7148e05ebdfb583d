"""Edits on the Hugging Face hub: safetensors, and a card that says what the file is and for which model.

push_edit(edit, "owner/name", audit=table)
edit = edit_from_hub("owner/name", pipe)    # the edit of another model is refused before it is downloaded
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from memsub.io.files import as_written, parse_json, printable
from memsub.models import Pipeline, check_model
from memsub.pruning import Edit

FILE = "edit.safetensors"


def push_edit(
    edit: Edit,
    repo_id: str,
    *,
    audit: pd.DataFrame | None = None,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Uploads an edit with a model card, into a repository that is made if there is none; returns its address.

    Args:
        repo_id: "owner/name".
        audit: a table for the card: what the edit does, as measured.
        token: of the hub; default the one of `hf auth login`.
        endpoint: another hub than huggingface.co.

    Raises:
        ValueError: the name is not "owner/name".
        huggingface_hub.errors.HfHubHTTPError: the hub refuses.
    """
    from huggingface_hub import HfApi

    _check_name(repo_id)
    api = HfApi(endpoint=endpoint, token=token)
    with TemporaryDirectory() as folder:
        edit.save(Path(folder) / FILE)
        (Path(folder) / "README.md").write_text(card(repo_id, edit, audit), encoding="utf-8")
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="An edit, by memsub")
    return f"{api.endpoint}/{repo_id}"


def edit_from_hub(
    repo_id: str,
    pipe: Pipeline | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Edit:
    """The edit in a repository; with a pipeline it is checked to be this model's before it is downloaded.

    Raises:
        ValueError: the name is not "owner/name", the repository holds no edit, or that of another model.
        huggingface_hub.errors.HfHubHTTPError: there is no such repository, or the hub refuses.
    """
    from huggingface_hub import HfApi

    _check_name(repo_id)
    api = HfApi(endpoint=endpoint, token=token)
    header = api.parse_safetensors_file_metadata(repo_id, FILE, revision=revision).metadata
    about = parse_json((header or {}).get("about", "{}"), f"the metadata of {FILE} in {repo_id}")
    if not isinstance(about, dict) or about.get("kind") != Edit.__name__:
        raise ValueError(f"{repo_id} holds no {Edit.__name__} of memsub in {FILE}.")
    if pipe is not None:
        with as_written(f"{FILE} in {repo_id}", "edit"):
            check_model(pipe, about["provenance"]["model"], f"the edit in {repo_id} was made for")
    return Edit.load(api.hf_hub_download(repo_id, FILE, revision=revision))


def _check_name(repo_id: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id, re.ASCII):
        raise ValueError(f"a repository is named 'owner/name'; got {repo_id!r}.")


def card(repo_id: str, edit: Edit, audit: pd.DataFrame | None = None) -> str:
    """The model card: what the edit is, how it is used, what made it, and what was measured."""
    usage = (
        "import memsub\nfrom memsub_extra.archives.hub import edit_from_hub\n\n"
        f'pipe = memsub.load_pipeline(...)\nedit = edit_from_hub("{repo_id}", pipe)\nedit.apply(pipe)'
    )
    lines = [
        "---\nlibrary_name: memsub\ntags: [memsub, diffusers, unlearning]\n---\n",
        f"# {repo_id.split('/')[1]}\n",
        "An edit of a text-to-image diffusion model's weights, made by [memsub](https://github.com/memsub/memsub). It "
        f"belongs to the network with the fingerprint `{_cell(edit.provenance['model'][:12])}` and "
        f"sets {edit.density:.2%} of the weights in its layers.\n",
        f"```python\n{usage}\n```\n",
    ]
    if audit is not None:
        lines += ["## What was measured\n", _markdown(audit) + "\n"]
    provenance = json.dumps(edit.provenance, indent=1).replace("`", "\\u0060")  # which JSON reads as the same
    return "\n".join([*lines, "## Provenance\n", f"```json\n{provenance}\n```\n"])


def _markdown(table: pd.DataFrame) -> str:
    def row(cells: Any) -> str:
        return "| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else _cell(c) for c in cells) + " |"

    records: list[Mapping] = table.to_dict("records")
    rule = f"|{' --- |' * len(table.columns)}"
    return "\n".join([row(table.columns), rule, *(row(r.values()) for r in records)])


def _cell(value: object) -> str:
    """Text of a table's cell that no reader of Markdown takes for anything else: one line, without live characters."""
    text = html.escape(printable(" ".join(str(value).split())))
    return re.sub(r"[\\`*_\[\]|$!~#]", lambda match: f"&#{ord(match[0])};", text)
