"""The command `memsub prune`: applies an edit to a pipeline, and saves it."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from .arguments import add_model, check_model, file, folder, load


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the others."""
    prune = commands.add_parser("prune", help="write a pipeline with an edit applied")
    add_model(prune)
    prune.add_argument("--edit", type=file, required=True, help="what `locate` wrote")
    prune.add_argument("--out", type=folder, required=True, help="folder of the pruned pipeline")
    prune.set_defaults(function=_prune)


def _prune(args: argparse.Namespace) -> None:
    from memsub.io.files import check_artifact, printable
    from memsub_extra.files import check_writable

    out = args.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: name a new folder for the pruned pipeline.")
    check_writable(out / "model_index.json", _at_least(Path(args.model)))
    check_artifact(args.edit, "Edit")
    check_model(args)
    from safetensors import SafetensorError

    from memsub.models import as_denoiser
    from memsub.pruning import Edit

    edit = Edit.load(args.edit)
    pipe = load(args)
    edit.apply(pipe)
    modules = as_denoiser(pipe).parts().values()
    size = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    check_writable(out / "model_index.json", size)
    # An existing empty folder may be a link, a mount or the current folder: files are moved into it.
    there = out.is_dir()
    beside = out if there else out.parent
    beside.mkdir(parents=True, exist_ok=True)
    # It gets its name when it is complete, because an incomplete pipeline may load or fail later.
    with tempfile.TemporaryDirectory(dir=beside, prefix=f".{out.name}.") as unfinished:
        whole = Path(unfinished) / "pipeline"
        try:
            pipe.save_pretrained(whole, safe_serialization=True)
        except SafetensorError as error:  # such as a full disk
            raise OSError(f"{out} could not be written: {error}") from error
        if there:
            for part in sorted(whole.iterdir(), key=lambda path: path.name == "model_index.json"):  # that file last
                os.replace(part, out / part.name)
        else:
            os.replace(whole, out)
    how = "set to new values" if any(v.any() for v in edit.values.values()) else "set to zero"
    what = f"{args.model} with {edit.density:.2%} of the weights in {len(edit.positions)} layers {how}."
    print(printable(f"{out}: {what}"))
    print(
        "An edit hides images from captions; who has the weights may bring them back (docs/your-model.md, What to do)."
    )


def _at_least(model: Path) -> int:
    """Smallest size of the saved model in bytes: half of its present weights, which may be float32."""
    files = [model] if model.is_file() else model.glob("*/*.safetensors") if model.is_dir() else []
    return sum(file.stat().st_size for file in files if file.name.count(".") == 1) // 2  # no .fp16.safetensors
