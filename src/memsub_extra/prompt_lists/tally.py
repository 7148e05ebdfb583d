"""Counts the files of a folder of training images: named in tables, existing, and belonging to captions.

tally.named, tally.existing         # files that tables name, and those of them that exist
tally.used, tally.unused            # image files with and without a caption
print(tally.summary())              # all counts, with the first missing and unused names
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from memsub.io.images import SUFFIXES, image_files

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
UNREAD = (".avif", ".heic", ".heif", ".jxl", ".svg", ".npy")
"""Suffixes of images that are not read."""
SHOWN = 3
"""Items of a long list that a sentence names."""


def shortened(items: Sequence[object]) -> str:
    """The first items of a list that may be long."""
    return "; ".join(map(str, items[:SHOWN])) + f"; and {len(items) - SHOWN} more" * (len(items) > SHOWN)


@dataclass
class Table:
    """A table of a folder: its path, its number of captions, how many of them are in the list, and why it is not
    usable, if so."""

    path: Path
    captions: int
    in_list: int
    problem: str = ""


@dataclass
class Tally:
    """Counts of the files of a folder of training images.

    Attributes:
        folder: folder of the files.
        captions: number of captions of the list; `matched` of them have a file.
        names: indices of the list, or numbers.
        tables: tables of the folder that were read.
        named: names of files in the tables, each with the existing files.
        used: image files with a caption; `unused`: those without. Paths are relative to the folder.
    """

    folder: Path = Path()
    captions: int = 0
    matched: int = 0
    names: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    named: dict[str, list[Path]] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    @property
    def existing(self) -> list[str]:
        """Names in tables for which there is an image file."""
        return [name for name, files in self.named.items() if files]

    @property
    def missing(self) -> list[str]:
        """Names in tables for which there is no image file."""
        return [name for name, files in self.named.items() if not files]

    def take_stock(self, used: set[Path]) -> None:
        """Lists the images of the folder as used and unused. `used`: the files that belong to captions."""
        inside = [file for file in image_files(self.folder) if not is_hidden(file.relative_to(self.folder))]
        # Linked folders are not searched, because a link may lead anywhere; links named by an index are used.
        linked = [
            p for p in sorted(self.folder.iterdir()) if p.is_symlink() and p.is_dir() and not is_hidden(Path(p.name))
        ]
        linked = [path for path in linked if not any(path in file.parents for file in used)]
        self.used = [file.relative_to(self.folder).as_posix() for file in sorted(used)]
        self.unused = [file.relative_to(self.folder).as_posix() for file in inside if file not in used]
        self.unused += [f"{path.name}/ (a linked folder)" for path in linked]

    def summary(self) -> str:
        """The tally in a few sentences."""
        text = f"{self.folder}: {self.matched} of {self.captions} captions have images; "
        if self.named:
            text += f"tables name {len(self.named)} files, {len(self.existing)} of them are there; "
        text += f"of {len(self.used) + len(self.unused)} image files {len(self.used)} belong to a caption."
        text += f" Named, and not there or no images: {shortened(self.missing)}." * bool(self.missing)
        text += f" Of no caption in the list: {shortened(self.unused)}." * bool(self.unused)
        return " ".join([text, *self._hints()])

    def nothing_matched(self) -> str:
        """Why no caption has an image: what is expected, what was found, and what to do."""
        example = self.folder / (self.names[0] if self.names else "1")
        lines = [
            f"{self.folder} holds no training image of these {self.captions} captions; expected "
            f"{self.folder}/<index>/*.png (or {', '.join(SUFFIXES[1:])}), for example {example}, or a table such as "
            "metadata.csv, separated by commas, semicolons or tabs, with the columns caption (prompt, text) and file "
            f"(file_name, filename, ref_file, image) or index; {self._content()}."
        ]
        for table in self.tables:
            of = f"was read: {table.captions} captions, {table.in_list} of them in the list"
            said = [of] * bool(table.captions) + [table.problem] * bool(table.problem)
            lines.append(f"{table.path.name} {'; '.join(said)}.")
        if self.missing:
            lines.append(f"Tables name {len(self.missing)} files that are not there: {shortened(self.missing)}.")
        if self.matched:
            lines.append(f"Files of {self.matched} captions are there, and none can be used: warnings say why.")
        return " ".join([*lines, *self._hints(), "docs/images.md shows all layouts."])

    def _content(self) -> str:
        """The content of the folder, as text."""
        if not self.folder.is_dir():
            return "it is a file: unpack it, and name the folder" if self.folder.exists() else "there is no such folder"
        inside = sorted(path.name for path in self.folder.iterdir())
        held = ", ".join(map(repr, inside[:5])) + f" and {len(inside) - 5} more" * (len(inside) > 5)
        return f"it holds {held or 'nothing'}, {len(self.unused) + len(self.used)} image files in all"

    @property
    def unread(self) -> list[Path]:
        """Images of kinds that are not read, relative to the folder."""
        return [path.relative_to(self.folder) for path in self._files if path.suffix.lower() in UNREAD]

    @cached_property
    def _files(self) -> list[Path]:
        """All files of the folder, which may be many: listed once."""
        return [path for path in self.folder.rglob("*") if path.is_file()] if self.folder.is_dir() else []

    def _hints(self) -> list[str]:
        """Advice on frequent problems: archives, images in other formats or one folder too deep, and names such as
        0003."""
        hints, names, others = list[str](), set(self.names), self._files
        if packed := [path.name for path in others if path.suffix.lower() in ARCHIVES]:
            hints.append(f"Archives are not read, unpack them: {shortened(packed)}.")
        if unread := self.unread:
            hints.append(f"{len(unread)} images are of a kind that is not read, save them as PNG: {shortened(unread)}.")
        for file in map(Path, self.unused):
            first = file.parts[0].removesuffix(file.suffix)
            number = first.lstrip("0") or "0"
            if file.parent.name in names and file.parent.parent != Path():
                return [*hints, f"{self.folder / file.parent.parent} holds {file.parent.name!r}: name that folder."]
            if file.stem in names and file.parent != Path():
                return [*hints, f"{self.folder / file.parent} holds {file.name!r}: name that folder."]
            if first.isdecimal() and first not in names and number in names:
                return [*hints, f"{first!r} is not {number!r}: rename it, or name it in a table."]
        return hints


def is_hidden(path: Path) -> bool:
    """Whether a path is hidden data of a program, such as .ipynb_checkpoints, ._x.png or __MACOSX."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
