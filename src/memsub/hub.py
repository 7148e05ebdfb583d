"""Edits on the Hugging Face hub: safetensors, and a card that says what the file is and for which model.

edit.push_to_hub("owner/name", audit=table)
edit = Edit.from_hub("owner/name", pipe)      # refused, if it is another model's, before it is downloaded
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from .denoiser import Pipeline, check_model

FILE = "edit.safetensors"


class HubMixin:
    """For an artifact with `provenance` (its `model` being a fingerprint), `density`, `save` and `load`."""

    provenance: dict

    @property
    def density(self) -> float:
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | Path) -> Any:
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        audit: pd.DataFrame | None = None,
        private: bool = False,
        token: str | None = None,
        endpoint: str | None = None,
    ) -> str:
        """Uploads the edit with a model card, into a repository that is made if there is none; returns its address.

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
            self.save(Path(folder) / FILE)
            (Path(folder) / "README.md").write_text(card(repo_id, self, audit), encoding="utf-8")
            api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="An edit, by memsub")
        return f"{api.endpoint}/{repo_id}"

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        pipe: Pipeline | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
        endpoint: str | None = None,
    ) -> Any:
        """The edit in a repository; with a pipeline it is checked to be this model's before it is downloaded.

        Raises:
            ValueError: the name is not "owner/name", the repository holds no edit, or that of another model.
            huggingface_hub.errors.HfHubHTTPError: there is no such repository, or the hub refuses.
        """
        from huggingface_hub import HfApi

        _check_name(repo_id)
        api = HfApi(endpoint=endpoint, token=token)
        header = api.parse_safetensors_file_metadata(repo_id, FILE, revision=revision).metadata
        about = json.loads(header.get("about", "{}"))
        if about.get("kind") != cls.__name__:
            raise ValueError(f"{repo_id} holds no {cls.__name__} of memsub in {FILE}.")
        if pipe is not None:
            check_model(pipe, about["provenance"]["model"], f"the edit in {repo_id} was made for")
        return cls.load(api.hf_hub_download(repo_id, FILE, revision=revision))


def _check_name(repo_id: str) -> None:
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ValueError(f"a repository is named 'owner/name'; got {repo_id!r}.")


def card(repo_id: str, edit: HubMixin, audit: pd.DataFrame | None = None) -> str:
    """The model card: what the edit is, how it is used, what made it, and what was measured."""
    lines = [
        "---\nlibrary_name: memsub\ntags: [memsub, diffusers, unlearning]\n---\n",
        f"# {repo_id.split('/')[1]}\n",
        "An edit of a text-to-image diffusion model's weights, made by [memsub](https://github.com/memsub/memsub). It "
        f"belongs to the network with the fingerprint `{edit.provenance['model'][:12]}` and sets {edit.density:.2%} of "
        "the weights in its layers.\n",
        f'```python\nimport memsub\n\nedit = memsub.Edit.from_hub("{repo_id}", pipe)\nedit.apply(pipe)\n```\n',
    ]
    if audit is not None:
        lines += ["## What was measured\n", _markdown(audit) + "\n"]
    return "\n".join([*lines, "## Provenance\n", f"```json\n{json.dumps(edit.provenance, indent=1)}\n```\n"])


def _markdown(table: pd.DataFrame) -> str:
    def row(cells: Any) -> str:
        return "| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |"

    records: list[Mapping] = table.to_dict("records")
    return "\n".join([row(table.columns), row(["---"] * len(table.columns)), *(row(r.values()) for r in records)])
