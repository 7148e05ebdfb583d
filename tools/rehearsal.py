"""The whole chain of notebooks on Stable Diffusion 1.4 and 2.0 at full size, with random weights: `make rehearse`.

For each parameter file of these models it makes a local folder with everything that a real run fetches (pipeline,
prompt lists, training images, metrics, and real images if the file needs them). Then it runs all notebooks on this
folder, with small latents, few steps and few prompts. The results mean nothing, and the report's first line says so.
The rehearsal shows that the notebooks run from loading to the report, how long they take, and with how much memory.

    python -m tools.rehearsal sd14-quick          # only this file
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import html
import json
import os
import re
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import torch
import yaml
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from memsub.io.files import save_text
from memsub.io.images import save_image
from memsub.measure.sscd import CONSENT
from memsub.prompts import load_prompts
from memsub.testbed.dataset import weights_folder
from memsub_extra.notebooks import batch
from tools.fullsize import random_pipeline

FILES = ("sd14-quick", "sd20-quick", "sd14", "sd20")
NOTICE = "The weights of this run are random: it shows that everything runs, and nothing else."
MEMORIZED = 15
"""Number of memorized prompts: a third of them reports, of which notebook 07 shows five."""
SMALL: dict[str, Any] = {
    "sampling": {"steps": 2, "batch_size": 4},
    "capture": {"steps": 2},
    "grid": {"memorized": MEMORIZED, "subsets": 2, "sizes": [2]},
    "edit": {"steps": 2},
    "sweep": {"sparsity": [0.01], "steps": [2]},
    "evaluation": {"captions": 2, "models": 1, "controls": 1, "seed_captions": 2},
    "baselines": {
        "captions": 2,
        "never_seen": 4,
        # Value neurons take hours: with random weights, the search does not narrow down the 5,760 neurons.
        "strengths": {"embedding optimization": [1.0], "random tokens": [1], "value neurons": []},
        "timed": 2,
        "turns": 1,
    },
    "detection": {"captions": 2, "calls": 1},
    "extraction": {"captions": 2, "images": 2, "clique": 2},
    "embedding_attack": {"images": 2, "iterations": 2, "noises": 2},
    "deletion": {"targets": 2, "iterations": [0, 2], "noises": 2},
}
"""Smaller numbers for all parts; the choices of a parameter file (solver, contrast, metrics, KID) stay."""


class MeanColours(torch.nn.Module):
    """Replaces SSCD: the mean colour of each cell of a 4 x 4 grid."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)


def save_small_clip(folder: Path, seed: int = 0) -> None:
    """Saves a small CLIP with random weights, in the layout of the published ones."""
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(weights_folder() / "tokenizer")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=24, **special, **tower)
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **tower)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)


def smaller(name: str, folder: Path) -> dict[str, Any]:
    """The parameters of a file in papermill_params/, for the data in a folder, with the numbers of `SMALL`."""
    given = yaml.safe_load((batch.project() / "papermill_params" / f"{name}.yaml").read_text(encoding="utf-8"))
    parts = {part: given[part] | fewer for part, fewer in SMALL.items()}
    if needs_real := bool(given["evaluation"]["real_images"]):  # then FID is rehearsed as well
        parts["evaluation"] |= {"real_images": 4, "fid_images": 4}
    files = {"memorized": "memorized.jsonl", "ordinary": "ordinary.txt", "heldout": "heldout.csv"}
    data = given["data"] | {
        "prompts": {kind: str(folder / file) for kind, file in files.items()},
        "images": str(folder / "gt_images"),
        "real": str(folder / "real") if needs_real else None,
    }
    metrics = given["metrics"] | {"copy": str(folder / "sscd.torchscript.pt"), "prompt": str(folder / "clip")}
    return given | parts | {"model": str(folder / "model"), "data": data, "metrics": metrics}


def prepare(name: str, folder: Path, sample_size: int = 8) -> Path:
    """Writes everything that a run of a parameter file fetches; returns the path of its parameter file."""
    model: Any = name.partition("-")[0]
    pipe = random_pipeline(model, sample_size, dtype=torch.float16, complete=True)
    pipe.save_pretrained(folder / "model", safe_serialization=True)
    save_small_clip(folder / "clip")
    torch.jit.script(MeanColours()).save(str(folder / "sscd.torchscript.pt"))
    # memsub executes a program of unknown content only with this consent.
    os.environ[CONSENT] = hashlib.sha256((folder / "sscd.torchscript.pt").read_bytes()).hexdigest()
    prompts, rng = load_prompts("tiny"), np.random.default_rng(0)
    listed = prompts.memorized_rows[["prompt", "content"]][:MEMORIZED].itertuples()
    rows = [{"caption": r.prompt, "rephrased": r.content, "index": r.Index} for r in listed]
    rows = [row | {"type": "TM" if i % 3 else "VM", "url": "http://localhost/gone"} for i, row in enumerate(rows)]
    save_text("".join(json.dumps(row) + "\n" for row in rows), folder / "memorized.jsonl")
    save_text("\n".join(prompts.ordinary[:MEMORIZED]) + "\n", folder / "ordinary.txt")
    save_text("caption\n" + "\n".join(f'"{c}"' for c in prompts.of("heldout")[:8]) + "\n", folder / "heldout.csv")
    for i in range(MEMORIZED):
        save_image(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8), folder / "gt_images" / str(i) / "0.png")
        save_image(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8), folder / "real" / f"{i}.png")
    save_text(yaml.safe_dump(smaller(name, folder)), folder / f"{name}.yaml")
    return folder / f"{name}.yaml"


def foreign_findings(report: str, notebooks: list[Path]) -> list[str]:
    """Findings of the committed notebooks, which are on the embedded model, that another model's report repeats."""
    repeated = []
    for path in notebooks:
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                prose = output.get("data", {}).get("text/markdown", "")
                sentences = [part for part in re.split(r"(?<=[.;:]) ", prose) if len(re.findall(r"\d+", part)) > 1]
                # Claims with at least three decimals; another model could share round values.
                claims = re.findall(r"\[\d\.\d{3,}, [^\]]*margin[^\]]*\]", output.get("text", ""))
                repeated += [part for part in (*sentences, *claims) if len(part) > 30 and part in report]
    return repeated


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.rehearsal", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *FILES], help=f"which (default: all): {', '.join(FILES)}")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/rehearsal"), help="folder (runs/rehearsal); emptied first"
    )
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    for name in args.names or FILES:
        began = time.monotonic()
        folder = (args.out / name).resolve()
        parameters = prepare(name, folder)
        gc.collect()
        [report] = batch.run([str(parameters)], folder / "run", notice=NOTICE)
        text = html.unescape(re.sub(r"<[^>]+>", "", report.read_text(encoding="utf-8")))
        if foreign := foreign_findings(text, sorted((batch.project() / "notebooks").glob("*.ipynb"))):
            raise SystemExit(f"{report} states what was found on the embedded model: {foreign[0]!r}")
        peak = [resource.getrusage(who).ru_maxrss / 1e6 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        minutes = (time.monotonic() - began) / 60
        print(f"{name}: {minutes:.1f} minutes; peak memory {peak[1]:.1f} GB (notebooks), {peak[0]:.1f} GB (this)")
        print(f"{name}: {report}")
        shutil.rmtree(folder / "model")  # gigabytes


if __name__ == "__main__":
    main()
