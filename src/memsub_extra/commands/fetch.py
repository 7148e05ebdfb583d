"""The command `memsub fetch`: published prompt lists and types, metrics, weights and training images.

Downloads are stored in the caches of memsub and of the hub; afterwards a run requires no network.
"""

from __future__ import annotations

import argparse

from .arguments import folder


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the others."""
    get = commands.add_parser(
        "fetch", help="download prompt lists and metric, and write their checksums into a lock file"
    )
    get.add_argument("model", help="sd14 or sd20: whose lists")
    weights = "also the weights and CLIP, from the hub: then nothing more is asked of a network"
    get.add_argument("--weights", action="store_true", help=weights)
    get.add_argument("--images", type=folder, help="also the training images, or what web archives have of them, here")
    get.set_defaults(function=_fetch)


def _fetch(args: argparse.Namespace) -> None:
    from memsub.io.downloads import SOURCES, fetch, fetch_url, lock_file, verify
    from memsub.io.files import printable
    from memsub_extra.archives import TRAINING_IMAGES
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
    if args.weights:
        for where in _weights(args.model):
            print(f"weights: {printable(where)}")
    if args.images:
        rows = load_prompts(args.model).memorized_rows
        for fetch_images in TRAINING_IMAGES.values():
            print(printable(f"{args.images}: {fetch_images(rows, args.images)}"))


def _weights(model: str) -> list[str]:
    """Folders of a model and of its CLIP in the hub's cache; missing files are downloaded.

    Raises:
        ValueError: the model's files cannot be loaded; then its weights were not downloaded.
        OSError: the hub does not answer.
    """
    from huggingface_hub import snapshot_download

    from memsub.measure.clip import CLIPS
    from memsub.models import find_contents

    contents = find_contents(model, fetch=True)
    contents.check()
    parts = ["*.json", "*.txt", "model.safetensors"]  # not the copies of the weights for other libraries
    return [str(contents.path), snapshot_download(CLIPS["ViT-L/14"], allow_patterns=parts)]
