"""Stable Diffusion 1.4 and 2.0 as published, without weights, to compute what follows from shapes alone.

pipe = shapes("sd14")                       # on the device "meta": no computation, no memory
with Elsewhere() as device: generate(pipe, ["a red heart"], steps=1)     # its memory on a GPU
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

from memsub.testbed.dataset import weights_folder

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Name = Literal["sd14", "sd20"]

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

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False}
NOISE |= {"steps_offset": 1}


def tokenizer() -> Any:
    """The embedded model's tokenizer, for 77 tokens: the published vocabulary of 49,408 cannot be made at random."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(weights_folder() / "tokenizer", model_max_length=77)


def scheduler(name: Name) -> Any:
    """The published scheduler: PNDM with epsilon-prediction for 1.4, DDIM with v-prediction for 2.0."""
    from diffusers import DDIMScheduler, PNDMScheduler

    if name == "sd14":
        return PNDMScheduler(**NOISE, skip_prk_steps=True)
    return DDIMScheduler(**NOISE, clip_sample=False, prediction_type="v_prediction")


def shapes(name: Name, dtype: torch.dtype = torch.float16, sample_size: int | None = None) -> StableDiffusionPipeline:
    """The pipeline on the device "meta", with the embedded model's tokenizer.

    Args:
        sample_size: side of the latents; default: as published (64 and 96).
    """
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    words = tokenizer()
    special = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    text = CLIPTextConfig(**TEXT_ENCODERS[name], **special, vocab_size=49_408, max_position_embeddings=77)
    size = sample_size or UNETS[name]["sample_size"]
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(**UNETS[name] | {"sample_size": size}),
            "vae": AutoencoderKL(**AUTOENCODER, sample_size=8 * size),
            "text_encoder": CLIPTextModel(text),
        }
    pipe = StableDiffusionPipeline(
        **{part: module.to(dtype).eval() for part, module in parts.items()},
        tokenizer=words,
        scheduler=scheduler(name),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
