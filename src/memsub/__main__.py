"""memsub for people who do not open notebooks.

    python -m memsub run tiny                                  # all notebooks into runs/tiny/, then report.html
    python -m memsub run quick tiny                            # two parameter files, and a table that compares them
    python -m memsub fetch sd14 --images gt_images/            # what a run needs from the network, and its checksums
    python -m memsub locate sd14 --prompts captions.txt --out edit.safetensors
    python -m memsub prune sd14 --edit edit.safetensors --out repaired/

`run` resumes with the first notebook whose code or parameters changed; --fresh starts over.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from .registry import Registry

COMMANDS: Registry[Callable[[argparse._SubParsersAction], None]] = Registry("memsub.commands", "command", {})
"""Commands of other packages, such as `run`: each adds its parser to the others."""

# Each command imports what it needs: a mistyped option is an error at once, not after seconds of importing torch.


def _fetch(args: argparse.Namespace) -> None:
    from .io.downloads import SOURCES, TRAINING_IMAGES, fetch, fetch_url, lock_file, verify
    from .measure.sscd import SSCD
    from .prompts import load_prompts

    if args.model not in SOURCES:
        raise ValueError(f"{args.model!r} has no published lists; expected one of {', '.join(SOURCES)}.")
    files = [fetch(args.model, kind) for kind in SOURCES[args.model]]
    files.append(fetch_url(SSCD["sscd_disc_large"], "copy descriptor"))
    for path in files:
        print(f"{verify(path)}  {path.stat().st_size / 1e6:8.2f} MB  {path}")
    print(f"checksums: {lock_file()}")
    if args.images:
        rows = load_prompts(args.model).memorized_rows
        for fetch_images in TRAINING_IMAGES.values():
            print(f"{args.images}: {fetch_images(rows, args.images)}")


def _locate(args: argparse.Namespace) -> None:
    from .activations import capture
    from .io.files import check_writable
    from .models import find_model, load_pipeline
    from .neurons import locate
    from .prompts import load_prompts, read_prompts, too_long

    if args.tau > args.steps:
        raise ValueError(f"--tau {args.tau} steps cannot be united where --steps {args.steps} are sampled.")
    info = find_model(args.model)  # a bad name of a model is an error here, before anything is loaded
    sparsity = info.sparsity if args.sparsity is None else args.sparsity
    memorized = load_prompts(args.prompts or args.model).memorized
    contrast = read_prompts(args.contrast)["prompt"].tolist() if args.contrast else [""]
    check_writable(args.out)
    pipe = load_pipeline(args.model)
    if cut := too_long(memorized, pipe.tokenizer):
        limit = pipe.tokenizer.model_max_length
        print(f"{len(cut)} captions are longer than {limit} tokens and are cut", file=sys.stderr)
    options = {name: getattr(args, name) for name in ("steps", "seed", "cfg_half", "guidance_scale", "batch_size")}
    options |= {"first": args.tau}
    stats = capture(pipe, memorized, checkpoint=args.out.with_suffix(".partial"), **options)
    masks = locate(pipe, stats, capture(pipe, contrast, **options), sparsity)
    edit = masks.union(args.tau, args.threshold)
    edit.save(args.out)
    print(
        f"{args.out}: {edit.density:.2%} of the second feed-forward weights, located on {len(memorized)} prompts at a "
        f"sparsity of {sparsity:g}."
    )


def _prune(args: argparse.Namespace) -> None:
    from .models import load_pipeline
    from .pruning import Edit

    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"{args.out} is not empty: name a new folder for the pruned pipeline.")
    edit = Edit.load(args.edit)
    pipe = load_pipeline(args.model)
    edit.apply(pipe)
    pipe.save_pretrained(args.out, safe_serialization=True)
    how = "set to new values" if any(v.any() for v in edit.values.values()) else "set to zero"
    print(f"{args.out}: {args.model} with {edit.density:.2%} of the weights in {len(edit.positions)} layers {how}.")


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m memsub", description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (*COMMANDS.values(), _add_fetch, _add_locate, _add_prune):
        add(commands)
    return parser


def _add_fetch(commands: argparse._SubParsersAction) -> None:
    get = commands.add_parser(
        "fetch", help="download prompt lists and metric, and write their checksums into a lock file"
    )
    get.add_argument("model", help="sd14 or sd20: whose lists")
    get.add_argument("--images", type=Path, help="also the training images, or what web archives have of them, here")
    get.set_defaults(function=_fetch)


MODEL = "a name (tiny, sd14, sd20), a folder, or a hub id"


def number(kind: type, least: float, most: float = float("inf"), above: bool = False) -> Callable[[str], float]:
    """A type of argparse: a number between two bounds, above the lower one if so asked."""

    def parse(text: str) -> float:
        value = kind(text)
        if not (least < value if above else least <= value) or not value <= most:
            bounds = f"{'more than' if above else 'at least'} {least:g}" + (f", at most {most:g}" if most < 1e9 else "")
            raise argparse.ArgumentTypeError(f"{text} is out of bounds: {bounds} is expected.")
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind]  # what argparse calls it where the text is none
    return parse


def _add_locate(commands: argparse._SubParsersAction) -> None:
    find = commands.add_parser("locate", help="find the weights that carry a list of memorized prompts")
    find.add_argument("model", help=MODEL)
    find.add_argument(
        "--prompts", type=Path, help="a list: .txt, .jsonl, .csv or .parquet (default: the model's memorized ones)"
    )
    find.add_argument("--contrast", type=Path, help="a list of ordinary captions (default: the empty prompt)")
    find.add_argument(
        "--sparsity",
        type=number(float, 0, 1, above=True),
        help="share of a row that may be memorized (default: recommended for the model, else 0.01)",
    )
    find.add_argument("--tau", type=number(int, 1), default=10, help="unite the masks of the first TAU steps (10)")
    find.add_argument(
        "--threshold", type=number(float, 0, 1), default=0.0, help="... memorized at more than this share of them (0)"
    )
    find.add_argument("--steps", type=number(int, 1), default=50, help="denoising steps (50)")
    find.add_argument("--guidance-scale", type=number(float, 0), default=7.5, help="7.5")
    find.add_argument("--cfg-half", choices=["both", "cond"], default="both")
    find.add_argument("--batch-size", type=number(int, 1), default=16)
    find.add_argument("--seed", type=number(int, 0), default=0, help="of the initial noise")
    find.add_argument("--out", type=Path, required=True, help="file of the edit")
    find.set_defaults(function=_locate)


def _add_prune(commands: argparse._SubParsersAction) -> None:
    prune = commands.add_parser("prune", help="write a pipeline with an edit applied")
    prune.add_argument("model", help=MODEL)
    prune.add_argument("--edit", type=Path, required=True, help="what `locate` wrote")
    prune.add_argument("--out", type=Path, required=True, help="folder of the pruned pipeline")
    prune.set_defaults(function=_prune)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns 1 after an error in what was asked, which it prints in a line."""
    args = _parser().parse_args(arguments)
    try:
        args.function(args)
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
