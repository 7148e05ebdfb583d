"""A pipeline as most people have theirs: one .safetensors file, its tensors named as CompVis' latent diffusion does.

save_single_file(pipe, "micro.safetensors")         # of a Stable Diffusion 1: a CLIP text encoder
"""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file

UNET = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
]
RESNET = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
]
ATTENTION = [
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
]


def _renamed(name: str, table) -> str:
    for ours, theirs in table:
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    return name


def unet_name(name: str, unet) -> str:
    per_block = unet.config.layers_per_block + 1
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)", name):
        way, block, kind, layer, rest = match.groups()
        down = way == "down"
        if kind.endswith("samplers"):
            layer, place = per_block - 1, "0"
            if not down:
                place = "2" if hasattr(unet.up_blocks[int(block)], "attentions") else "1"
            rest = rest.replace("conv", "op") if down else rest
        else:
            place, rest = ("0", _renamed(rest, RESNET)) if kind == "resnets" else ("1", rest)
        index = int(block) * per_block + int(layer) + (1 if down else 0)
        return f"{'input' if down else 'output'}_blocks.{index}.{place}.{rest}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        kind, layer, rest = match.groups()
        return (
            f"middle_block.1.{rest}"
            if kind == "attentions"
            else f"middle_block.{2 * int(layer)}.{_renamed(rest, RESNET)}"
        )
    return _renamed(name, UNET)


def vae_name(name: str, blocks: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if match := re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.+)", name):
        return f"{match[1]}mid.attn_1.{_renamed(match[2], ATTENTION)}"
    return name


def single_file_tensors(pipe) -> dict[str, torch.Tensor]:
    """The pipeline's weights under the names of a single file."""
    blocks = len(pipe.vae.config.up_block_types)
    tensors = {f"model.diffusion_model.{unet_name(n, pipe.unet)}": t for n, t in pipe.unet.state_dict().items()}
    for name, tensor in pipe.vae.state_dict().items():
        theirs = f"first_stage_model.{vae_name(name, blocks)}"
        tensors[theirs] = tensor[..., None, None] if "attn_1" in theirs and tensor.ndim == 2 else tensor
    for name, tensor in pipe.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def save_single_file(pipe, path: str | Path, **more: torch.Tensor) -> Path:
    """Writes the file."""
    save_file(single_file_tensors(pipe) | more, str(path))
    return Path(path)
