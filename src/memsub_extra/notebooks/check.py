"""The command `memsub check`: describes a model, the cost of a run, and problems, from file headers alone.

memsub check path/to/folder                 # or a .safetensors file, a name, a hub id: no torch, nothing downloaded
memsub check quick tiny                     # parameter files: missing inputs, and the cost of a run
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from memsub.io.headers import TensorInfo
from memsub.models import ADAPTERS, Contents, find_contents, find_model

BATCHES = (1, 2, 4, 8, 16)
PUBLISHED = {
    "sd14": "860 + 84 + 123 million parameters (UNet, autoencoder, text encoder: 4.3 GB); PNDM sampler, epsilon",
    "sd20": "866 + 84 + 340 million parameters (UNet, autoencoder, text encoder: 5.2 GB); DDIM sampler, v_prediction",
}
"""Facts on published models that are not on this machine."""
DECODING = 3.5
"""Memory of decoding an image, in units of the largest decoder map: 3.4 for Stable Diffusion 1.4, 3.5 for 2.0, from
shapes on PyTorch's meta device (`memsub_extra.full_size.memory`)."""
MEASURED = 1.35
"""Measured peak memory of sampling on a GPU, relative to the estimate from shapes: 12.4 to 9.3 GB (docs/full-size.md).
Every memory estimate from shapes is multiplied by this factor."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the others of `python -m memsub`."""
    check = commands.add_parser("check", help="say what a model is, what it takes and what will fail; load nothing")
    check.add_argument("models", nargs="+", help="models as elsewhere, names in papermill_params/, or YAML files")
    check.add_argument("--config", type=Path, help="of a .safetensors file: a diffusers folder of the same family")
    check.add_argument("--prediction-type", choices=["epsilon", "v_prediction", "sample"], help="of the network")
    check.add_argument("--time", action="store_true", help="of parameters: time a step of a large model, too")
    check.add_argument(
        "--parts", action="store_true", help="of parameters: memory of each part, from shapes (a minute)"
    )
    check.set_defaults(function=_check)


def _check(args: argparse.Namespace) -> None:
    failing = [name for name in args.models if not _said(name, args)]
    if failing:
        raise ValueError(f"{', '.join(failing)} will fail, as said above.")


def _said(name: str, args: argparse.Namespace) -> bool:
    """Prints a description of a model or of parameters; returns whether they will work."""
    print(f"{name}:")
    parameters = parameter_file(name)
    try:
        if parameters is not None:
            from . import batch

            wanted, _ = batch.find_parameters(str(parameters))
            model: str = wanted.model
            print(f"  parameters: {parameters}, of the model {model}")
        else:
            model = name
        lines = list(described(model, args.config, args.prediction_type))
        if parameters is not None:
            lines += _inputs(wanted)
    except (ValueError, OSError) as error:
        lines = [f"will fail: {error}"]
    print("\n".join(f"  {line}" for line in lines), flush=True)
    works = not any(line.startswith("will fail:") for line in lines)
    if parameters is not None and works:
        print(_run_of(wanted, args))
    return works


def _inputs(parameters: Any) -> Iterator[str]:
    """Lines on the inputs of a run: what is missing, or which prompts it takes."""
    from memsub_extra.run.sample import described as sample_of

    from . import inputs
    from .batch import find_notebooks, project

    data = inputs.data_of(parameters, project() / "notebooks")
    if inputs.to_fetch(data):
        yield (
            "prompts: published lists that are not on this machine yet (`memsub fetch`): a run checks their counts and "
            "kinds before it begins"
        )
        return
    notebooks = [notebook.name for notebook in find_notebooks(find_model(parameters.model))]
    wrong = list(inputs.problems(data, notebooks))
    yield from (f"will fail: {sentence}" for sentence in wrong)
    if not wrong and not inputs.is_world(data):
        yield from (f"prompts: {sentence}" for sentence in sample_of(data))


