"""The command line of memsub.

    memsub run tiny                                             # all notebooks into runs/tiny/, then report.html
    memsub fetch sd14 --images gt_images/                       # what a run needs from the network, and its checksums
    memsub detect MODEL --prompts captions.txt --ordinary others.txt        # which of these captions leak?
    memsub locate MODEL --prompts captions.txt --out edit.safetensors       # the weights that they leak from
    memsub evaluate MODEL --edit edit.safetensors --prompts captions.txt    # before and after: what does the edit do?
    memsub prune MODEL --edit edit.safetensors --out repaired/              # the pipeline, with the edit applied

MODEL is a name (tiny, sd14, sd20), a folder, a .safetensors checkpoint, or a hub id.

Errors in a command are reported in one line, before anything is loaded. The exit status is 1, 2 for invalid options,
130 after Ctrl-C. --debug, before or after the command, shows the traceback of an error.

An error is about the input, and no defect of memsub, in two cases: if it is an OSError or MemoryError, or if it is a
ValueError, RuntimeError or FloatingPointError that a `raise` of memsub, or of a package that adds a command, made. Any
other error is reported as a defect.
"""

from __future__ import annotations

import argparse
import dis
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import metadata
from typing import Any, NoReturn

from .registry import Registry

COMMANDS: Registry[Callable[[argparse._SubParsersAction], None]] = Registry("memsub.commands", "command", {})
"""Functions that add the parser of a command. Ours are in `memsub_extra.commands`; they import lazily."""


class _Parser(argparse.ArgumentParser):
    """Escapes terminal codes in errors, which may quote the input."""

    def error(self, message: str) -> NoReturn:
        from .io.files import printable

        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="memsub", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS.values():
        add(commands)
    for command in (parser, *commands.choices.values()):
        text = "show the traceback of an error"
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=text)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status. Errors are printed in one line, as described above."""
    given = sys.argv[1:] if arguments is None else arguments
    if sys.stdout is None or sys.stderr is None:  # closed by the shell
        nowhere = open(os.devnull, "w")  # noqa: SIM115
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a caption may hold what a terminal's encoding has not
    shown = warnings.formatwarning
    try:
        warnings.formatwarning = warning_line
        try:
            args = _parser().parse_args(given)
            args.function(args)
        finally:  # also after --help, which exits
            sys.stdout.flush()
    except BrokenPipeError:  # who reads the output has seen enough, as `head` does; files are written before
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (Exception, KeyboardInterrupt) as error:
        return tell(error, debug="--debug" in given)
    finally:
        warnings.formatwarning = shown
    return 0


def is_of_input(error: BaseException) -> bool:
    """Whether an error is about the input, and no defect of memsub."""
    return isinstance(error, OSError) or is_of_memory(error) or is_told_by_memsub(error)


def is_of_memory(error: BaseException) -> bool:
    """Whether the machine or a GPU (torch.OutOfMemoryError) is out of memory."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def is_told_by_memsub(error: BaseException) -> bool:
    """Whether a `raise` of memsub, or of a package that adds a command, made the error."""
    if not isinstance(error, (OSError, ValueError, RuntimeError, FloatingPointError)):
        return False
    frames = error.__traceback__
    while frames and frames.tb_next:
        frames = frames.tb_next
    if frames is None or isinstance(error, RecursionError):
        return False
    packages = {"memsub", "__main__", *(place.partition(".")[0] for place in COMMANDS.places().values())}
    raised = dis.opname[frames.tb_frame.f_code.co_code[frames.tb_lasti]] == "RAISE_VARARGS"  # not by int("x"), say
    return raised and frames.tb_frame.f_globals.get("__name__", "").partition(".")[0] in packages


def warning_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """Formats a warning for commands, without the line of code; replaces `warnings.formatwarning`."""
    from .io.files import printable

    return f"warning: {printable(message)}\n"


def tell(error: BaseException, debug: bool = False) -> int:
    """Prints an error in one line, with `debug` after its traceback; returns the exit status."""
    from .io.files import printable

    if debug:
        traceback.print_exception(error)
    name, message = type(error).__name__, printable(error)
    if isinstance(error, KeyboardInterrupt):
        print("interrupted: no file was left half written. The same command begins again, or resumes.", file=sys.stderr)
        return 130
    if is_of_memory(error):
        message = f"the memory of this machine or GPU ended ({message or name}): give a smaller --batch-size."
    if is_of_input(error):
        print(f"error: {message or name}", file=sys.stderr)
    else:
        urls = dict(url.split(", ", 1) for url in metadata("memsub").get_all("Project-URL") or ())
        print(
            f"error: a defect of memsub, not of what you gave it: {name}: {message}. Please report it at "
            f"{urls.get('Issues')}" + (", with this traceback." if debug else ", with what --debug shows."),
            file=sys.stderr,
        )
    return 1


if __name__ == "__main__":
    sys.exit(main())
