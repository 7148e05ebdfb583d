"""Shared by all commands: types of arguments, checks before torch is imported, and loading of the model.

    def add(commands):                          # listed in the entry points "memsub.commands"
        parser = commands.add_parser("count", help="count the captions of a list")
        parser.add_argument("--prompts", type=file, required=True)
        add_model(parser)                       # MODEL, --device, --dtype, ...
        parser.set_defaults(function=count)     # called with the arguments

A command checks all its arguments first and then imports what it requires. So a mistake is reported at once, and not
after seconds of importing torch, or after the work.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

T = TypeVar("T")
MOST_SEED = 2**63 - 1
"""The largest seed that torch's generators take."""


# --- arguments --------------------------------------------------------------------------------------------------------


def number(kind: type, least: float, most: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite number between two bounds; `above` excludes the lower bound."""

    def parse(text: str) -> float:
        value = kind(text)
        inside = (least < value if above else least <= value) and value <= most
        if not inside or value == math.inf:
            bounds = f"{'more than' if above else 'at least'} {least:g}"
            bounds += f", at most {most:g}" if most < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text[:40]} is out of bounds: {bounds} is expected.")
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind]  # the name in argparse's error message
    return parse


def folder(text: str) -> Path:
    """An argparse type: the path of a folder, with `~` expanded."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path.")
    return Path(text).expanduser()


def file(text: str) -> Path:
    """An argparse type: the path of a file."""
    if text.endswith(("/", "\\", "/.", "/..")):
        raise argparse.ArgumentTypeError(f"{text!r} names a folder: name a file.")
    return folder(text)


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: cpu, cuda, cuda:1, mps or xpu is expected.")
    return text


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the model and its loading options, which `load` reads."""
    parser.add_argument("model", help="a name (tiny, sd14, sd20), a folder, a .safetensors checkpoint, or a hub id")
    parser.add_argument("--device", type=_device, help="cpu, cuda, cuda:1, mps (default: the GPU if there is one)")
    dtypes = ["float32", "float16", "bfloat16"]
    parser.add_argument("--dtype", choices=dtypes, help="default: float32 on a CPU, else that of the model")
    parser.add_argument("--config", type=folder, metavar="FOLDER", help="of a checkpoint: a pipeline without weights")
    kinds = ["epsilon", "v_prediction", "sample"]
    parser.add_argument("--prediction-type", choices=kinds, help="of a checkpoint: what its network predicts")


def add_sampling(parser: argparse.ArgumentParser, batch_size: int = 16) -> None:
    """Adds the options of sampling: steps, guidance, images per batch."""
    parser.add_argument("--steps", type=number(int, 1, 1000), default=50, help="denoising steps (50)")
    parser.add_argument("--guidance-scale", type=number(float, 0, 1000), default=7.5, help="7.5")
    sizes = number(int, 1, 65_536)
    parser.add_argument("--batch-size", type=sizes, default=batch_size, help=f"images at a time ({batch_size})")


# --- checks before torch is imported ----------------------------------------------------------------------------------


def check_model(args: argparse.Namespace) -> None:
    """Raises ValueError or OSError if the model is missing or cannot be loaded, judging by files on this machine, or if
    options of single-file checkpoints are given for another model."""
    from memsub.models import find_contents, find_model

    source = Path(find_model(args.model).source)
    if args.config and not args.config.is_dir():
        raise FileNotFoundError(f"--config {args.config} is no folder: name that of a pipeline with model_index.json.")
    if source.exists():
        options = {"config": args.config, "prediction_type": args.prediction_type, "cast": args.dtype is not None}
        find_contents(args.model, **options).check()


def check_output(out: Path, *inputs: Path | None) -> None:
    """Raises OSError or ValueError if the file cannot be written, or would overwrite an input."""
    from memsub_extra.files import check_writable

    check_writable(out)
    for given in inputs:
        if given and out.exists() and given.exists() and out.samefile(given):
            raise ValueError(f"--out {out} is a file that this command reads: name another one.")


def captions_of(path: Path, of: Literal["memorized", "ordinary", "any"]) -> list[str]:
    """The captions of a list (`read_prompts`); raises ValueError (naming the line) or OSError."""
    from memsub.prompts import read_prompts

    return read_prompts(path, of)["prompt"].tolist()


def without(captions: list[str], others: Collection[str], what: str) -> list[str]:
    """The captions that are not in --prompts; a warning says how many were omitted.

    Args:
        others: the captions of --prompts.
        what: what the warning calls the captions.
    """
    import warnings

    given = set(others)
    if shared := [caption for caption in captions if caption in given]:
        warnings.warn(
            f"{len(shared)} of {len(captions)} captions of {what} are in --prompts, too, and are left out of it: "
            f"{shared[0][:60]!r}" + " and others" * (len(shared) > 1) + ".",
            stacklevel=2,
        )
    return [caption for caption in captions if caption not in given]


# --- the model --------------------------------------------------------------------------------------------------------


def load(args: argparse.Namespace) -> StableDiffusionPipeline:
    """Loads the pipeline of the arguments of `add_model`.

    Raises:
        ValueError, OSError: it cannot be loaded, or not on this device; the message says why.
    """
    import torch

    from memsub.models import load_pipeline

    options: dict[str, Any] = {"device": args.device, "dtype": args.dtype and getattr(torch, args.dtype)}
    # Only single-file checkpoints have these options.
    options |= {n: v for n in ("config", "prediction_type") if (v := getattr(args, n)) is not None}
    if args.device:
        try:
            torch.empty(0, device=args.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"--device {args.device} cannot be used on this machine: {error}") from error
    pipe = loaded(args.model, lambda: load_pipeline(args.model, **options))
    trained = getattr(pipe.scheduler, "config", {}).get("num_train_timesteps") or 1000
    if getattr(args, "steps", 1) > trained:
        raise ValueError(f"--steps {args.steps} are more than the {trained} that this model was trained on.")
    if hasattr(args, "steps"):
        _check_steps(pipe, args.steps)
    return pipe


def _check_steps(pipe: Any, steps: int) -> None:
    """Raises ValueError if the sampler (such as LCM or Runge-Kutta) does not support this number of steps."""
    from memsub.models import as_denoiser

    try:
        as_denoiser(pipe).calls(steps)
    except Exception as error:
        sampler = type(pipe.scheduler).__name__
        raise ValueError(f"--steps {steps}: this model's {sampler} does not make so many steps ({error}).") from error


def loaded(what: str, load: Callable[[], T]) -> T:
    """Returns the result of `load`. Any error of a foreign file becomes an error that names the file.

    Raises:
        ValueError, OSError: it cannot be loaded; the message says why.
    """
    from memsub.__main__ import is_of_memory, is_told_by_memsub

    try:
        return load()
    except Exception as error:
        if is_of_memory(error) or is_told_by_memsub(error):
            raise
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{what} cannot be loaded ({problem}): is it whole, and of a kind that memsub takes?"
        ) from error
