"""Tiny pipelines of other families with random weights, as small as their own tests in diffusers build them.

    pipe = BUILDERS["FluxPipeline"]()       # float32, 8 x 8 latents or less; always the same weights

All of them have the embedded model's tokenizer: what a T5 would cut otherwise makes no difference here.
"""

from functools import cache
from importlib.resources import files

import diffusers as d
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from micro import NOISE, TEXT, UNET, VAE

XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
    "cross_attention_dim": 32,
}
"""What SDXL's UNet has beside Stable Diffusion's: six added numbers of width 8, a pooled embedding of 16."""
FLUX = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 1,
    "joint_attention_dim": 32,
}
"""What Flux and its kin have in common."""
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
EULER = NOISE | {"timestep_spacing": "leading", "steps_offset": 1}
EULER = {key: value for key, value in EULER.items() if key != "clip_sample"}


@cache
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(str(files("memsub") / "testbed" / "weights" / "tokenizer"))


def clip(kind=CLIPTextModel, **changed):
    tokens = tokenizer()
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokens),
            max_position_embeddings=tokens.model_max_length,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            projection_dim=16,
            **TEXT | {"num_hidden_layers": 2} | changed,
        )
    )


def t5(width=32):
    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer()), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


def vae(channels=4, **changed):
    return d.AutoencoderKL(**VAE | {"latent_channels": channels} | changed)


def flow(**changed):
    return d.FlowMatchEulerDiscreteScheduler(**changed)


def ready(kind, modules: dict, **others):
    for module in modules.values():
        module.eval()
    pipe = kind(**modules, **others)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(build):
    """A builder whose weights are always the same, and leave torch's global random numbers alone."""

    def make(**changed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(**changed)

    return make


@seeded
def stable_diffusion_xl(dtype=torch.float32, pipeline=None, zeros=True, scheduler=None, **unet):
    modules = {
        "unet": d.UNet2DConditionModel(**UNET | XL | unet),
        "vae": vae(),
        "text_encoder": clip(),
        "text_encoder_2": clip(CLIPTextModelWithProjection),
    }
    for module in modules.values():
        torch.nn.Module.to(module, dtype)
    options = {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
    tokenizers = {"tokenizer": tokenizer(), "tokenizer_2": tokenizer()}
    scheduler = scheduler or d.EulerDiscreteScheduler(**EULER)
    return ready(d.StableDiffusionXLPipeline, modules, scheduler=scheduler, **tokenizers, **options)


@seeded
def pixart(kind=d.PixArtAlphaPipeline):
    network = d.PixArtTransformer2DModel(
        sample_size=32,
        patch_size=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=32,
        use_additional_conditions=False,
    )
    modules = {"transformer": network, "vae": vae(), "text_encoder": t5()}
    return ready(kind, modules, tokenizer=tokenizer(), scheduler=d.DPMSolverMultistepScheduler(**EULER))


@seeded
def stable_diffusion_3():
    network = d.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    modules = {
        "transformer": network,
        "vae": vae(shift_factor=0.1),
        "text_encoder": clip(CLIPTextModelWithProjection),
        "text_encoder_2": clip(CLIPTextModelWithProjection),
    }
    tokenizers = {name: tokenizer() for name in ("tokenizer", "tokenizer_2")}
    return ready(
        d.StableDiffusion3Pipeline,
        modules,
        scheduler=flow(shift=3.0),
        text_encoder_3=None,
        tokenizer_3=None,
        **tokenizers,
    )


@seeded
def flux(guidance_embeds=True, kind=d.FluxPipeline):
    more = {"pooled_projection_dim": 16, "guidance_embeds": guidance_embeds, "axes_dims_rope": (4, 4, 8)}
    network = d.FluxTransformer2DModel(**FLUX, **more)
    modules = {"transformer": network, "vae": vae(shift_factor=0.1), "text_encoder": clip(), "text_encoder_2": t5()}
    tokenizers = {name: tokenizer() for name in ("tokenizer", "tokenizer_2")}
    return ready(kind, modules, scheduler=flow(use_dynamic_shifting=True), **tokenizers)


@seeded
def chroma():
    approximator = {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1}
    network = d.ChromaTransformer2DModel(**FLUX, **approximator, axes_dims_rope=(4, 4, 8))
    modules = {"transformer": network, "vae": vae(shift_factor=0.1), "text_encoder": t5()}
    return ready(d.ChromaPipeline, modules, scheduler=flow(), tokenizer=tokenizer())


@seeded
def hunyuan_dit():
    network = d.HunyuanDiT2DModel(
        sample_size=8,
        patch_size=2,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        hidden_size=16,
        cross_attention_dim=16,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        text_len=77,
        text_len_t5=256,
        mlp_ratio=2.0,
        activation_fn="gelu-approximate",
    )
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer()),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    )
    # Its pipeline takes the autoencoder to shrink by 8, whatever it does.
    by_8 = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    modules = {
        "transformer": network,
        "vae": vae(block_out_channels=(8,) * 4, **by_8),
        "text_encoder": bert,
        "text_encoder_2": t5(),
    }
    return ready(
        d.HunyuanDiTPipeline,
        modules,
        scheduler=d.DDIMScheduler(**NOISE),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        **UNCHECKED,
    )


@seeded
def cogview3_plus():
    network = d.CogView3PlusTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    )
    modules = {"transformer": network, "vae": vae(), "text_encoder": t5()}
    return ready(d.CogView3PlusPipeline, modules, scheduler=d.CogVideoXDDIMScheduler(), tokenizer=tokenizer())


@seeded
def bria():
    from diffusers.models.transformers.transformer_bria import BriaTransformer2DModel

    network = BriaTransformer2DModel(**FLUX, axes_dims_rope=[0, 8, 8])
    modules = {"transformer": network, "vae": vae(), "text_encoder": t5()}
    return ready(d.BriaPipeline, modules, scheduler=flow(), tokenizer=tokenizer())


@seeded
def latent_consistency(**unet):
    modules = {
        "unet": d.UNet2DConditionModel(**UNET | {"time_cond_proj_dim": 16} | unet),
        "vae": vae(),
        "text_encoder": clip(),
    }
    scheduler = d.LCMScheduler(**NOISE)
    return ready(d.LatentConsistencyModelPipeline, modules, scheduler=scheduler, tokenizer=tokenizer(), **UNCHECKED)


BUILDERS = {
    "PixArtAlphaPipeline": pixart,
    "PixArtSigmaPipeline": lambda: pixart(kind=d.PixArtSigmaPipeline),
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "FluxPipeline": flux,
    "ChromaPipeline": chroma,
    "HunyuanDiTPipeline": hunyuan_dit,
    "CogView3PlusPipeline": cogview3_plus,
    "BriaPipeline": bria,
    "LatentConsistencyModelPipeline": latent_consistency,
}
