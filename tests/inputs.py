"""Inputs that nobody should bring and somebody will: the table in docs/bad-inputs.md.

`tests/test_inputs.py` tries every row, and `python -m tools.what_works` writes the page. A row ends with an error whose
sentence is given, or right: then its function returns what came out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

import memsub
from memsub.io.images import read_images
from memsub.prompts import load_prompts, read_prompts
from micro import CAPTIONS

OPTIONS = {"steps": 1, "guidance_scale": 3.0, "progress": False}


@dataclass
class Box:
    """A folder to write into, and a pipeline that may be changed."""

    folder: Path
    pipe: Any

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def captions(self, name: str, content: str | bytes) -> list[str]:
        return read_prompts(self.file(name, content))["prompt"].tolist()

    def capture(self, prompts: Any = ("a red heart",), **options: Any) -> memsub.ActivationStats:
        return memsub.capture(self.pipe, prompts, **OPTIONS | options)

    def edit(self) -> memsub.Edit:
        return memsub.locate(self.pipe, self.capture(), self.capture([""]), sparsity=0.1).union(steps=1)

    def saved(self) -> Path:
        self.pipe.save_pretrained(self.folder / "model")
        return self.folder / "model"


@dataclass(frozen=True)
class Input:
    """`ends`: part of the error's sentence, or what the function returns where the input is right."""

    what: str
    bring: Callable[[Box], Any]
    ends: Any
    right: bool = False


