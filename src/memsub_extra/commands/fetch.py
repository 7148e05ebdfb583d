"""The command `memsub fetch`: published prompt lists and types, metric and training images, and their checksums."""

from __future__ import annotations

import argparse

from .arguments import folder


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the others."""
    get = commands.add_parser(
        "fetch", help="download prompt lists and metric, and write their checksums into a lock file"
    )
    get.add_argument("model", help="sd14 or sd20: whose lists")
    get.add_argument("--images", type=folder, help="also the training images, or what web archives have of them, here")
    get.set_defaults(function=_fetch)


def _fetch(args: argparse.Namespace) -> None:
    from memsub.io.downloads import SOURCES, TRAINING_IMAGES, fetch, fetch_url, lock_file, verify
    from memsub.io.files import printable
    from memsub_extra.files import check_writable

    if args.model not in SOURCES:
        raise ValueError(f"{args.model!r} has no published lists; expected one of {', '.join(SOURCES)}.")
    if args.images:
        check_writable(args.images / "0" / "0.png")
    from memsub.measure.sscd import SSCD
    from memsub.prompts import load_prompts
    from memsub_extra.prompt_lists.kinds import published_types

    files = [fetch(args.model, kind) for kind in SOURCES[args.model]]
    files += [types] if (types := published_types(args.model)) else []
    files.append(fetch_url(SSCD["sscd_disc_large"], "copy descriptor"))
    for file in files:
        print(f"{verify(file)}  {file.stat().st_size / 1e6:8.2f} MB  {printable(file)}")
    print(f"checksums: {printable(lock_file())}")
    if args.images:
        rows = load_prompts(args.model).memorized_rows
        for fetch_images in TRAINING_IMAGES.values():
            print(printable(f"{args.images}: {fetch_images(rows, args.images)}"))
