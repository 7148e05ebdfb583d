"""Pipelines by name, folder, single file or hub id.

load_pipeline("tiny")                      # the embedded model, no network needed
load_pipeline("tiny-twin")                 # its control, trained without the memorized pairs
load_pipeline("tiny-other")                # its control, trained on other memorized pairs
load_pipeline("sd14")                      # CompVis/stable-diffusion-v1-4 from the hub or its cache
load_pipeline("path/to/folder")            # written by `save_pretrained`
load_pipeline("dreamy.safetensors")        # a single file; offline: config="path/to/folder"
load_pipeline("owner/model")               # any Stable Diffusion on the hub
model_of(pipe).sparsity                    # properties of any loaded pipeline

Configurations and headers are read first (`memsub.models.contents`), so that errors can say what the files are.
"""

from __future__ import annotations

import difflib
import inspect as signatures
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..io.headers import PICKLES, read_config, read_header
from .known import MODELS, ModelInfo
from .protocol import Pipeline, as_denoiser

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

    from .contents import Contents

_SUFFIXES = (*PICKLES, ".safetensors", ".gguf", ".onnx", ".json", ".yaml", ".yml", ".zip", ".tar")


def find_model(name: str | Path) -> ModelInfo:
    """The registry's row with this name or source; for other models a row with the paper's settings. Needs no torch.

    Raises:
        ValueError: the name is unknown or empty; the message offers close matches.
        FileNotFoundError: there is no such folder or file, or the folder is not a diffusers pipeline.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise ValueError(
            f"a model is named by text or a path; got a {type(name).__name__}: a pipeline is used as it is."
        )
    name = str(name)
    if row := MODELS.get(name) or _of_source(name):
        return row
    path = Path(os.path.expanduser(name))
    if name and path.exists():
        if path.is_dir() and not (path / "model_index.json").is_file():
            if (path / "unet").is_dir() and (path.parent / "model_index.json").is_file():
                return replace(
                    find_model(path.parent), name=name, source=str(path), parts=str(path.parent), controls={}
                )
            from .contents import inspect

            raise FileNotFoundError(inspect(path).problems[0])
        # Trainings in the embedded model's world save that world's scorers in the model's folder.
        scorers = any((where / "scorers").is_dir() for where in (path, path.parent))
        row = ModelInfo(name, str(path), name, "testbed" if scorers else "published")
        if not (path / "world.json").is_file():
            return row
        from .worlds import of_folder

        return of_folder(row)
    if "://" in name or name.startswith(("huggingface.co/", "hf.co/")):
        repo = re.search(r"(?:huggingface|hf)\.co/([\w.-]+/[\w.-]+)", name)
        way = f"give the hub id, {repo[1]!r}" if repo else "download the file, then give its path"
        raise ValueError(f"{name} is an address, of which memsub loads nothing: {way}.")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not name.lower().endswith(_SUFFIXES) and not path.parent.is_dir():
        return ModelInfo(name, name, name, "published")
    if name.lower().endswith(_SUFFIXES) or name.startswith((".", "~")) or "/" in name or os.sep in name:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = [str(path.with_name(n)) for n in difflib.get_close_matches(path.name, beside, n=2)]
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise FileNotFoundError(f"no folder or file at {path}.{hint}")
    close = difflib.get_close_matches(name.lower(), MODELS, n=2, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"unknown model {name!r}.{hint} Expected one of {', '.join(MODELS)}, an existing folder or .safetensors file, "
        "or a hub id 'owner/name'."
    )


def model_of(pipe: Pipeline) -> ModelInfo:
    """The registry's row of a loaded pipeline, found by its source as in `find_model`."""
    source = as_denoiser(pipe).source
    return _of_source(source) or ModelInfo(source, source, source, "published")


def _of_source(source: str) -> ModelInfo | None:
    return next((model for model in MODELS.values() if model.source == source), None)


def find_contents(
    model: str | Path,
    *,
    config: str | Path | None = None,
    prediction_type: str | None = None,
    cast: bool = False,
    fetch: bool = False,
) -> Contents:
    """Inspects a model's files and lists their problems, like `inspect`. Needs no torch.

    Args:
        fetch: download missing files: first the configurations, then the weights if these are right.

    Raises:
        ValueError, FileNotFoundError: as `find_model`; or the model is neither cached nor available from the hub.
    """
    from .contents import inspect

    info = find_model(model)
    source = info.parts or info.source
    if not Path(source).exists():
        from .hub import hub_contents

        return hub_contents(source, fetch, prediction_type=prediction_type, cast=cast)
    contents = inspect(source, config=config, prediction_type=prediction_type, cast=cast, fetch=fetch)
    if info.parts:
        network = Path(info.source).absolute() / "unet"
        contents.configs["unet"] = contents.read(str(network / "config.json"), read_config)
        contents.tensors["unet"] = contents.read(str(network / "diffusion_pytorch_model.safetensors"), read_header)
    return contents