def parameter_file(name: str) -> Path | None:
    """The YAML file with this name in papermill_params/, or this path; None if there is no such file."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if Path(name).exists() or "/" in name:
        return None
    for folder in (Path.cwd(), *Path(__file__).resolve().parents):
        if (file := folder / "papermill_params" / f"{name}.yaml").is_file():
            return file
    return None


def described(model: str | Path, config: Path | None = None, prediction_type: str | None = None) -> Iterator[str]:
    """Lines on a model. Lines on problems begin with "will fail:".

    Raises:
        ValueError, FileNotFoundError: as `find_model`.
    """
    info = find_model(model)
    try:
        contents = find_contents(model, config=config, prediction_type=prediction_type)
    except FileNotFoundError:
        if Path(info.source).exists():
            raise
        yield f"{info.source} is on the hub, not on this machine: loading downloads configurations, then weights"
        if info.name in PUBLISHED:
            yield f"as published: {PUBLISHED[info.name]}; 16 feed-forward layers with {info.neurons:,} neurons"
            yield f"lists, metrics and weights: `memsub fetch {info.name} --weights`"
            yield f"the paper's edit: sparsity {info.sparsity:g}, {info.steps} steps"
            yield "what an edit does on these weights nobody has shown with memsub: docs/your-model.md, What to do"
        return
    yield from _facts(contents, info.gpu_dtype)
    if contents.width and not contents.config:
        yield "configuration and tokenizer: asked of the hub at loading, unless --config FOLDER is given"
    yield from (f"will fail: {sentence}" for sentence in contents.problems)


def _facts(contents: Contents, gpu_dtype: str) -> Iterator[str]:
    form = "folder" if contents.path.is_dir() else "single file"
    kind = contents.kind or "no pipeline"
    yield f"{kind}, {form} {contents.path}" + (f", variant {contents.variant}" if contents.variant else "")
    if layers := contents.layers():
        shapes = Counter((shape[0], shape[1]) for shape in layers.values())
        listed = ", ".join(f"{count} of {d:,} rows of {f:,} weights" for (d, f), count in shapes.items())
        yield f"feed-forward layers: {len(layers)} with {sum(f for _, f in shapes.elements()):,} neurons ({listed})"
    parts = {part or name: held for part, all_of in contents.tensors.items() for name, held in _parts(part, all_of)}
    if parts:
        counts = ", ".join(f"{part} {_count(held):,.1f}" for part, held in parts.items())
        types = Counter(t.dtype for held in parts.values() for t in held)
        yield f"parameters (millions): {counts}"
        yield f"dtype: {', '.join(f'{name} ({count} tensors)' for name, count in types.most_common())}"
    if adapters := [n for n in contents.names if "lora" in n.lower() or n.endswith("adapter_config.json")]:
        yield f"adapters: {', '.join(adapters)} beside it, which memsub does not load: fuse what you want to work on"
    elif contents.kind:
        yield "adapters: none"
    if scheduler := contents.configs.get("scheduler"):
        yield f"sampler: {scheduler.get('_class_name', 'unknown')}"
    if contents.kind:
        yield f"prediction type: {contents.prediction_type or 'not said by its files; epsilon is assumed'}"
    if sizes := memory(contents, parts, gpu_dtype):
        listed = ", ".join(f"{gigabytes:.1f}" for gigabytes in sizes)
        batches = ", ".join(map(str, BATCHES))
        yield (
            f"memory to sample batches of {batches} on a GPU ({gpu_dtype}): {listed} GB, from shapes, times the "
            f"{MEASURED} that was measured"
        )


def _parts(part: str, tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, list[TensorInfo]]]:
    """The tensors of a part; for a single file, grouped by the beginnings of their names."""
    if part:
        yield part, list(tensors.values())
        return
    beginnings = {"model.diffusion_model.": "unet", "first_stage_model.": "vae", "": "text_encoder and others"}
    groups: dict[str, list[TensorInfo]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(next(p for b, p in beginnings.items() if name.startswith(b)), []).append(tensor)
    yield from groups.items()


def _count(tensors: Iterable[TensorInfo]) -> float:
    return sum(math.prod(tensor.shape) for tensor in tensors) / 1e6


def memory(contents: Contents, parts: Mapping[str, Any], gpu_dtype: str) -> list[float]:
    """Peak gigabytes for each of `BATCHES`, including weights. The peak of sampling is the decoding of images.

    Computed from shapes, times `MEASURED`. Empty without configurations.
    """
    vae, unet = contents.configs.get("vae", {}), contents.configs.get("unet", {})
    widths, side = vae.get("block_out_channels"), unet.get("sample_size")
    if not (isinstance(widths, list) and widths and isinstance(side, int) and contents.kind in ADAPTERS):
        return []
    each = 4 if gpu_dtype == "float32" else 2
    pixels = (side * 2 ** (len(widths) - 1)) ** 2
    image = DECODING * pixels * widths[min(1, len(widths) - 1)] * each
    weights = sum(1e6 * _count(held) for held in parts.values()) * each
    return [MEASURED * (weights + batch * image) / 1e9 for batch in BATCHES]


def _run_of(parameters: Any, args: argparse.Namespace) -> str:
    """The cost of a run with these parameters."""
    from memsub.models import load_pipeline

    from . import cost

    small = cost.at_hand(parameters.model) and find_model(parameters.model).scorers != "published"
    pipe = load_pipeline(parameters.model) if small or (args.time and cost.at_hand(parameters.model)) else None
    return cost.describe(parameters, pipe, estimates=args.parts)
