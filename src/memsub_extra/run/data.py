"""The data of a run: prompts, training images, and the split of prompts into locate, choose and report.

    data = Data(parameters, image_side=lambda: 32)
    data.captions("memorized")                  # equally many of each kind; ordinary ones match memorized ones
    data.matched("heldout")                     # unseen captions that match them
    data.references[3]                          # the training image of memorized prompt 3, or the first of several
    data.references_of([3, 4])                  # all training images; the most similar one counts
    data.memorized.kinds[3]                     # "verbatim", "template", or "memorized" if unknown
    data.split                                  # {"locate": [...], "choose": [...], "report": [...]}: thirds
    data.located_on(Group.subset("memorized", 10, 0))

The memorized prompts are split in three: the edit that the notebooks report is *located* on the first third, its
setting was *chosen* on the second, and it is *reported* on the third. For lists with kinds, every third has each kind
in proportion (`memsub_extra.run.sample`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd

from memsub.io.distributed import first_on_each_machine
from memsub.io.images import SUFFIXES, decode_png, image_files, read_images
from memsub.measure.metric import References
from memsub.models import ModelInfo, find_model, world_of
from memsub.overlap import subsets
from memsub.prompts import Prompts, load_prompts
from memsub.world import World
from memsub_extra.archives import TRAINING_IMAGES
from memsub_extra.prompt_lists.captions import near_duplicates, too_long, without_near_duplicates
from memsub_extra.prompt_lists.images import Matched, match_images, read_matched
from memsub_extra.prompt_lists.kinds import ALL, published_types, read_types, with_types
from memsub_extra.prompt_lists.wordings import wordings_of

from .parameters import Parameters
from .sample import PARTS, described, mixed, sampled, strata, thirds
from .specs import Group, Kind, MemorizedKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Memorized:
    """The columns of a list for memorized prompts, by place in the list.

    Attributes:
        rows: rows of the list; columns prompt, kind, and those of `memsub.io.lists.KEPT` that it has.
        file: file of the list, for messages.
    """

    def __init__(self, rows: pd.DataFrame, file: str | None = None):
        self.rows, self.file = rows, file

    @cached_property
    def kinds(self) -> list[str]:
        """The kind of each: verbatim, template, or memorized if unknown."""
        return self.rows["kind"].tolist()

    @cached_property
    def wordings(self) -> list[list[str]]:
        """Other wordings of each; may be empty."""
        return wordings_of(self.rows, self.file)

    def of_kind(self, places: Collection[int], kind: str) -> list[int]:
        """The places of one kind, or of all kinds ("all")."""
        return [place for place in places if kind in (ALL, self.kinds[place])]

    def mixed(self, places: Collection[int]) -> list[int]:
        """The places, reordered so that the first few have every kind; unchanged for lists without kinds."""
        return mixed(places, dict(enumerate(self.kinds))) if strata(self.rows) else list(places)

    def sets(self, size: int, most: int, seed: int) -> dict[MemorizedKind, list[list[int]]]:
        """Disjoint sets of places of one published kind: equally many for each kind, at most `most`.

        They have `size` places, or fewer, so that the rarer kind has two sets. Empty if the list lacks one of the
        kinds.
        """
        places = {kind: self.of_kind(range(len(self.kinds)), kind) for kind in get_args(MemorizedKind)}
        rarer = min(map(len, places.values()))
        if not (size := min(size, rarer // 2)):
            return {}
        orders = {kind: np.random.default_rng([seed, 5]).permutation(of_kind) for kind, of_kind in places.items()}
        firsts = [size * i for i in range(min(most, rarer // size))]
        return {kind: [order[first : first + size].tolist() for first in firsts] for kind, order in orders.items()}


class Data:
    """Prompts and images of one set of parameters, loaded on first use.

    Args:
        image_side: returns the side of the model's images in pixels; images from files are resized to it.
    """

    def __init__(self, parameters: Parameters, image_side: Callable[[], int]):
        self.parameters = parameters
        self.info: ModelInfo = find_model(parameters.model)
        self._image_side = image_side

    @cached_property
    def world(self) -> World | None:
        """The world that the model was trained on, if it has one."""
        return world_of(self.info)

    # --- prompts ------------------------------------------------------------------------------------------------

    @cached_property
    def prompts(self) -> Prompts:
        """The prompts of the run. Memorized prompts have their published kinds, if known, and those that the run takes
        come first."""
        given, types = self.parameters.data.prompts, self.parameters.data.types
        prompts = load_prompts(given or self.info.prompts)
        if "image" not in prompts.table:
            table = prompts.table.assign(row=prompts.table.groupby("kind").cumcount())
            memorized = table["kind"].isin(prompts.memorized_kinds)
            table.loc[memorized, "row"] = range(memorized.sum())  # in the whole list, before rows are omitted
            file = types or (None if given else published_types(self.info.prompts))
            if file:
                table = with_types(table, read_types(file), str(file))
            prompts = Prompts(table, prompts.memorized_kinds)
        if self.parameters.data.near_duplicates == "drop":
            prompts = without_near_duplicates(prompts)
        return sampled(prompts, self.parameters.grid.memorized, self.parameters.seed)

    @cached_property
    def memorized(self) -> Memorized:
        """The columns of the list for the memorized prompts of this run."""
        given = self.parameters.data.prompts
        file = given.get("memorized") if isinstance(given, dict) else given
        return Memorized(self.prompts.memorized_rows[: self.parameters.grid.memorized], file)

    def captions(self, kind: Kind) -> list[str]:
        """The memorized prompts of this run, or equally many ordinary prompts.

        Raises:
            ValueError: the model's list has fewer than the parameter `grid.memorized`.
        """
        listed = self.prompts.memorized if kind == "memorized" else self.matched(kind)
        wanted = self.parameters.grid.memorized
        if len(listed) < wanted:
            raise ValueError(
                f"grid.memorized: {wanted} prompts of each kind were asked for, but only {len(listed)} are {kind}."
            )
        return listed[:wanted]

    def matched(self, kind: str) -> list[str]:
        """Captions of a kind to compare with memorized ones: from a world's own prompts, those that the world calls
        matched (of the same form as memorized captions); from any other list, all.
        """
        rows = self.prompts.rows(kind)
        matched = None if self.parameters.data.prompts else getattr(self.world, "matched", None)
        return (rows if matched is None else rows[matched(rows)])["prompt"].tolist()

    # --- which prompts ------------------------------------------------------------------------------------------

    @cached_property
    def split(self) -> dict[str, list[int]]:
        """The places of memorized prompts in three parts, which locate, choose and report."""
        n, seed = self.parameters.grid.memorized, self.parameters.seed
        if strata(self.memorized.rows) and len(self.memorized.rows) == n:
            return dict(zip(PARTS, thirds(self.memorized.kinds, seed), strict=True))
        order = np.random.default_rng([seed, 3]).permutation(n)
        return {name: part.tolist() for name, part in zip(PARTS, np.array_split(order, len(PARTS)), strict=True)}

    def members(self, size: int) -> list[list[int]]:
        """Subsets of `size` prompts, as indices into `captions`; the same for both kinds."""
        return subsets(self.parameters.grid.memorized, size, self.parameters.grid.subsets, self.parameters.seed)

    def located_on(self, group: Group) -> list[int]:
        """Places of the prompts of a group in `captions` of their kind; for a published kind, in the memorized ones.

        Raises:
            ValueError: there is no such subset of a published kind.
        """
        if group.part == "locate":
            return self.split["locate"]
        if group.kind == "verbatim" or group.kind == "template":
            grid = self.parameters.grid
            sets = self.memorized.sets(grid.sizes[0], grid.subsets, self.parameters.seed).get(group.kind, [])
            if group.part != "subset" or group.index >= len(sets):
                raise ValueError(f"no {group}: of this list there are {len(sets)} sets of {group.kind} captions.")
            return sets[group.index]
        if group.part == "subset":
            return self.members(group.size)[group.index]
        return list(range(self.parameters.grid.memorized))

    def held_out(self, located_on: Collection[int], part: str = "report") -> list[int]:
        """Places of held-out memorized prompts of a part, with a known training image.

        The first few places include every kind of the list.

        Raises:
            ValueError: fewer than two are left.
        """
        places = [i for i in self.split[part] if i not in set(located_on) and i in self.references]
        if len(places) < 2:
            raise ValueError(
                f"only {len(places)} of the {len(self.split[part])} memorized prompts that {part} are held out and "
                "have a training image: at least two are needed."
            )
        return self.memorized.mixed(places)

    def unseen(self, n: int, part: str = "report") -> tuple[int, list[str]]:
        """Unseen captions and the place of the first: n from the start of the list, or for "choose" n from its end.

        So a setting is chosen and reported on different captions.

        Raises:
            ValueError: the list is too short for both.
        """
        listed = self.prompts.of("heldout")
        if part != "choose":
            return 0, listed[:n]
        if len(listed) < 2 * n:
            raise ValueError(
                f"{n} unseen captions choose a setting and {n} others report it, but the list holds {len(listed)}: "
                f"give {2 * n} of them, or lower evaluation.captions and baselines.never_seen."
            )
        return len(listed) - n, listed[-n:]

    # --- images -------------------------------------------------------------------------------------------------

    @cached_property
    def references(self) -> dict[int, np.ndarray]:
        """One training image of each memorized prompt by place in `captions`, (height, width, 3): the first of several.
        Figures and attacks use it. Raises like `training_images`."""
        return {place: images[0] for place, images in self.training_images.items()}

    def references_of(self, places: Collection[int]) -> References:
        """All training images of memorized prompts, as references for metrics."""
        images = [self.training_images[i] for i in places]
        return np.concatenate(images) if all(len(of_one) == 1 for of_one in images) else images

    @cached_property
    def training_images(self) -> dict[int, np.ndarray]:
        """Training images of memorized prompts by place in `captions`, in the size of the model's images: stacks (k,
        height, width, 3), because a prompt of a published list may have several.

        For published lists, the folder `data.images` has any layout that `match_images` reads. If it does not exist,
        the images are fetched into it; most addresses are dead, so many are missing. Unreadable files and placeholders
        are skipped with a warning.

        Raises:
            ValueError: there are no images, an index is no plain name, or two captions share one; names the folder.
        """
        rows, used = self.prompts.memorized_rows, self.parameters.grid.memorized
        if "image" in rows:
            return {i: decode_png(png)[None] for i, png in enumerate(rows["image"][:used])}
        folder = images_folder(self.parameters)
        matched_images(self)  # raises for an invalid list before anything is fetched
        with first_on_each_machine():
            if not folder.is_dir() and "url" in rows and "index" in rows:
                for fetch in TRAINING_IMAGES.values():
                    print(fetch(rows[:used], folder))
        matched = matched_images(self)
        read = read_matched(matched, self._image_side())
        _tell(read.broken, str(folder))
        for sentence in read.notes:
            warnings.warn(sentence, stacklevel=2)
        if not read.images:
            raise ValueError(matched.tally.nothing_matched())
        return read.images

    @cached_property
    def corpus(self) -> np.ndarray:
        """The training images at hand: those in the prompt list of a world, else those of the memorized prompts."""
        if not self.world:
            return np.concatenate(list(self.training_images.values()))
        listed = self.prompts.table
        return np.stack([decode_png(image) for image in listed["image"][listed["exposures"] > 0]])

    @cached_property
    def _real_files(self) -> list[Path]:
        real = self.parameters.data.real
        return image_files(Path(real)) if real else []

    def real_images(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Images that the model was not trained on: held-out images of a world, or `data.real`, sorted by name.

        Unreadable files are skipped with a warning; the next file takes their place.

        Raises:
            ValueError: the parameter `data.real` names no folder of images, or no image can be read.
        """
        if "image" in self.prompts.table:
            return self.prompts.images("heldout", start, stop)
        files, real = self._real_files, self.parameters.data.real
        while files:
            broken: dict[Path, str] = {}
            images = read_images(files[start:stop], self._image_side(), broken)
            if not broken:
                return images
            _tell(broken, f"data.real: {real}")
            files[:] = [file for file in files if file not in broken]
        raise ValueError(
            f"data.real: a folder of images, such as COCO's, is needed for KID and FID; got {real!r}, in which no file "
            f"({', '.join(SUFFIXES)}) can be read."
        )


