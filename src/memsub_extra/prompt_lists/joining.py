"""Captions of two lists that are the same, also where one of them was written in lower case.

    places = ByCaption(["A Red Heart", "A blue fish"])     # caption to its places in a list
    places.find("a red heart ")                            # [0]

A caption is compared as it stands, blanks counting as one; where no caption stands there so, without its case and in
one form of Unicode, if that leads to one caption alone.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def spaced(caption: object) -> str:
    """A caption with single blanks, as lists write it in several ways."""
    return " ".join(str(caption).split())


def folded(caption: object) -> str:
    """A caption without its case, and in one form of Unicode: an accent may be a character of its own."""
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
        """The places of a caption; none if it is not there, or if its case alone tells it from another.

        Args:
            others: the list that the caption is of: two of its captions that differ by case are not taken for one.
        """
        if spaced(caption) in self.places:
            return self.places[spaced(caption)]
        named = self._named.get(folded(caption), set())
        if len(named) != 1 or (others and len(others._named.get(folded(caption), ())) > 1):
            return []
        return self.places[next(iter(named))]
