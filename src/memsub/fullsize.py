"""Stable Diffusion 1.4 and 2.0 at full size with random weights, for machines that cannot reach a hub.

    pipe = random_pipeline("sd14", sample_size=16)

The UNets and schedulers have the published configurations exactly; text encoder and autoencoder are small stand-ins of the
right widths, since the method does not touch them.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .testbed.dataset import weights_folder

_COMMON = {
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
UNETS = {
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

_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False}
_NOISE |= {"steps_offset": 1}


def random_unet(
    name: Literal["sd14", "sd20"], sample_size: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> UNet2DConditionModel:
    """The UNet with normal weights of standard deviation 0.02, norms at one: 860 million parameters, about ten seconds."""
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
    name: Literal["sd14", "sd20"], sample_size: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    """A pipeline around `random_unet`, with the embedded model's tokenizer and stand-ins for the rest.

    Args:
        sample_size: side of the latents; the published 64 and 96 take minutes a step on a CPU.
    """
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(weights_folder() / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=UNETS[name]["cross_attention_dim"],
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=8,
        max_position_embeddings=tokenizer.model_max_length,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=sample_size)
    scheduler = (
        PNDMScheduler(**_NOISE, skip_prk_steps=True)
        if name == "sd14"
        else DDIMScheduler(**_NOISE, clip_sample=False, prediction_type="v_prediction")
    )
    pipe = StableDiffusionPipeline(
        vae=vae.to(dtype),
        text_encoder=CLIPTextModel(text).to(dtype).eval(),
        tokenizer=tokenizer,
        unet=random_unet(name, sample_size, seed, dtype),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
