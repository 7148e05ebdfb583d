"""Finds equal captions in two lists, also if one list is in lower case.

    places = ByCaption(["A Red Heart", "A blue fish"])     # caption to its places in a list
    places.find("a red heart ")                            # [0]

Captions are compared with repeated blanks merged. If no caption is equal, they are compared without case and in a
normal form of Unicode; the result must be a single caption.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def spaced(caption: object) -> str:
    """A caption with repeated blanks merged."""
    return " ".join(str(caption).split())


def folded(caption: object) -> str:
    """A caption without case, in a normal form of Unicode: accents may be separate characters."""
    return spaced(unicodedata.normalize("NFKC", str(caption)).casefold())


class ByCaption:
    """Places of captions in a list."""

    def __init__(self, captions: Iterable[object]):
        self.places: dict[str, list[int]] = {}
        self._named: dict[str, set[str]] = {}
        for place, caption in enumerate(captions):
            self.places.setdefault(spaced(caption), []).append(place)
            self._named.setdefault(folded(caption), set()).add(spaced(caption))

    def find(self, caption: object, others: ByCaption | None = None) -> list[int]:
        """The places of a caption; none if it is missing, or differs from another caption only by case.

        Args:
            others: the list of the caption; its captions that differ only by case stay distinct.
        """
        if spaced(caption) in self.places:
            return self.places[spaced(caption)]
        named = self._named.get(folded(caption), set())
        if len(named) != 1 or (others and len(others._named.get(folded(caption), ())) > 1):
            return []
        return self.places[next(iter(named))]
