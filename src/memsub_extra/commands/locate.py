"""The command `memsub locate`: computes an edit from a list of captions, and saves it."""

from __future__ import annotations

import argparse
import glob
import math
import sys
from pathlib import Path

from .arguments import (
    MOST_SEED,
    add_model,
    add_sampling,
    captions_of,
    check_model,
    check_output,
    file,
    load,
    number,
    without,
)


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the others."""
    find = commands.add_parser("locate", help="find the weights that carry a list of memorized prompts")
    add_model(find)
    lists = "a list: .txt, .jsonl, .csv or .parquet (default: the model's memorized ones)"
    find.add_argument("--prompts", type=file, help=lists)
    find.add_argument("--contrast", type=file, help="a list of ordinary captions (default: the empty prompt)")
    find.add_argument(
        "--sparsity",
        type=number(float, 0, 1, above=True),
        help="share of a row that may be memorized (default: chosen for the embedded model, else the paper's 0.01)",
    )
    find.add_argument("--tau", type=number(int, 1), default=10, help="unite the masks of the first TAU steps (10)")
    shares = number(float, 0, math.nextafter(1, 0))
    find.add_argument("--threshold", type=shares, default=0.0, help="... memorized at more than this share of them (0)")
    add_sampling(find)
    find.add_argument("--cfg-half", choices=["both", "cond"], default="both")
    find.add_argument("--seed", type=number(int, 0, MOST_SEED), default=0, help="of the initial noise")
    find.add_argument("--out", type=file, required=True, help="file of the edit")
    find.set_defaults(function=_locate)


def _locate(args: argparse.Namespace) -> None:
    if args.tau > args.steps:
        raise ValueError(f"--tau {args.tau} steps cannot be united where --steps {args.steps} are sampled.")
    if not args.prompts and ("/" in args.model or Path(args.model).exists()):
        raise ValueError(f"no memorized captions are known of {args.model}: give a list of them by --prompts FILE.")
    check_output(args.out, args.prompts, args.contrast)
    memorized = captions_of(args.prompts, "memorized") if args.prompts else []
    contrast = [""]
    if args.contrast and not (
        contrast := without(captions_of(args.contrast, "ordinary"), memorized, f"--contrast {args.contrast}")
    ):
        raise ValueError(f"all captions of --contrast {args.contrast} are in --prompts: nothing would be located.")
    check_model(args)
    from memsub.activations import capture
    from memsub.io.files import printable
    from memsub.models import as_denoiser, find_model
    from memsub.neurons import locate
    from memsub.prompts import load_prompts
    from memsub_extra.files import check_writable
    from memsub_extra.prompt_lists.captions import too_long

    info = find_model(args.model)
    sparsity = info.sparsity if args.sparsity is None else args.sparsity
    memorized = memorized or load_prompts(args.model).memorized
    pipe = load(args)
    denoiser = as_denoiser(pipe)
    # The edit has at most this many positions of four bytes each.
    size = sum(layer.weight.numel() for layer in denoiser.layers().values())
    check_writable(args.out, int(4 * size * min(1, sparsity * args.tau)))
    if cut := too_long(memorized, denoiser.tokenizer):
        limit = denoiser.tokenizer.model_max_length
        print(f"{len(cut)} captions are longer than {limit} tokens and are cut", file=sys.stderr)
    options = {name: getattr(args, name) for name in ("steps", "seed", "cfg_half", "guidance_scale", "batch_size")}
    options |= {"first": args.tau, "keep_checkpoint": True}
    stats, null = (
        capture(pipe, prompts, checkpoint=args.out.with_name(f"{args.out.name}.{which}.partial"), **options)
        for which, prompts in (("prompts", memorized), ("contrast", contrast))
    )
    edit = locate(pipe, stats, null, sparsity).union(args.tau, args.threshold)
    edit.save(args.out)
    for left in args.out.parent.glob(f"{glob.escape(args.out.name)}.*.partial*"):
        left.unlink(missing_ok=True)
    print(
        f"{printable(args.out)}: {edit.density:.2%} of the second feed-forward weights, located on {len(memorized)} "
        f"prompts at a sparsity of {sparsity:g}."
    )
