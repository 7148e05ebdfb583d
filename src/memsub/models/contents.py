"""Inspects the files of a model by their configurations and headers, without torch, before any weight is read.

    contents = inspect("path/to/folder")                # or one .safetensors file
    contents.kind                                       # "StableDiffusionPipeline"
    contents.tensors["unet"]["conv_in.weight"].shape    # (320, 4, 3, 3)
    contents.problems                                   # sentences on why it cannot be loaded; empty if it can

`ADAPTERS` lists the pipelines that can be loaded. An adapter may have a static method `refuses`, which takes the
configurations by part, and returns sentences on what it does not support.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from ..io.headers import PICKLES, TensorInfo, read_config, read_header
from ..registry import Registry
from .protocol import ADAPTERS

PREDICTIONS = ("epsilon", "v_prediction", "sample")
_QUANTIZED_TYPES = re.compile(r"F8_|F4|F6_|I8$|U8$|I4|U4")
_QUANTIZED_NAMES = re.compile(
    r"\.(absmax|scale_weight|weight_scale|scale_input|quant_map|qweight|qzeros|SCB)$|scaled_fp8"
)
_SIZES = (
    ("unet", "in_channels", r"conv_in\.weight$", 1),
    ("unet", "out_channels", r"conv_out\.weight$", 0),
    ("unet", "cross_attention_dim", r"attn2\.to_k\.weight$", 1),
    ("unet", "layers_per_block", r"^down_blocks\.0\.resnets\.(\d+)", None),
    ("unet", "transformer_layers_per_block", r"^down_blocks\.0\.attentions\.0\.transformer_blocks\.(\d+)", None),
    ("vae", "latent_channels", r"decoder\.conv_in\.weight$", 1),
    ("vae", "layers_per_block", r"^encoder\.down_blocks\.0\.resnets\.(\d+)", None),
    ("text_encoder", "hidden_size", r"token_embedding\.weight$", 1),
    ("text_encoder", "vocab_size", r"token_embedding\.weight$", 0),
    ("text_encoder", "num_hidden_layers", r"\blayers\.(\d+)\.", None),
)
"""Part, entry of its configuration, tensors, and the axis with that size; None: count the numbers in their names."""
FUSE = "pipe.load_lora_weights(...), pipe.fuse_lora(), pipe.unload_lora_weights(), pipe.save_pretrained(FOLDER)"
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that a pipeline does not require."""
_OTHER_SAMPLERS = ("RePaint", "ScoreSde", "VQDiffusion", "Amused")  # they repaint, or step other kinds of latents
_NO_WEIGHTS = re.compile(r"(Tokenizer|TokenizerFast|Scheduler|FeatureExtractor|Processor)$")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", ".model")
_CONVERT = (
    "from diffusers import DiffusionPipeline as P; "
    "P.from_pretrained({path!r}, use_safetensors=False, safety_checker=None).save_pretrained({out!r})"
)


