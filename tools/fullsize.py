"""Stable Diffusion 1.4 and 2.0 at full size with random weights, for machines that cannot reach a hub.

    pipe = random_pipeline("sd14", sample_size=16)                  # UNet and scheduler; small stand-ins for the rest
    pipe = random_pipeline("sd14", sample_size=8, complete=True)    # text encoder and autoencoder too

All of it but the side of the latents is exactly as published. The tokenizer is the embedded model's: a vocabulary of
49,408 cannot be drawn at random.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from memsub.testbed.dataset import weights_folder

_COMMON: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": (320, 640, 1280, 1280),
    "center_input_sample": False,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "in_channels": 4,
    "out_channels": 4,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "mid_block_scale_factor": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd14": _COMMON | {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd20": _COMMON
    | {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}
"""`unet/config.json` of CompVis/stable-diffusion-v1-4 and of stabilityai/stable-diffusion-2."""

TEXT_ENCODERS: dict[str, dict[str, Any]] = {
    "sd14": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "sd20": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
}
"""`text_encoder/config.json`; the vocabulary has 49,408 tokens, a caption 77."""
AUTOENCODER = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
"""`vae/config.json` of both."""

_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False}
_NOISE |= {"steps_offset": 1}


def random_unet(
    name: Literal["sd14", "sd20"], sample_size: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> UNet2DConditionModel:
    """The UNet with normal weights of standard deviation 0.02, norms at one: 860 million parameters, ten seconds."""
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
        complete: also text encoder and autoencoder as published (another 207 or 424 million parameters), not stand-ins.
    """
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(weights_folder() / "tokenizer", model_max_length=77)
    if complete:
        text = {"vocab_size": 49_408} | TEXT_ENCODERS[name]
        vae = AutoencoderKL(**AUTOENCODER, sample_size=8 * sample_size)
    else:
        text = {"hidden_size": UNETS[name]["cross_attention_dim"], "intermediate_size": 256, "num_hidden_layers": 1}
        text |= {"vocab_size": len(tokenizer), "num_attention_heads": 8}
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=sample_size)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text_encoder = CLIPTextModel(CLIPTextConfig(**text, **special, max_position_embeddings=77))
    scheduler = (
        PNDMScheduler(**_NOISE, skip_prk_steps=True)
        if name == "sd14"
        else DDIMScheduler(**_NOISE, clip_sample=False, prediction_type="v_prediction")
    )
    pipe = StableDiffusionPipeline(
        vae=vae.to(dtype),
        text_encoder=text_encoder.to(dtype).eval(),
        tokenizer=tokenizer,
        unet=random_unet(name, sample_size, seed, dtype),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
