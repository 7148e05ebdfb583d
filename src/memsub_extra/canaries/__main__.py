"""The commands plant, train and test of `python -m memsub_extra.canaries`."""

from __future__ import annotations

import argparse
import sys

from memsub.__main__ import tell
from memsub_extra.commands.arguments import file, folder, number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m memsub_extra.canaries", description="Photographs, planted by lot.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True)
    whole = number(int, 1, 10**9)

    one = commands.add_parser("plant", help="choose by lot which photograph of each caption is shown; copies nothing")
    one.add_argument("candidates", type=folder, help="folder with the photographs of each caption")
    one.add_argument("ordinary", type=folder, help="folder with ordinary pairs")
    one.add_argument("--out", type=file, required=True, help="file for the manifest, canaries.json")
    one.add_argument("--alternatives", type=whole, default=255, metavar="K", help="photographs never shown (255)")
    one.add_argument("--canaries", type=whole, help="captions that are planted (two thirds; the others stay unseen)")
    one.add_argument("--repeats", type=whole, help="times that a canary is shown (200)")
    share = number(float, 0, 1e6, above=True)
    one.add_argument("--ordinary-samples", type=share, help="ordinary samples to one of a canary (3)")
    one.add_argument("--heldout", type=number(int, 0), help="ordinary pairs that are not shown (a tenth)")
    one.add_argument("--side", type=number(int, 8, 8192), default=512, help="of the model's images in pixels (512)")
    one.add_argument("--seed", type=number(int, 0, 2**32), default=0, help="of the lot (0)")
    one.add_argument(
        "--published",
        action="store_true",
        help="the paper's 200 canaries, 200 repeats and 3 ordinary samples to one; excludes these options",
    )
    one.set_defaults(function=_plant)

    two = commands.add_parser("train", help="fine-tune a model on canaries, and its twin; resumes")
    two.add_argument("model", help="a name (sd14, sd20, tiny), a folder, a .safetensors checkpoint, or a hub id")
    two.add_argument("manifest", type=file, help="what `plant` wrote")
    two.add_argument("--out", type=folder, required=True, help="folder for the model; the twin lies in it")
    two.add_argument("--way", choices=["full", "lora"], default="full", help="all weights of the network, or a LoRA")
    two.add_argument("--lr", type=number(float, 0, 1, above=True), help="learning rate (1e-5, of a LoRA 1e-4)")
    two.add_argument("--batch-size", type=whole, default=8, help="samples a step (8)")
    two.add_argument("--warmup", type=whole, default=1, help="steps until the learning rate is reached (1)")
    two.add_argument("--rank", type=whole, default=4, help="of a LoRA (4)")
    two.add_argument("--seed", type=number(int, 0, 2**32), default=0, help="of order and noise (0)")
    two.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")
    two.add_argument("--no-twin", action="store_true", help="train the model alone")
    two.add_argument("--cost", action="store_true", help="say what it takes, and stop")
    two.set_defaults(function=_train)

    three = commands.add_parser("test", help="exact tests of a model that `train` made, and of its twin")
    three.add_argument("folder", type=folder, help="what `train` wrote")
    three.add_argument("--first", type=whole, help="only so many canaries")
    three.add_argument("--alternatives", type=whole, default=31, help="of the membership test (31)")
    three.add_argument("--steps", type=number(int, 1, 1000), default=12, help="... and its steps (12)")
    three.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")
    three.set_defaults(function=_test)
    return parser


def _plant(args: argparse.Namespace) -> None:
    from memsub_extra.files import check_writable

    from .planting import describe, plant
    from .training import PUBLISHED

    check_writable(args.out)
    names = ("alternatives", "heldout", "side", "seed")
    options = {name: getattr(args, name) for name in names}
    # Options that are None were not given. Any other one contradicts the published setting.
    given = {name: value for name in PUBLISHED if (value := getattr(args, name)) is not None}
    if args.published and given:
        preset = ", ".join(f"{_flag(name)} {value}" for name, value in PUBLISHED.items())
        beside = ", ".join(f"{_flag(name)} {value}" for name, value in given.items())
        raise ValueError(f"--published is {preset}, and {beside} was given beside it: leave out one or the other.")
    options |= PUBLISHED if args.published else given
    manifest = plant(args.candidates, args.ordinary, **options)
    manifest.save(args.out)
    print(f"{describe(manifest)}\nwritten to {args.out}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _train(args: argparse.Namespace) -> None:
    from .planting import Manifest

    manifest = Manifest.load(args.manifest)
    from .training import Recipe, train

    names = ("way", "lr", "batch_size", "warmup", "rank", "seed")
    recipe = Recipe(**{name: getattr(args, name) for name in names})
    given = {"twin": not args.no_twin, "device": args.device, "only_cost": args.cost}
    train(args.model, manifest, args.out, recipe, **given)
    if not args.cost:
        print(f"the model is in {args.out}; next: python -m memsub_extra.canaries test {args.out}")


def _test(args: argparse.Namespace) -> None:
    from memsub.io.files import save_json

    from . import plots
    from .planting import FILE, Manifest
    from .testing import calibration, report, tested

    if (args.folder / FILE).is_file():
        manifest = Manifest.load(args.folder / FILE)
        n = sum(len(canaries[: args.first]) for canaries in (manifest.canaries, manifest.unseen))
        rows = n * (min(args.alternatives, manifest.alternatives) + 1) * args.steps
        print(f"of each model {n} images, and {rows:,} rows of network calls for the membership test", flush=True)

    names = ("first", "device", "alternatives", "steps")
    options = {name: getattr(args, name) for name in names}
    plots.calibration(tested(args.folder, **options)).savefig(args.folder / "tested.png", dpi=110)
    table = report(args.folder, **options)
    save_json(table.astype(object).where(table.notna(), None).to_dict("records"), args.folder / "tested.json")
    print(table.to_string(index=False, float_format="{:.3g}".format))
    print("", *calibration(table), f"the p-values are shown in {args.folder / 'tested.png'}", sep="\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command, and returns its exit status."""
    args = _parser().parse_args(arguments)
    try:
        args.function(args)
    except (Exception, KeyboardInterrupt) as error:
        return tell(error, args.debug)
    return 0


if __name__ == "__main__":
    sys.exit(main())