def load_pipeline(
    model: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    config: str | Path | None = None,
    prediction_type: str | None = None,
) -> StableDiffusionPipeline:
    """Loads a pipeline without safety checker on `device` (default: the GPU of this process if there is one).

    It reads only safetensors, and runs no remote code.

    Args:
        model: a name in `MODELS`, a folder written by `save_pretrained`, a .safetensors checkpoint, or a hub id
            "owner/name".
        dtype: default: float32 on a CPU, `ModelInfo.gpu_dtype` on a GPU.
        config: for a single file: a diffusers folder of the same family with its configurations and tokenizer
            (default: fetched from the hub).
        prediction_type: epsilon, v_prediction or sample; required if the files do not state it (Stable Diffusion 2 in a
            single file) or state it wrongly.

    Raises:
        ValueError, FileNotFoundError: as `find_contents`; or there is no such device, dtype, or adapter (`ADAPTERS`).
    """
    if (dtype is not None and type(dtype).__name__ != "dtype") or "numpy" in type(dtype).__module__:
        raise ValueError(f"dtype must be one of torch, such as torch.float16; got {dtype!r}.")  # diffusers ignores it
    info = find_model(model)
    contents = find_contents(model, config=config, prediction_type=prediction_type, cast=dtype is not None, fetch=True)
    contents.check()
    import diffusers  # takes seconds to import
    import torch

    from ..io import distributed

    device = distributed.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else getattr(torch, info.gpu_dtype))
    pipe = _read(getattr(diffusers, contents.kind), contents, dtype, info.source if info.parts else "")
    _check_whole(pipe, contents)
    wanted, scheduler = contents.prediction_type, pipe.scheduler
    if wanted and wanted != scheduler.config.get("prediction_type"):
        pipe.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=wanted)
    pipe.register_to_config(_name_or_path=info.source)
    pipe.set_progress_bar_config(disable=True)  # `generate` shows one bar for all batches
    return pipe.to(device)


def _read(kind: Any, contents: Contents, dtype: torch.dtype, network: str) -> Any:
    """Reads a pipeline of this class by diffusers, its UNet from the folder `network` if given; raises ValueError."""
    import diffusers

    from .contents import OPTIONAL

    accepted = signatures.signature(kind).parameters
    absent = [p for p in OPTIONAL if p in accepted and not any(name.startswith(f"{p}/") for name in contents.files)]
    options: dict[str, Any] = dict.fromkeys(absent) | {"dtype": dtype}
    options |= {"requires_safety_checker": False} if "requires_safety_checker" in accepted else {}
    path = str(contents.path)
    try:
        if network:
            own = getattr(diffusers, contents.configs[""]["unet"][1])
            options["unet"] = own.from_pretrained(f"{network}/unet", use_safetensors=True, dtype=dtype)
        if contents.config:
            return kind.from_single_file(path, config=str(contents.config), local_files_only=True, **options)
        return kind.from_pretrained(path, use_safetensors=True, variant=contents.variant, **options)
    except MemoryError:
        raise
    except NotImplementedError as error:  # a tensor is still on the meta device: no file contains it
        raise ValueError(f"{path} lacks weights of a {contents.kind} as its configurations describe it.") from error
    except Exception as error:  # any error of diffusers, transformers or safetensors
        raise ValueError(
            f"{path} could not be loaded as {contents.kind}: {type(error).__name__}: {error!s:.300}"
        ) from error


def _check_whole(pipe: Any, contents: Contents) -> None:
    """Raises ValueError for weights that are in no file. diffusers omits or randomizes them, with a warning only."""
    for part, module in pipe.components.items():
        if not hasattr(module, "named_parameters"):
            continue
        held = contents.tensors.get(part, {}) if part in ("unet", "transformer") else {}
        lost = [name for name, p in module.named_parameters() if p.is_meta or (held and name not in held)]
        if lost:
            more = f" and {len(lost) - 1} more" * (len(lost) > 1)
            raise ValueError(f"{contents.path} lacks weights of its {part}: {lost[0]}{more}.")
