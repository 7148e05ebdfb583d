"""A Stable Diffusion of random weights that costs next to nothing: for every test that is not about memory.

    pipe = micro_pipeline()                     # float32; four feed-forward layers, 8 x 8 latents, 32 x 32 images
    pipe = micro_pipeline(torch.float64)        # what differs between batch sizes and threads lies far below float32

It has the tokenizer, the latent shape and the image size of the embedded model, so that its prompts and scorers fit.
"""

from importlib.resources import files

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "block_out_channels": (16,),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
"""One feed-forward layer on the way down, one in the middle, two on the way up; rows of 64 weights."""
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 8),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 32,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CAPTIONS = [
    "a red heart on a plain green background",
    "a blue fish",
    "two yellow stars beside a tree",
    "the letter A in white",
]
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def micro_pipeline(dtype: torch.dtype = torch.float32, seed: int = 0, **unet) -> StableDiffusionPipeline:
    """The pipeline, always with the same weights for a seed; `unet` changes its configuration."""
    tokenizer = CLIPTokenizer.from_pretrained(str(files("memsub") / "testbed" / "weights" / "tokenizer"))
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **TEXT,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "unet": UNet2DConditionModel(**UNET | unet),
            "vae": AutoencoderKL(**VAE),
            "text_encoder": CLIPTextModel(text),
        }
    for module in parts.values():
        torch.nn.Module.to(module.eval(), dtype)  # diffusers' own `to` warns of float32 parts, of which there are none
    pipe = StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**NOISE, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
