"""A user's path through the documents: the hub, lists and archives once, and all the rest without a network.

The commands are those of docs/full-size.md, your-model.md and images.md; a local server stands in for the hub, for the
hosts of lists, metric and images, and for the Wayback Machine. The model is the micro pipeline under the name of SD1.4.
"""

import hashlib
import io
import json
import re
import shlex
import shutil
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import constants
from PIL import Image

from conftest import SMALL
from documents import blocks, commands
from memsub.__main__ import main
from memsub.io import downloads
from memsub.io.files import load_json
from memsub.measure.clip import CLIPS
from memsub.measure.sscd import CONSENT, SSCD
from memsub.models import find_model, load_pipeline
from memsub.prompts import read_prompts
from memsub_extra.archives import recovery, session
from memsub_extra.prompt_lists import kinds
from servers import Answer, Server

ROOT = Path(__file__).parents[1]
COMMIT = "0" * 40
MODEL, CLIP = find_model("sd14").source, CLIPS["ViT-L/14"]
LISTED, ALIVE, ARCHIVED = 12, 8, 8
"""Captions of the list; images at their addresses: those of the first captions; the one that an archive has."""
FEWER = {
    "detect": "--seeds 1 --false-positives 0.1",
    "locate": "--steps 2 --tau 2 --sparsity 0.25",
    "evaluate": "--steps 2 --seeds 2",
}
"""Options of each command, so that the path takes seconds: rows of 64 weights, and steps enough to see it work."""


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class Internet(Server):
    """What is there, by path: bytes, or the path that another answers for; `asked` is what was asked for."""

    def __init__(self):
        self.there: dict[str, Any] = {}
        self.asked: list[str] = []
        super().__init__(self._answered)

    def put(self, repo: str, folder: Path) -> None:
        """A repository of the hub."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.there[f"{repo}/resolve/main/{file.relative_to(folder).as_posix()}"] = file.read_bytes()

    def described(self, repo: str, listed: bool) -> bytes:
        """What the hub's interface says of a repository: its commit and files, or a list of these."""
        start = f"{repo}/resolve/main/"
        files = {path.removeprefix(start): body for path, body in self.there.items() if path.startswith(start)}
        said: Any
        if listed:
            said = [{"type": "file", "path": name, "size": len(b), "oid": digest(b)} for name, b in files.items()]
        else:
            said = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        return json.dumps(said).encode()

    def _answered(self, request: BaseHTTPRequestHandler) -> Answer:
        path = unquote(request.path)[1:].replace(f"/resolve/{COMMIT}/", "/resolve/main/")
        self.asked.append(path)
        there, headers, status = self.there.get(path), {"X-Repo-Commit": COMMIT}, 200
        if asked := re.match(r"api/models/([^/?]+/[^/?]+)(/tree/)?", path):
            there = self.described(asked[1], listed=asked[2] is not None)
        if isinstance(there, str):
            there, status, headers = b"", 302, {"Location": f"/{there}"}
        if there is None:
            there, status, headers = b"gone", 404, {"X-Error-Code": "EntryNotFound"}
        return status, headers | {"ETag": f'"{digest(there)}"'}, there