def png(mode: str = "RGB", size: tuple[int, int] = (40, 40), form: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new(mode, size).save(data, form)
    return data.getvalue()


def pixels(box: Box, name: str, content: bytes) -> list[int]:
    return read_images([box.file(name, content)], 8)[0][0, 0].tolist()


LISTS = [
    Input("a list in UTF-16 without a mark", lambda b: b.captions("a.txt", "a cat\n".encode("utf-16-le")), "a.txt"),
    Input("an old Mac's line ends", lambda b: b.captions("a.txt", "one\rtwo\r"), ["one", "two"], True),
    Input(
        "a CSV of semicolons, and one within quotes",
        lambda b: b.captions("a.csv", 'caption;index\n"a; b";1\nc;2\n'),
        ["a; b", "c"],
        True,
    ),
    Input(
        "Excel's line `sep=,` before the header",
        lambda b: b.captions("a.csv", "sep=,\ncaption,index\na cat,1\n"),
        "a.csv",
    ),
    Input(
        "a header with spaces around its names",
        lambda b: b.captions("a.csv", " Caption ,index\na cat,1\n"),
        ["a cat"],
        True,
    ),
    Input("a NUL byte within a caption", lambda b: b.captions("a.txt", b"a\x00b\n"), "a.txt"),
    Input("an .xlsx file", lambda b: b.captions("a.xlsx", b"PK\x03\x04" + bytes(60)), "a.xlsx"),
    Input("a parquet file named .csv", lambda b: _parquet_as_csv(b), "a.csv"),
    Input("a trailing comma in a line of JSON", lambda b: b.captions("a.jsonl", '{"caption": "a",}\n'), "line 1"),
    Input(
        "an object of columns",
        lambda b: b.captions("a.json", '{"caption": ["a", "b"], "index": [1, 2]}'),
        ["a", "b"],
        True,
    ),
    Input("a caption of a blank that is no space", lambda b: b.captions("a.txt", "\u00a0\n"), "a.txt"),
    Input("a caption of a million characters", lambda b: b.captions("a.txt", "x" * 1_000_000), "a.txt"),
    Input("a Markdown table", lambda b: b.captions("a.md", "| caption |\n| --- |\n| a cat |\n"), "a.md"),
    Input("a link to itself", lambda b: _loop(b), "a.txt"),
    Input("a misspelt name of a list", lambda b: load_prompts("sd1.4"), "Did you mean 'sd14'"),
]


def _parquet_as_csv(box: Box) -> list[str]:
    pd.DataFrame({"caption": ["a"]}).to_parquet(box.folder / "a.csv")
    return read_prompts(box.folder / "a.csv")["prompt"].tolist()


def _loop(box: Box) -> list[str]:
    (box.folder / "a.txt").symlink_to(box.folder / "a.txt")
    return read_prompts(box.folder / "a.txt")["prompt"].tolist()


IMAGES = [
    Input("an image of one pixel", lambda b: pixels(b, "a.png", png(size=(1, 1))), [0, 0, 0], True),
    Input("an SVG named .png", lambda b: pixels(b, "a.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "a.png"),
    Input("an image of one row of 30,000 pixels", lambda b: pixels(b, "a.png", png(size=(30_000, 1))), [0, 0, 0], True),
    Input(
        "a CMYK JPEG, which is white where it holds no ink",
        lambda b: pixels(b, "a.jpg", png("CMYK", form="JPEG")),
        [255, 255, 255],
        True,
    ),
    Input("a PNG of one bit a pixel", lambda b: pixels(b, "a.png", png("1")), [0, 0, 0], True),
    Input("a JPEG that ends half way", lambda b: pixels(b, "a.jpg", png(size=(400, 400), form="JPEG")[:900]), "a.jpg"),
    Input("an HTML page named .jpg", lambda b: pixels(b, "a.jpg", b"<!doctype html><title>404"), "a.jpg"),
    Input(
        "a folder named like an image",
        lambda b: ((b.folder / "a.png").mkdir(), read_images([b.folder / "a.png"], 8)),
        "a.png",
    ),
    Input(
        "an image of a format that only Pillow knows (an icon)",
        lambda b: pixels(b, "a.png", b"\x00\x00\x01\x00" + bytes(40)),
        "a.png",
    ),
]


MODELS = [
    Input(
        "a folder's name with a slash at its end",
        lambda b: type(memsub.load_pipeline(f"{b.saved()}/", device="cpu")).__name__,
        "StableDiffusionPipeline",
        True,
    ),
    Input(
        "model_index.json in place of its folder",
        lambda b: memsub.load_pipeline(b.saved() / "model_index.json"),
        "model_index.json",
    ),
    Input(
        "a page of the hub as an address",
        lambda b: memsub.load_pipeline("https://huggingface.co/owner/model"),
        "owner/model",
    ),
    Input("a name in capitals and with a dash", lambda b: memsub.load_pipeline("SD-14"), "Did you mean 'sd14'"),
    Input("an empty name", lambda b: memsub.load_pipeline(""), "unknown model ''"),
    Input("a dtype as text", lambda b: memsub.load_pipeline(b.saved(), dtype="float16"), "such as torch.float16"),
    Input("a network without a file of weights", lambda b: _without_weights(b), "unet"),
    Input("a number in place of a configuration", lambda b: _broken(b, "unet/config.json", "7"), "config.json"),
    Input("weights that end 100 bytes early", lambda b: _cut(b), "truncated"),
    Input("a scheduler of a class that diffusers does not have", lambda b: _scheduler(b), "NoSuchScheduler"),
]


def _without_weights(box: Box) -> Any:
    folder = box.saved()
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    return memsub.load_pipeline(folder)


def _broken(box: Box, name: str, text: str) -> Any:
    folder = box.saved()
    (folder / name).write_text(text)
    return memsub.load_pipeline(folder)


def _cut(box: Box) -> Any:
    (file,) = (box.saved() / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    return memsub.load_pipeline(box.folder / "model")


def _scheduler(box: Box) -> Any:
    index = json.loads((box.saved() / "model_index.json").read_text())
    return _broken(box, "model_index.json", json.dumps(index | {"scheduler": ["diffusers", "NoSuchScheduler"]}))


CALLS = [
    Input("one caption in place of a list", lambda b: b.capture("a red heart"), "a list"),
    Input("a list in which a caption is missing", lambda b: b.capture(["a", None]), "None"),
    Input("captions as a column of pandas", lambda b: b.capture(pd.Series(CAPTIONS[:2])).counts, {"all": 2}, True),
    Input("captions as an array of numpy", lambda b: b.capture(np.array(CAPTIONS[:2])).counts, {"all": 2}, True),
    Input("captions as a generator", lambda b: b.capture(c for c in CAPTIONS[:2]).counts, {"all": 2}, True),
    Input("no captions", lambda b: b.capture([]), "no prompts"),
    Input("embeddings of another width", lambda b: b.capture(torch.zeros(1, 16, 7)), "embeddings of 7 numbers a token"),
    Input("a guidance scale that is no number", lambda b: b.capture(guidance_scale=float("nan")), "guidance_scale"),
    Input("half a step", lambda b: b.capture(steps=1.5), "steps must be a whole number"),
    Input("more steps than the model was trained on", lambda b: b.capture(steps=1001), "1001"),
    Input("a negative seed", lambda b: b.capture(seed=-1), "a seed must be a whole number"),
    Input(
        "fewer seeds than captions", lambda b: memsub.generate(b.pipe, CAPTIONS[:3], seeds=[0, 1], **OPTIONS), "seeds"
    ),
    Input("a pipeline without its network", lambda b: (setattr(b.pipe, "unet", None), b.capture()), "has no unet"),
    Input("a pipeline without its sampler", lambda b: (setattr(b.pipe, "scheduler", None), b.capture()), "scheduler"),
    Input("a network within DataParallel", lambda b: _parallel(b), "such as by pipe.unet = pipe.unet.module"),
    Input("an edit that is applied a second time", lambda b: _twice(b), "another model"),
    Input("an edit of the model in another dtype", lambda b: _other_dtype(b), "another model"),
    Input(
        "a sparsity as text", lambda b: memsub.locate(b.pipe, b.capture(), b.capture([""]), sparsity="0.1"), "sparsity"
    ),
    Input(
        "statistics of one step against those of two",
        lambda b: memsub.locate(b.pipe, b.capture(), b.capture([""], steps=2)),
        "differently",
    ),
    Input("a weight that is not finite", lambda b: _not_finite(b), "not finite"),
]


def _parallel(box: Box) -> None:
    box.pipe.unet = torch.nn.DataParallel(box.pipe.unet)
    box.capture()


def _twice(box: Box) -> None:
    edit = box.edit()
    edit.apply(box.pipe)
    edit.apply(box.pipe)


def _other_dtype(box: Box) -> None:
    edit = box.edit()
    box.pipe.to(torch.bfloat16)
    edit.apply(box.pipe)


def _not_finite(box: Box) -> memsub.ActivationStats:
    with torch.no_grad():
        next(box.pipe.unet.parameters()).fill_(float("nan"))
    return box.capture()


def outcome(row: Input, box: Box) -> tuple[bool, str]:
    """Whether it ended as it should, and how: what came out, or the error's sentence."""
    try:
        came = row.bring(box)
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:  # anything else is a defect
        sentence = str(error).replace(f"{box.folder}/", "").replace(str(box.folder), ".")
        return not row.right and str(row.ends) in sentence, sentence
    return row.right and came == row.ends, f"{came}"


def cells(row: Input, sentence: str) -> str:
    """The row of the page."""
    sentence = sentence.split(" Prompt lists are ")[0]
    sentence = sentence if len(sentence) <= 220 else f"{sentence[:216]} ..."
    sentence = " ".join(sentence.split()).replace("|", "\\|").replace("<", "&lt;").replace("$", "\\$")
    return f"| {row.what} | {'right' if row.right else 'refused'} | {sentence} |"


INPUTS = {"Prompt lists": LISTS, "Images": IMAGES, "Models": MODELS, "Calls": CALLS}
