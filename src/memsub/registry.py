"""Registries of named objects: ours are listed in a table, those of other packages in entry points.

    WORLDS = Registry("memsub.worlds", "world", {"testbed": "memsub.testbed.world:WORLD"})
    WORLDS["testbed"]                           # imported at first use
    BASELINES["mine"] = Baseline(...)           # in this process only, for example in a notebook

Another package adds an entry to its pyproject.toml, and is imported when the name is used:

    [project.entry-points."memsub.baselines"]
    "lower guidance" = "my_package.guidance:BASELINE"
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(MutableMapping[str, T], Generic[T]):
    """Names to objects, each imported at first use.

    Args:
        group: entry point group in which other packages list their objects.
        what: what error messages call one object.
        own: our objects, name to "module:object".
    """

    def __init__(self, group: str, what: str, own: Mapping[str, str]):
        self.group, self.what, self._own = group, what, dict(own)
        self._loaded: dict[str, T] = {}
        self._removed: set[str] = set()

    def places(self) -> dict[str, str]:
        """Name to "module:object" of all listed objects, ours first.

        Raises:
            ValueError: two packages list different objects under one name.
        """
        return self._own | _foreign(self.group, tuple(self._own.items()), tuple(sys.path))

    def find(self, name: str) -> T:
        """The object with this name.

        Raises:
            ValueError: no object has this name; the message offers close matches.
        """
        if name in self:
            return self[name]
        close = difflib.get_close_matches(name, self, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown {self.what} {name!r}.{hint} Expected one of {', '.join(self)}.")

    def __getitem__(self, name: str) -> T:
        if name not in self._loaded:
            if name not in self:
                raise KeyError(name)
            module, _, attribute = self.places()[name].partition(":")
            self._loaded[name] = getattr(import_module(module), attribute)
        return self._loaded[name]

    def __setitem__(self, name: str, thing: T) -> None:
        self._loaded[name] = thing
        self._removed.discard(name)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        self._loaded.pop(name, None)
        self._removed.add(name)

    def __contains__(self, name: object) -> bool:
        return name not in self._removed and (name in self._loaded or name in self.places())

    def __iter__(self) -> Iterator[str]:
        return (name for name in {**self.places(), **self._loaded} if name not in self._removed)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@cache
def _foreign(group: str, own: tuple[tuple[str, str], ...], path: tuple[str, ...]) -> dict[str, str]:
    """What installed packages list in a group. `path` is sys.path, part of the cache key."""
    own_places = dict(own)
    entries: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        # An editable install is often listed twice, by its source folder and by its dist-info.
        listed = entries[entry.name].value if entry.name in entries else own_places.get(entry.name, entry.value)
        if listed != entry.value:
            raise ValueError(
                f"two packages list {entry.name!r} in {group!r}: {listed} and {entry.value}. Remove one of them."
            )
        entries[entry.name] = entry
    return {name: entry.value for name, entry in entries.items()}