def describe(data: Data, tokenizer: PreTrainedTokenizerBase) -> str:
    """Sentences on near-duplicates among memorized captions, on captions that the tokenizer truncates, and on the
    kinds that the run takes."""
    memorized, ordinary = data.captions("memorized"), data.captions("ordinary")
    repeats = sum(i is not None for i in near_duplicates(memorized))
    cut, limit = too_long(memorized + ordinary, tokenizer), tokenizer.model_max_length
    lines = [
        f"{repeats} of {len(memorized)} memorized captions nearly repeat an earlier one",
        f"{len(cut)} of {len(memorized + ordinary)} captions are longer than {limit} tokens and are cut",
    ]
    return "\n".join([*lines, *described(data)])


def images_folder(parameters: Parameters) -> Path:
    """The folder of the training images of published lists; it may not exist yet."""
    return Path(parameters.data.images or Path(parameters.folder) / "gt_images")


def matched_images(data: Data) -> Matched:
    """Files of the training images of a run, by place in `captions`, not read. Raises like `match_images`."""
    # The whole list is matched: images of captions that this run leaves out belong to the list, too.
    matched = match_images(data.prompts.memorized_rows, images_folder(data.parameters))
    used = data.parameters.grid.memorized
    matched.files = {place: files for place, files in matched.files.items() if place < used}
    return matched


def _tell(broken: dict[Path, str], where: str) -> None:
    if broken:
        reasons = "; ".join([*broken.values()][:5]) + "; ..." * (len(broken) > 5)
        warnings.warn(f"{where}: {len(broken)} images are passed over: {reasons}", stacklevel=3)
