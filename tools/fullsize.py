"""Stable Diffusion 1.4 and 2.0 at full size with random weights, for machines that cannot reach a hub.

    pipe = random_pipeline("sd14", sample_size=16)                  # UNet and scheduler; small stand-ins for the rest
    pipe = random_pipeline("sd14", sample_size=8, complete=True)    # with text encoder and autoencoder as published

These parts are exactly as published, except for the side of the latents. The tokenizer is the embedded model's, because
a vocabulary of 49,408 words cannot be made at random.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from memsub.io.files import load_json, save_json
from memsub_extra.full_size import shapes as published
from memsub_extra.full_size.shapes import AUTOENCODER, TEXT_ENCODERS, UNETS


def random_unet(
    name: Literal["sd14", "sd20"], sample_size: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> UNet2DConditionModel:
    """The UNet with normal weights (standard deviation 0.02) and norms of one: 860 million parameters, ten seconds."""
    config = UNETS[name] | ({"sample_size": sample_size} if sample_size else {})
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    unet = unet.to(dtype).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in unet.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                parameter.fill_(1.0 if "norm" in parameter_name and parameter_name.endswith("weight") else 0.0)
    return unet.eval()


def random_pipeline(
    name: Literal["sd14", "sd20"],
    sample_size: int = 16,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    complete: bool = False,
) -> StableDiffusionPipeline:
    """A pipeline around `random_unet`, with the embedded model's tokenizer.

    Args:
        sample_size: side of the latents; the published 64 and 96 take minutes a step on a CPU.
        complete: text encoder and autoencoder as published (another 207 or 424 million parameters), not stand-ins.
    """
    torch.manual_seed(seed)
    tokenizer = published.tokenizer()
    if complete:
        text = {"vocab_size": 49_408} | TEXT_ENCODERS[name]
        vae = AutoencoderKL(**AUTOENCODER, sample_size=8 * sample_size)
    else:
        text = {"hidden_size": UNETS[name]["cross_attention_dim"], "intermediate_size": 256, "num_hidden_layers": 1}
        text |= {"vocab_size": len(tokenizer), "num_attention_heads": 8}
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=sample_size)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text_encoder = CLIPTextModel(CLIPTextConfig(**text, **special, max_position_embeddings=77))
    pipe = StableDiffusionPipeline(
        vae=vae.to(dtype),
        text_encoder=text_encoder.to(dtype).eval(),
        tokenizer=tokenizer,
        unet=random_unet(name, sample_size, seed, dtype),
        scheduler=published.scheduler(name),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rows_in_processes(tool: str, jobs: Iterable[tuple[dict[str, str], list[str]]], out: Path | None) -> bool:
    """Measures rows by `python -m TOOL --here ARGUMENTS`, each in a separate process with its own peak memory.

    Args:
        jobs: for each row its key (columns and values that identify it), and the arguments.
        out: JSON file, saved after each row; its rows with other keys are kept.

    Returns:
        Whether all rows were measured. Failed ones are printed.
    """
    rows, whole = load_json(out) if out and out.is_file() else [], True
    for key, arguments in jobs:
        command = [sys.executable, "-m", tool, "--here", *arguments]
        done = subprocess.run(command, check=False, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE)
        if done.returncode:
            print(f"{', '.join(key.values())}: failed ({done.returncode}; -9 is not enough memory)", flush=True)
            whole = False
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        print(row, flush=True)
        rows = [other for other in rows if any(other[column] != value for column, value in key.items())] + [row]
        if out:
            save_json(rows, out)
    return whole