@dataclass
class Contents:
    """The content of a model's files, without its weights.

    Attributes:
        path: folder or single file.
        names: files of the folder, relative to it.
        prediction_type: what the network predicts; None if unknown.
        cast: whether weights will be cast to another dtype; if so, they may be float8.
        fetch: whether configurations may be fetched from the hub.
        kind: class of the pipeline; empty if the files are no pipeline.
        configs: by part; "" is model_index.json. A single file takes those of the folder `config`.
        tensors: tensors by part. Those of a single file keep their names, in the part "".
        width: for a single file: width of the embeddings that its cross-attention takes.
        variant: variant of the files, such as "fp16".
        files: files that loading requires, relative to the folder.
        problems: sentences on why the model cannot be loaded.
    """

    path: Path
    names: Collection[str] = ()
    prediction_type: str | None = None
    cast: bool = False
    fetch: bool = False
    config: Path | None = None
    kind: str = ""
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, dict[str, TensorInfo]] = field(default_factory=dict)
    width: int = 0
    variant: str | None = None
    files: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises ValueError with the first problem, if there is one."""
        if self.problems:
            raise ValueError(self.problems[0])

    def layers(self) -> dict[str, tuple[int, ...]]:
        """Shapes (d, f) of the second feed-forward maps, by their names in the files."""
        named = [item for tensors in self.tensors.values() for item in tensors.items()]
        return {name.removesuffix(".weight"): t.shape for name, t in named if name.endswith("ff.net.2.weight")}

    def read(self, name: str, reader: Callable[[Path], Any]) -> Any:
        """Reads a file by `read_config` or `read_header`. An error is added to `problems`, and returns {}."""
        try:
            return reader(self.path / name)
        except (OSError, ValueError) as error:
            self.problems.append(str(error))
            return {}


OTHER_FORMS: Registry[Callable[[Contents], None]] = Registry("memsub.model_forms", "form of a model", {})
"""Readers of models that are no diffusers folders: they fill in the fields, or add to `problems`."""


def inspect(
    path: str | Path,
    *,
    config: str | Path | None = None,
    prediction_type: str | None = None,
    cast: bool = False,
    fetch: bool = False,
    names: Collection[str] | None = None,
) -> Contents:
    """Inspects a folder or file. It raises nothing: whatever is wrong is listed in `problems`.

    Args:
        config: for a single file: a diffusers folder of the same family with its configurations and tokenizer.
        prediction_type: what the network predicts, if its files do not say it.
        cast: weights will be cast to another dtype.
        fetch: fetch the configurations that a single file lacks from the hub.
        names: files that the folder will have (default: its present files). Headers of present files are read.
    """
    contents = Contents(Path(path), names or (), prediction_type, cast, fetch)
    contents.config = Path(config).expanduser() if config else None
    if contents.path.is_dir():
        if config:
            contents.problems.append(f"{path} is a folder with configurations: --config is for single files.")
        contents.names = listed(contents.path) if names is None else names
        read_folder(contents)
    if "" not in contents.configs and not contents.problems:
        for read in OTHER_FORMS.values():
            read(contents)
    if contents.kind:
        contents.problems = [*_not_plain(contents), *contents.problems, *_contradictions(contents)]
    if not contents.kind and not contents.problems:
        contents.problems.append(f"{path} is no pipeline that memsub knows: it takes {', '.join(ADAPTERS)}.")
    contents.prediction_type = contents.prediction_type or contents.configs.get("scheduler", {}).get("prediction_type")
    if contents.prediction_type not in (None, *PREDICTIONS):
        contents.problems.append(
            f"{path} predicts {contents.prediction_type!r}; memsub takes {', '.join(PREDICTIONS)}."
        )
    return contents


def listed(folder: Path) -> list[str]:
    """Files of a folder and its subfolders, no deeper, because the folder may be a whole disk."""
    levels = ("*", "*/*", "*/*/model_index.json")
    return sorted(p.relative_to(folder).as_posix() for level in levels for p in folder.glob(level) if p.is_file())


# --- folders ----------------------------------------------------------------------------------------------------------


def read_folder(contents: Contents, weights: bool = True) -> None:
    """Reads model_index.json, then the configuration of each part, then headers."""
    if "model_index.json" not in contents.names:
        return
    index = contents.read("model_index.json", read_config)
    contents.configs[""], contents.files = index, ["model_index.json"]
    _check_index(contents, index)
    stems = {}
    for part, entry in index.items():
        if contents.problems or not isinstance(entry, list) or entry[0] is None or part == "safety_checker":
            continue
        inside = [name for name in contents.names if name.startswith(f"{part}/")]
        if not inside and part not in OPTIONAL:
            contents.problems.append(f"{contents.path} has no {part}/, which its model_index.json names.")
        if not inside:
            continue
        contents.files += [name for name in inside if re.fullmatch(r"[^/]+/[^/]+\.(json|txt|model)", name)]
        if entry[1].endswith("Scheduler"):
            contents.configs[part] = contents.read(f"{part}/scheduler_config.json", read_config)
        elif "Tokenizer" in entry[1] and not any(name.endswith(_VOCABULARIES) for name in inside):
            contents.problems.append(f"{contents.path / part} has no vocabulary ({', '.join(_VOCABULARIES)}).")
        elif not _NO_WEIGHTS.search(entry[1]):
            contents.configs[part] = contents.read(f"{part}/config.json", read_config)
            stems[part] = "model" if entry[0] == "transformers" else "diffusion_pytorch_model"
    refuses = refused if contents.kind == "StableDiffusionPipeline" else None
    if refuses is None and not contents.problems:
        refuses = getattr(ADAPTERS[contents.kind], "refuses", None)
    try:
        sentences = refuses(contents.configs) if refuses else ()
        contents.problems += [f"{contents.path}: {sentence}" for sentence in sentences]
    except (TypeError, AttributeError, LookupError) as error:  # for example text in place of numbers
        contents.problems.append(f"{contents.path}: its configurations are not those of a {contents.kind} ({error}).")
    if weights and not contents.problems:
        _weights(contents, stems)


def _check_index(contents: Contents, index: Mapping[str, Any]) -> None:
    """Sets the kind. A kind without an adapter, and parts with code from other packages, are problems."""
    kind, path = index.get("_class_name"), contents.path
    trusted = {"diffusers", "transformers", "memsub", *(re.split("[.:]", p)[0] for p in ADAPTERS.places().values())}
    for part, entry in index.items():
        if not isinstance(entry, list) or part in ("safety_checker", "_class_name"):  # the checker is never loaded
            continue
        if len(entry) != 2 or (not all(isinstance(e, str) for e in entry) and entry[0] is not None):
            contents.problems.append(f"{path}/model_index.json: {part} should be [library, class], not {entry!r:.80}.")
        elif entry[0] and (entry[0].split(".")[0] not in trusted or re.match(r"(diffusers|transformers)\.", entry[0])):
            contents.problems.append(
                f"{path} names code of {entry[0]!r} for its {part}: of strangers' code nothing is imported, only "
                f"{', '.join(sorted(trusted))}."
            )
    if not isinstance(kind, str) and not contents.problems:
        what = (
            f"brings code of its own ({kind[0]!r:.80})" if isinstance(kind, list) and kind else "names no _class_name"
        )
        contents.problems.append(f"{path}/model_index.json {what}; the class of a pipeline of diffusers is expected.")
    contents.kind = kind if isinstance(kind, str) else ""
    check_kind(contents)


def check_kind(contents: Contents) -> None:
    if contents.kind and contents.kind not in ADAPTERS:
        contents.problems.append(f"{contents.path} is a {contents.kind}; memsub takes {', '.join(ADAPTERS)}.")


def refused(configs: Mapping[str, Mapping[str, Any]], loaded: bool = False) -> list[str]:
    """Why these configurations are no plain Stable Diffusion, in sentences: `refuses` of its adapter.

    A loaded pipeline may lack the text encoder, and may take guidance as an input. For an IP-Adapter, the error of
    `layers` says how to unload it.
    """
    index, unet = configs[""], configs.get("unet", {})
    needed = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    if not loaded and (lacking := [part for part in needed if (index.get(part) or [None])[0] is None]):
        return [f"a Stable Diffusion without {', '.join(lacking)} cannot sample for captions."]
    if index["unet"] != ["diffusers", "UNet2DConditionModel"] and index["unet"][0] == "diffusers":
        return [f"its network is of the class {index['unet'][1]}; UNet2DConditionModel is expected."]
    inputs, outputs, side = unet.get("in_channels", 4), unet.get("out_channels", 4), unet.get("sample_size", 64)
    latents = configs.get("vae", {}).get("latent_channels", inputs)
    width, hidden = unet.get("cross_attention_dim", 1280), configs.get("text_encoder", {}).get("hidden_size")
    more = {
        "class embeddings": unet.get("class_embed_type") or unet.get("num_class_embeds"),
        "addition embeddings, such as SDXL's": unet.get("addition_embed_type"),
        "guidance as an input (time_cond_proj_dim), such as LCM's": not loaded and unet.get("time_cond_proj_dim"),
        "projected embeddings (encoder_hid_dim_type)": not loaded and unet.get("encoder_hid_dim_type"),
        f"{unet.get('attention_type')} attention": unet.get("attention_type", "default") != "default",
        f"{inputs!r} input and {outputs!r} output channels{', as for inpainting' * (inputs == 9)}": inputs != outputs,
        f"{inputs} channels where its autoencoder has {latents}": inputs == outputs != latents,
        f"cross-attention of {width} numbers where its text encoder makes {hidden}": hidden not in (None, width),
        "no cross-attention, so no captions": not any("Attn" in str(b) for b in unet.get("down_block_types", ["Attn"])),
        "no sample_size in its config.json (the side of its latents)": not all(
            isinstance(length, int) and length > 0 for length in (side if isinstance(side, (list, tuple)) else [side])
        ),
        "a sampler for flow matching": index["scheduler"][1].startswith("FlowMatch"),
        f"the sampler {index['scheduler'][1]}": index["scheduler"][1].startswith(_OTHER_SAMPLERS),
    }
    return [f"it has {what}; that is no plain Stable Diffusion." for what, present in more.items() if present]


def _weights(contents: Contents, stems: Mapping[str, str]) -> None:
    """Finds a variant that all parts have, and reads its headers. `stems`: part to the stem of its weight files."""
    files: dict[str, dict[str, list[str]]] = {part: {} for part in stems}
    for part, stem in stems.items():
        form = rf"{part}/{stem}(?:\.safetensors\.index)?(?:\.(\w+))?\.(?:safetensors|json)"
        for name in contents.names:
            if match := re.fullmatch(form, name):
                files[part].setdefault(match[1] or "", []).append(name)
        if not files[part]:
            contents.problems.append(_without_weights(contents, part, stem))
        contents.problems += [
            f"{contents.path / part} holds its weights twice: {' and '.join(names)}. Remove one of them."
            for names in files[part].values()
            if len(names) > 1
        ]
    lacking = [set(variants) for variants in files.values() if "" not in variants]
    shared = set.intersection(*lacking) if lacking else {""}
    if not shared:
        listed = ", ".join(f"{part} as {'/'.join(sorted(v))}" for part, v in files.items() if "" not in v)
        contents.problems.append(f"{contents.path} has no variant that is whole: {listed}.")
    if contents.problems:
        return
    variant = min(shared, key=lambda name: (name != "fp16", name))
    contents.variant = variant or None
    for part, variants in files.items():
        name = variants.get(variant, variants.get("", [""]))[0]
        contents.files.append(name)
        shards = _shards(contents, part, name) if name.endswith(".json") else [name]
        contents.tensors[part] = {}
        for shard in shards:
            if (contents.path / shard).exists():  # else it is on the hub, and is read after the download
                contents.tensors[part] |= contents.read(shard, read_header)


def _shards(contents: Contents, part: str, index: str) -> list[str]:
    """The files that an index names. Missing and surplus files are problems."""
    if not (contents.path / index).exists():
        return []
    table = contents.read(index, read_config).get("weight_map")
    plain = isinstance(table, dict) and all(isinstance(f, str) and re.fullmatch(r"[\w.-]+", f) for f in table.values())
    if not plain or not table:
        contents.problems.append(f"{contents.path / index} has no weight_map of tensors to files beside it.")
        return []
    files = sorted({f"{part}/{file}" for file in table.values()})
    beside = [name for name in contents.names if name.startswith(f"{part}/") and name.endswith(files[0][-20:])]
    contents.problems += [
        f"{contents.path / name} is missing, one of {len(files)} shards of {part}." if name in files
        else f"{contents.path / name} is a shard that {index} does not name."
        for name in sorted(set(files) ^ set(beside))
    ]  # fmt: skip
    contents.files += files
    return files


def _without_weights(contents: Contents, part: str, stem: str) -> str:
    inside = [name for name in contents.names if name.startswith(f"{part}/")]
    path = contents.path
    if pickles := [name for name in inside if name.endswith(PICKLES)]:
        how = f"python -c {quote(_CONVERT.format(path=str(path), out=f'{path}-safetensors'))}"
        return f"{path / pickles[0]} is a pickle, which memsub does not read. Convert a model that you trust: {how}"
    return f"{path / part} holds no weights: {stem}.safetensors is expected, not only {', '.join(inside)[:200]}."


def _contradictions(contents: Contents) -> list[str]:
    """Contradictions between a configuration and its weights, in sizes and numbers of layers."""
    sentences = []
    for part, key, form, axis in _SIZES:
        size, tensors = contents.configs.get(part, {}).get(key), contents.tensors.get(part, {})
        matches = [(match, tensor) for name, tensor in tensors.items() if (match := re.search(form, name))]
        if not matches or not isinstance(size, int):
            continue
        name, shape = matches[0][0].string, matches[0][1].shape
        count = len({match[1] for match, _ in matches}) if axis is None else 0
        where = f"{contents.path / part} contradicts itself: config.json says {key} {size}"
        if axis is None and size != count:
            sentences.append(f"{where}, its files {count}.")
        elif axis is not None and shape[axis : axis + 1] != (size,):
            sentences.append(f"{where}, but {name} has the shape {shape}.")
    return sentences


def _not_plain(contents: Contents) -> list[str]:
    """Problems of weights that are quantized, or have an adapter that is not fused."""
    sentences: list[str] = []
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