@pytest.fixture
def internet(tmp_path, monkeypatch):
    """The server, asked in place of all others; empty caches; and a folder like a checkout to work in."""
    http = Internet()
    monkeypatch.setenv("MEMSUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))  # kernels of notebooks read it
    monkeypatch.delenv(CONSENT, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", http.address[:-1])
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", http.address + "{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", http.address[:-1])
    here = {kind: http.address + url.split("/", 3)[3] for kind, url in downloads.SOURCES["sd14"].items()}
    monkeypatch.setitem(downloads.SOURCES, "sd14", here)
    monkeypatch.setitem(kinds.TYPES, "sd14", http.address + kinds.TYPES["sd14"].split("/", 3)[3])
    monkeypatch.setitem(SSCD, "sscd_disc_large", http.address + SSCD["sscd_disc_large"].split("/", 3)[3])
    monkeypatch.setattr(recovery, "WAYBACK", http.address + "web/")
    monkeypatch.setattr(recovery, "COMMON_CRAWL", http.address + "cc/")
    monkeypatch.setattr(recovery, "CRAWLS", ("CC-1",))
    monkeypatch.setattr(session, "PRIVATE", True)
    monkeypatch.setattr(session, "PAUSE", 0.0)
    for folder in ("papermill_params", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / "checkout" / folder)
    monkeypatch.chdir(tmp_path / "checkout")
    yield http
    if http.fileno() >= 0:
        http.stop()


@pytest.fixture
def published(internet, micro, prompts, tmp_path):
    """On it: the model and a CLIP, lists and types in the layouts of the published ones, and what images are left."""
    micro.save_pretrained(tmp_path / "published")
    internet.put(MODEL, tmp_path / "published")
    internet.there[f"{MODEL}/resolve/main/unet/diffusion_pytorch_model.bin"] = b"a pickle, which nobody asks for"
    save_clip(tmp_path / "clip", micro.tokenizer)
    internet.put(CLIP, tmp_path / "clip")
    internet.there[f"{CLIP}/resolve/main/tf_model.h5"] = b"weights for another library"

    def path_of(url: str) -> str:
        return url.removeprefix(internet.address)

    captions, lists = prompts.memorized[:LISTED], downloads.SOURCES["sd14"]
    images = [f"{internet.address}images/{i}.png" for i in range(LISTED)]
    rows = [{"caption": c, "index": 100 + i, "url": images[i]} for i, c in enumerate(captions)]
    internet.there[path_of(lists["memorized"])] = "\n".join(map(json.dumps, rows)).encode()
    for kind, texts in {"ordinary": prompts.ordinary[:LISTED], "heldout": prompts.of("heldout")[:8]}.items():
        internet.there[path_of(lists[kind])] = pd.DataFrame({"prompt": texts}).to_csv(index=False).encode()
    types = pd.DataFrame({"Caption": captions, "type": "TM", "mean_sscd": 0.1, "max_sscd": 0.3})
    types["Index"] = range(100, 100 + LISTED)
    types.loc[::3, ["type", "max_sscd"]] = ["VM", 0.9]
    internet.there[path_of(kinds.TYPES["sd14"])] = types[::-1].to_csv(sep=";").encode()
    for i in range(ALIVE):
        internet.there[f"images/{i}.png"] = png(i)
    capture = f"web/20200102030405id_/{images[ARCHIVED]}"
    internet.there |= {f"web/2021id_/{images[ARCHIVED]}": capture, capture: png(ARCHIVED)}
    internet.there[path_of(SSCD["sscd_disc_large"])] = program()
    return internet


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).resize((80, 80), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def program() -> bytes:
    """A copy descriptor as SSCD is published: TorchScript."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(6), torch.nn.Flatten())), buffer)
    return buffer.getvalue()


def save_clip(folder: Path, tokenizer) -> None:
    """A CLIP of random weights, in the files of a published one."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config=sizes | text, vision_config=sizes | {"image_size": 32, "patch_size": 8}, projection_dim=16
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def typed(capsys):
    """Types a command, of which some words stand for others, and returns what it printed; checks its status."""

    def type_(words: list[str], status: int = 0, **instead: str) -> str:
        words = [instead.get(word.replace("-", "_").replace(".", "_"), word) for word in words]
        ended = main([*words, *shlex.split(FEWER.get(words[0], ""))])
        printed = capsys.readouterr()
        assert ended == status, printed.err
        return printed.out + printed.err

    return type_


def go_offline(internet: Internet, monkeypatch) -> None:
    internet.stop()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def fetched(internet: Internet, typed, monkeypatch) -> list[list[str]]:
    """The page's first commands: what is there, and all that comes from a network; returns the others."""
    check, fetch, *others = commands("full-size.md")
    printed = typed(check)
    assert f"{MODEL} is on the hub, not on this machine" in printed
    assert "05 extraction" in printed and not internet.asked
    printed = typed(fetch)
    assert f"{ALIVE + 1} of {LISTED} training images: 1 from Wayback Machine, {ALIVE} from address" in printed
    cached = [path.name for path in downloads.cache().glob("sd14-*")]
    assert len(cached) == 4 and all(name in printed for name in cached)
    assert not [path for path in internet.asked if path.endswith((".bin", ".h5"))]
    go_offline(internet, monkeypatch)
    return others


def consented(run: list[str], typed, monkeypatch) -> None:
    """The copy metric is a program: a run ends before it begins, and says which consent it takes."""
    refused = typed(run, status=1)
    given = re.search(rf"{CONSENT}=(\w+)", refused)
    assert given is not None, refused
    monkeypatch.setenv(CONSENT, given[1])


def test_the_documents_path_from_the_hub_to_an_evaluation_by_kind(published, typed, monkeypatch):
    images = Path(commands("full-size.md")[1][-1])
    run, *_ = fetched(published, typed, monkeypatch)
    consented(run, typed, monkeypatch)
    lists = {path.name.split("-")[1]: path for path in downloads.cache().glob("sd14-*")}
    # What your-model.md asks for: of the fetched lists.
    shutil.copy(lists["memorized"], "captions.jsonl")
    shutil.copy(lists["types"], "types.csv")
    for kind, name in {"ordinary": "ordinary", "heldout": "unseen"}.items():
        Path(f"{name}.txt").write_text("\n".join(read_prompts(lists[kind])["prompt"]))
    instead = {"my_model": MODEL, "captions_txt": "captions.jsonl", "training_images": str(images)}
    (check,) = set(re.findall(r"`memsub (check [\w-]+)`", (ROOT / "docs" / "your-model.md").read_text()))
    assert "4 with 256 neurons" in typed(check.split(), **instead)
    page = commands("your-model.md")
    assert [words[0] for words in page] == ["detect", "locate", "evaluate", "prune"]
    printed = [typed(words, **instead) for words in page]
    assert f"of {LISTED} captions are suspected" in printed[0]
    assert f"{LISTED - ALIVE - 1} of {LISTED} captions have no training image" in printed[2]
    weights = load_pipeline("repaired", device="cpu").unet
    assert any((p == 0).any() for p in weights.parameters() if p.ndim == 2)
    # images.md: a pack that is a table, by the page's lines; then the evaluation by kind, and under other wordings.
    pack = [{"index": 100 + i, "raw_prompt": caption_of(i), "ground_truth": {"bytes": png(i)}} for i in range(LISTED)]
    Path("memorization_data2/data").mkdir(parents=True)
    pd.DataFrame(pack).to_parquet("memorization_data2/data/0.parquet")
    (unpack,) = blocks("images.md", "python")
    exec(unpack, {})
    by_kind, by_wording = commands("images.md")
    printed = typed(by_kind)
    rows = {row["measure"]: row for row in load_json("evaluation/evaluation.json")["measures"]}
    assert rows["replicated images, verbatim"]["captions"] == 4
    assert rows["replicated images, template"]["captions"] == 8
    assert "SSCD of whole images cannot judge a template" in printed
    reworded = [{"caption": caption_of(i), "index": 100 + i, "rephrased": caption_of(i).upper()} for i in range(2)]
    pd.DataFrame(reworded).to_csv("rephrased.csv", index=False)
    assert "4 of 4 wordings have a training image" in typed(by_wording)
    assert set(pd.read_csv("evaluation/wordings.csv")["wording"]) > {"other wordings"}


def caption_of(row: int) -> str:
    return json.loads(Path("captions.jsonl").read_text().splitlines()[row])["caption"]


@pytest.mark.slow
def test_the_documents_path_from_the_hub_to_a_report(published, typed, monkeypatch):
    """`memsub run sd14-quick` with small parameters, all its notebooks."""
    run, *_ = fetched(published, typed, monkeypatch)
    consented(run, typed, monkeypatch)
    parameters = Path("papermill_params", f"{run[1]}.yaml")
    shipped = yaml.safe_load(parameters.read_text())
    kept = {key: shipped[key] for key in ("model", "folder", "metrics", "data")}
    without_real_images = {"evaluation": SMALL["evaluation"] | {"real_images": 0}}
    parameters.write_text(yaml.safe_dump(SMALL | kept | without_real_images))
    printed = typed(run)
    report = Path("runs", run[1], "report.html")
    assert f"Report: {report.resolve()}" in printed
    page = report.read_text()
    assert f"4 verbatim, {LISTED - 4} template captions" in page
    assert f"{ALIVE + 1} of {LISTED} all" in page
    assert "cannot judge a template" in page
