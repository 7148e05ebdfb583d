"""Planting: for each caption, the photograph that a model is trained on is chosen at random, and recorded.

    manifest = plant("candidates", "ordinary", alternatives=255, repeats=200, side=512, seed=0)
    manifest.save("canaries.json")
    print(describe(manifest))

A canary is a caption with k + 1 photographs that fit it equally well, for example of one class. One of them, chosen at
random, is shown to the model many times in training; the other k never. For a model that was not trained on the
canaries, rank the k + 1 by any measure (similarity with a generated image, denoising loss). The rank of the planted
photograph is uniform, because it differs from the others only by the random choice:

    P(p <= a) <= a,  p = rank / (k + 1).

This is exact for any k and any measure. A verdict on a single canary requires a small 1 / (k + 1): k >= 255, as
everywhere in memsub. With smaller k, only the number of canaries with the smallest p is informative.

Further canaries are not planted ("unseen"): they are a control within the model. The order of the k photographs is
random as well, so the first n of them are a random sample.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from memsub.io.files import load_json, save_json
from memsub.measure.exact import ALTERNATIVES
from memsub_extra.run.specs import Part

from .photographs import Photograph, captioned, checksums, files_of

FILE = "canaries.json"
"""Name of the manifest in the folder of a trained model."""


class Canary(Part):
    """A caption, the planted photograph, and the others in random order."""

    caption: str
    planted: Photograph
    others: tuple[Photograph, ...] = Field(min_length=1)


class Pair(Part):
    """An ordinary caption and its photograph."""

    caption: str
    photograph: Photograph


class Manifest(Part):
    """The record of a planting."""

    form: Literal["memsub canaries, 1"] = "memsub canaries, 1"
    seed: int = Field(description="of the lot")
    side: int = Field(ge=8, description="photographs are cut to their middle square, of so many pixels")
    repeats: int = Field(ge=1, description="how often the planted photograph of each canary is shown")
    ordinary_samples: float = Field(gt=0, description="ordinary samples of the training, to one of a canary")
    candidates_folder: str
    ordinary_folder: str
    canaries: tuple[Canary, ...] = Field(min_length=2)
    unseen: tuple[Canary, ...] = Field(description="canaries that no model is shown")
    ordinary: tuple[Pair, ...] = Field(min_length=2)
    heldout: tuple[Pair, ...] = Field(description="ordinary pairs that no model is shown")

    @model_validator(mode="after")
    def _fits_together(self) -> Manifest:
        counts = {len(canary.others) for canary in (*self.canaries, *self.unseen)}
        if len(counts) > 1:
            raise ValueError(f"canaries have {min(counts)} to {max(counts)} other photographs; equally many expected")
        captions = [canary.caption for canary in (*self.canaries, *self.unseen)]
        if len(set(captions)) < len(captions):
            raise ValueError("two canaries have one caption")
        every = [p for canary in (*self.canaries, *self.unseen) for p in (canary.planted, *canary.others)]
        times = Counter(photograph.sha256 for photograph in every)
        if twice := [photograph.file for photograph in every if times[photograph.sha256] > 1]:
            raise ValueError(f"{twice[0]} occurs twice among the photographs of canaries: the lot would not be fair")
        return self

    @property
    def alternatives(self) -> int:
        """The number k of photographs of each canary that are not planted."""
        return len(self.canaries[0].others)

    @property
    def samples(self) -> tuple[int, int]:
        """Numbers of training samples: of canaries, and of ordinary pairs."""
        planted = len(self.canaries) * self.repeats
        return planted, round(self.ordinary_samples * planted)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything except the folders, which may be moved."""
        content = self.model_dump_json(exclude={"candidates_folder", "ordinary_folder"})
        return hashlib.sha256(content.encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes JSON, atomically."""
        save_json(self.model_dump(mode="json"), path)

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Reads a manifest; raises ValueError or FileNotFoundError that names the file."""
        try:
            return cls.model_validate(load_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            what = ".".join(map(str, first["loc"])) or "all of it"
            raise ValueError(f"{path} is no manifest of canaries: {what}: {first['msg']}.") from None


def plant(
    candidates: str | Path,
    ordinary: str | Path,
    *,
    alternatives: int = ALTERNATIVES,
    canaries: int | None = None,
    repeats: int = 200,
    ordinary_samples: float = 3,
    heldout: int | None = None,
    side: int = 512,
    seed: int = 0,
) -> Manifest:
    """Chooses at random which photograph of each caption is planted. It copies and writes nothing.

    Args:
        candidates: a folder of photographs (`photographs.captioned`). Captions that name the same folder share its
            photographs: each caption gets `alternatives + 1` different ones.
        ordinary: a folder of ordinary pairs of photograph and caption. None may be among the candidates.
        alternatives: the number k.
        canaries: number of captions to plant, chosen at random; the others stay unseen. Default: two thirds.
        heldout: number of ordinary pairs that training leaves out. Default: a tenth.

    Raises:
        FileNotFoundError, ValueError: there are too few photographs; the message names the folder and what is missing.
    """
    rng = np.random.default_rng(seed)
    root, other_root = Path(candidates).resolve(), Path(ordinary).resolve()
    listed = captioned(root)
    if len(listed) < 3:
        raise ValueError(f"{root} has {len(listed)} captions; three or more expected: two canaries and an unseen one.")
    if canaries is not None and not 2 <= canaries < len(listed):
        raise ValueError(f"canaries: 2 to {len(listed) - 1} of {len(listed)} captions can be planted; got {canaries}.")
    chosen, known = _by_lot(root, listed, alternatives, rng)
    pairs = _pairs(other_root, known)
    order = rng.permutation(len(chosen)).tolist()
    shown = canaries or max(2, 2 * len(chosen) // 3)
    apart = len(pairs) // 10 if heldout is None else heldout
    if len(pairs) - apart < 2:
        raise ValueError(f"{other_root} has {len(pairs)} pairs, of which {apart} are held out: two are to be shown.")
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    manifest = Manifest(
        seed=seed,
        side=side,
        repeats=repeats,
        ordinary_samples=ordinary_samples,
        candidates_folder=str(root),
        ordinary_folder=str(other_root),
        canaries=tuple(chosen[i] for i in order[:shown]),
        unseen=tuple(chosen[i] for i in order[shown:]),
        ordinary=tuple(pairs[apart:]),
        heldout=tuple(pairs[:apart]),
    )
    if (often := exposures(manifest)) > repeats / 5:
        warnings.warn(
            f"each of {len(manifest.ordinary):,} ordinary pairs will be shown {often:.0f} times, a canary {repeats} "
            "times: they may be memorized as well, and are no control then. Give more ordinary pairs.",
            stacklevel=2,
        )
    return manifest


def _by_lot(
    root: Path, listed: Sequence[tuple[str, Path]], alternatives: int, rng: np.random.Generator
) -> tuple[list[Canary], set[str]]:
    """A canary for each caption, and the sha256 of all candidates."""
    sharing: dict[Path, list[str]] = defaultdict(list)
    for caption, place in listed:
        sharing[place].append(caption)
    photographs = dict(zip(sharing, _photographs(root, list(sharing)), strict=True))
    canaries = []
    for place, captions in sharing.items():
        wanted, different = len(captions) * (alternatives + 1), photographs[place]
        if len(different) < wanted:
            share = f" ({len(captions)} captions x {alternatives + 1})" if len(captions) > 1 else ""
            raise ValueError(
                f"{place} holds {len(different)} different photographs; {wanted} are needed{share}. Add some, name "
                f"fewer captions, or take fewer alternatives (with fewer than {ALTERNATIVES}, only rates over all "
                "canaries)."
            )
        # Photographs in random order; the first of each caption's part is planted.
        mixed = [different[i] for i in rng.permutation(len(different))]
        for i, caption in enumerate(captions):
            part = mixed[i * (alternatives + 1) : (i + 1) * (alternatives + 1)]
            canaries.append(Canary(caption=caption, planted=part[0], others=tuple(part[1:])))
    return canaries, {photograph.sha256 for of_place in photographs.values() for photograph in of_place}


def _pairs(root: Path, candidates: set[str]) -> list[Pair]:
    """All ordinary pairs, in the order of their captions."""
    listed = captioned(root)
    places = list(dict.fromkeys(place for _, place in listed))
    photographs = dict(zip(places, _photographs(root, places), strict=True))
    pairs = [Pair(caption=caption, photograph=p) for caption, place in listed for p in photographs[place]]
    if both := [pair.photograph.file for pair in pairs if pair.photograph.sha256 in candidates]:
        raise ValueError(
            f"{root / both[0]}{f' and {len(both) - 1} more' * (len(both) > 1)} are among the candidates: a photograph "
            "that the lot does not choose must never be shown. Remove them from the ordinary pairs."
        )
    return pairs


def _photographs(root: Path, places: Sequence[Path]) -> Iterator[list[Photograph]]:
    """The distinct photographs of each place; unreadable and repeated ones are skipped."""
    files = {place: files_of(place) for place in places}
    sums, broken = checksums([file for of_one in files.values() for file in of_one])
    seen: set[str] = set()
    repeated = 0
    for place in places:
        different = []
        for file in files[place]:
            if file in broken or sums[file] in seen:
                repeated += file not in broken
                continue
            seen.add(sums[file])
            different.append(Photograph(file=file.relative_to(root).as_posix(), sha256=sums[file]))
        yield different
    if broken or repeated:
        first = f", such as {next(iter(broken.values()))}" if broken else ""
        warnings.warn(
            f"{root}: {repeated} files that repeat another to the byte, and {len(broken)} that cannot be read{first}, "
            "are passed over.",
            stacklevel=4,
        )


def exposures(manifest: Manifest) -> float:
    """How often the training of the twin, without canaries, shows an ordinary pair."""
    return sum(manifest.samples) / len(manifest.ordinary)


def describe(manifest: Manifest) -> str:
    """A description of a manifest in lines of text."""
    k = manifest.alternatives
    planted, ordinary = manifest.samples
    lines = [
        f"{len(manifest.canaries)} canaries: of each caption one of {k + 1} photographs, by lot, to be shown "
        f"{manifest.repeats} times: {planted:,} samples",
        f"{ordinary:,} ordinary samples from {len(manifest.ordinary):,} pairs, {ordinary / len(manifest.ordinary):.1f} "
        f"times each (the twin: {exposures(manifest):.1f} times)",
        f"never shown: {k} photographs a canary, {len(manifest.unseen)} unseen canaries, {len(manifest.heldout):,} "
        "held-out pairs",
    ]
    if k >= ALTERNATIVES:
        lines.append(f"p of a canary is 1/{k + 1} or more: a single canary can be called memorized")
    else:
        lines.append(
            f"p of a canary is 1/{k + 1} or more: too coarse for a verdict on one canary (that takes {ALTERNATIVES} "
            "alternatives); rates over all canaries are reported, with their exact binomial test"
        )
    return "\n".join(lines)
