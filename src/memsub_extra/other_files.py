"""Recognizes folders and files that are no Stable Diffusion pipeline: says what they are, and what to do with them.

It is listed in `memsub.models.contents.OTHER_FORMS`, uses the names and shapes that were read, and reads single files.
"""

from __future__ import annotations

import re

from memsub.io.headers import PICKLES, read_config
from memsub.models.contents import FUSE, Contents

from .single_file import read_single_file

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
"""Description of a file, and a pattern that the name of one of its tensors matches. The first match counts."""


def read(contents: Contents) -> None:
    """Reads a single file; if it is no pipeline, `problems` say what it is."""
    if not contents.path.is_dir():
        read_single_file(contents)
    if not contents.kind and not contents.problems:
        contents.problems.append(_explained(contents))


def _explained(contents: Contents) -> str:
    if contents.path.is_dir():
        return f"{contents.path} is no diffusers pipeline, it holds no model_index.json: {_folder(contents)}."
    header = contents.tensors[""]
    if '"kind"' in getattr(header, "metadata", {}).get("about", ""):
        return f"{contents.path} is an artifact of memsub, not a model; an edit is given by --edit."
    first = ", ".join(list(header)[:3]) or "no tensors at all"
    what = next((w for w, form in SINGLE_FILES.items() if any(re.search(form, name) for name in header)), "")
    return f"{contents.path} is {what or f'of a layout that memsub does not know ({first})'}."


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
