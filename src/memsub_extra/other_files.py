"""What people have where a Stable Diffusion is expected: what a folder or file is instead, and what to do with it.

Checks of `memsub.models.contents.CHECKS`: from names, shapes and configurations that were read, sentences.
"""

from __future__ import annotations

import re

from memsub.io.headers import read_config
from memsub.models.contents import PICKLES, Contents

FUSE = "pipe.load_lora_weights(...), pipe.fuse_lora(), pipe.unload_lora_weights(), pipe.save_pretrained(FOLDER)"
SINGLE_FILES = {
    f"a LoRA, which changes another model. Fuse it into that one and give the folder: {FUSE}": (
        "lora_up|lora_down|lora_[AB]|lora_unet_|lora_te|hada_w1|lokr_w|oft_blocks|dora_scale"
    ),
    "an IP-Adapter, which conditions another model on images": r"ip_adapter\.|image_proj\.",
    "a ControlNet, which steers another model": (
        r"control_model\.|controlnet_cond_embedding|controlnet_down_blocks|controlnet_blocks|input_hint_block"
    ),
    "a motion module of AnimateDiff": r"motion_modules\.",
    "a Flux transformer": r"double_blocks\.|single_transformer_blocks\.",
    "a Stable Diffusion 3 transformer": r"joint_blocks\.|context_embedder\.",
    "an upscaler of images, which takes no captions": r"RRDB_trunk|\.rdb1\.|residual_group\.|^body\.0\.",
    "a textual inversion, the embedding of a word for another model": "emb_params|string_to_param|^<.*>$|^clip_[lg]$",
    "a diffusion transformer of another family": "adaLN_modulation|adaln_single|cross_attn|x_embedder|patchify_proj",
    "an SDXL refiner, which takes images": r"^conditioner\.embedders\.0\.model\.",
    "a network of another layout, without cross-attention as in Stable Diffusion": r"^model\.diffusion_model\.",
    "a UNet alone. Give the folder of its whole pipeline": (
        r"^(down_blocks\.0\.resnets|time_embedding\.linear_1|input_blocks\.0\.0|time_embed\.0)\b"
    ),
    "an autoencoder alone": r"^first_stage_model\.|decoder\.(conv_in|layers\.0|mid)\b",
    "a text encoder alone": r"token_embedding\.weight|encoder\.block\.0\.layer|shared\.weight|embed_tokens\.weight",
}
"""What a file is, and what some tensor's name in it looks like. The first match counts."""
_QUANTIZED_TYPES = re.compile(r"F8_|F4|F6_|I8$|U8$|I4|U4")
_QUANTIZED_NAMES = re.compile(
    r"\.(absmax|scale_weight|weight_scale|scale_input|quant_map|qweight|qzeros|SCB)$|scaled_fp8"
)
_SIZES = (
    ("unet", "in_channels", "conv_in.weight", 1),
    ("unet", "out_channels", "conv_out.weight", 0),
    ("unet", "cross_attention_dim", "attn2.to_k.weight", 1),
    ("vae", "latent_channels", "decoder.conv_in.weight", 1),
    ("text_encoder", "hidden_size", "token_embedding.weight", 1),
    ("text_encoder", "vocab_size", "token_embedding.weight", 0),
)
"""Part, entry of its configuration, the end of a tensor's name, and which axis has that size."""


def other_kinds(contents: Contents) -> list[str]:
    """What a folder or file is that is no pipeline."""
    if contents.kind or contents.problems or "model_index.json" in contents.names:
        return []
    if contents.path.is_dir():
        return [f"{contents.path} is no diffusers pipeline, it holds no model_index.json: {_folder(contents)}."]
    header = contents.tensors[""]
    if '"kind"' in getattr(header, "metadata", {}).get("about", ""):
        return [f"{contents.path} is an artifact of memsub, not a model; an edit is given by --edit."]
    first = ", ".join(list(header)[:3]) or "no tensors at all"
    what = next((w for w, form in SINGLE_FILES.items() if any(re.search(form, name) for name in header)), "")
    return [f"{contents.path} is {what or f'of a layout that memsub does not know ({first})'}."]


def _folder(contents: Contents) -> str:
    names, path = contents.names, contents.path
    top = [name for name in names if "/" not in name]
    if inside := [name.removesuffix("/model_index.json") for name in names if name.endswith("/model_index.json")]:
        return f"give one of its folders that do, such as {path / inside[0]}"
    if any("lora" in name.lower() or name == "adapter_config.json" for name in top):
        return f"it is a LoRA, which changes another model. Fuse it into that one and give the folder: {FUSE}"
    if "config.json" in top:
        config = contents.read("config.json", read_config)
        kind = config.get("_class_name") or config.get("model_type") or "of an unknown class"
        return f"it is one part of a pipeline ({kind}). Give the folder of the whole pipeline"
    if any(name.endswith(".onnx") for name in names):
        return "it is an export to ONNX, whose weights cannot be edited"
    if files := [name for name in top if name.endswith((".safetensors", ".gguf", *PICKLES))]:
        return f"it holds single files. Give one of them, such as {path / files[0]}"
    if parts := sorted({name.split("/")[0] for name in names if re.fullmatch(r"[^/]+/(\w+_)?config\.json", name)}):
        return f"it holds {', '.join(parts)} alone. Save the whole pipeline (pipe.save_pretrained)"
    return "it holds nothing of a model" if names else "it is empty"


def contradictions(contents: Contents) -> list[str]:
    """Sizes that a configuration and the weights beside it disagree on."""
    return [
        f"{contents.path / part} contradicts itself: config.json says {key} {size}, but {name} has the shape {t.shape}."
        for part, key, end, axis in _SIZES
        if isinstance(size := contents.configs.get(part, {}).get(key), int)
        for name, t in [item for item in contents.tensors.get(part, {}).items() if item[0].endswith(end)][:1]
        if t.shape[axis : axis + 1] != (size,)
    ]


def not_plain(contents: Contents) -> list[str]:
    """Weights that are quantized, or that an adapter lies over which is not fused."""
    sentences: list[str] = []
    if not contents.kind:
        return sentences
    for part, config in contents.configs.items():
        if quantized := config.get("quantization_config"):
            method = quantized.get("quant_method") if isinstance(quantized, dict) else None
            sentences.append(
                f"{contents.path / part} is quantized ({method or 'by an unknown method'}); memsub edits plain "
                "floating weights: take the model as it was before."
            )
        if part and "auto_map" in config:
            sentences.append(f"{contents.path / part} brings code of its own (auto_map), which memsub does not run.")
    for part, tensors in contents.tensors.items():
        where = contents.path / part
        if adapter := next((n for n in tensors if ".base_layer." in n or ".lora_A." in n), None):
            sentences.append(f"{where} was saved with a LoRA that is not fused ({adapter}). Fuse it before: {FUSE}.")
        types = {t.dtype for t in tensors.values() if _QUANTIZED_TYPES.match(t.dtype)}
        scale = next((name for name in tensors if _QUANTIZED_NAMES.search(name)), None)
        castable = not scale and all(name.startswith("F8_") for name in types)
        if scale or (types and not (castable and contents.cast)):
            way = "give dtype= to cast them" if castable else "take the model as it was before"
            sentences.append(
                f"{where} holds quantized weights ({scale or ', '.join(sorted(types))}); memsub edits plain floating "
                f"weights: {way}."
            )
    return sentences
