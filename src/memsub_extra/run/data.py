"""The data of a run: prompts, training images, and which prompts locate, choose and report.

    data = Data(parameters, image_side=lambda: 32)
    data.captions("memorized")                  # as many of each kind
    data.references[3]                          # the training image of memorized prompt 3
    data.split                                  # {"locate": [...], "choose": [...], "report": [...]}: thirds
    data.located_on(Group.subset("memorized", 10, 0))

The memorized prompts are split in three: an edit that the notebooks report is *located* on the first third, its setting
was *chosen* on the second, and it is *reported* on the third.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from memsub.io.distributed import first_on_each_machine
from memsub.io.downloads import TRAINING_IMAGES
from memsub.io.images import decode_png, image_files, read_images
from memsub.models import WORLDS, ModelInfo, find_model
from memsub.prompts import Prompts, load_prompts, near_duplicates, subsets, too_long
from memsub.world import World

from .parameters import Parameters
from .specs import Group, Kind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Data:
    """Prompts and images of one set of parameters, loaded on first use.

    Args:
        image_side: gives the side of the model's images in pixels, to which images from files are resized.
    """

    def __init__(self, parameters: Parameters, image_side: Callable[[], int]):
        self.parameters = parameters
        self.info: ModelInfo = find_model(parameters.model)
        self._image_side = image_side

    @property
    def world(self) -> World | None:
        """The world that the model was trained on, where every training image is known."""
        return WORLDS[self.info.world] if self.info.world else None

    # --- prompts ------------------------------------------------------------------------------------------------

    @cached_property
    def prompts(self) -> Prompts:
        prompts = load_prompts(self.parameters.data.prompts or self.info.prompts)
        return prompts.without_near_duplicates() if self.parameters.data.near_duplicates == "drop" else prompts

    def captions(self, kind: Kind) -> list[str]:
        """The memorized prompts of this run, or the ordinary ones: equally many.

        Raises:
            ValueError: the model's list holds fewer than the parameter `grid.memorized` asks for.
        """
        listed, wanted = getattr(self.prompts, kind), self.parameters.grid.memorized
        if len(listed) < wanted:
            raise ValueError(
                f"grid.memorized: {wanted} prompts of each kind were asked for, but only {len(listed)} are {kind}."
            )
        return listed[:wanted]

    def describe(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """How many memorized captions nearly repeat another, and how many captions of the run the tokenizer cuts."""
        memorized, ordinary = self.captions("memorized"), self.captions("ordinary")
        repeats = sum(i is not None for i in near_duplicates(memorized))
        cut, limit = too_long(memorized + ordinary, tokenizer), tokenizer.model_max_length
        return (
            f"{repeats} of {len(memorized)} memorized captions nearly repeat an earlier one\n"
            f"{len(cut)} of {len(memorized + ordinary)} captions are longer than {limit} tokens and are cut"
        )

    # --- which prompts ------------------------------------------------------------------------------------------

    @cached_property
    def split(self) -> dict[str, list[int]]:
        """Places of the memorized prompts that locate an edit, choose its setting, and report what it does: thirds."""
        n = self.parameters.grid.memorized
        order = np.random.default_rng([self.parameters.seed, 3]).permutation(n)
        locating, choosing, reporting = np.array_split(order, 3)
        return {"locate": locating.tolist(), "choose": choosing.tolist(), "report": reporting.tolist()}

    def members(self, size: int) -> list[list[int]]:
        """Subsets of `size` prompts, as indices into `captions`; the same for both kinds."""
        return subsets(self.parameters.grid.memorized, size, self.parameters.grid.subsets, self.parameters.seed)

    def located_on(self, group: Group) -> list[int]:
        """Places of the prompts of a group, in `captions` of their kind."""
        if group.part == "locate":
            return self.split["locate"]
        if group.part == "subset":
            return self.members(group.size)[group.index]
        return list(range(self.parameters.grid.memorized))

    def held_out(self, located_on: Collection[int], part: str = "report") -> list[int]:
        """Places of a part's memorized prompts that did not locate an edit and whose training image is known.

        Raises:
            ValueError: fewer than two are left.
        """
        places = [i for i in self.split[part] if i not in set(located_on) and i in self.references]
        if len(places) < 2:
            raise ValueError(
                f"only {len(places)} of the {len(self.split[part])} memorized prompts that {part} are held out and "
                "have a training image: at least two are needed."
            )
        return places

    # --- images -------------------------------------------------------------------------------------------------

    @property
    def images_folder(self) -> Path:
        """Where the training images of published lists are, or will be."""
        return Path(self.parameters.data.images or Path(self.parameters.folder) / "gt_images")

    @cached_property
    def references(self) -> dict[int, np.ndarray]:
        """Training images of memorized prompts, by the prompt's place in `captions`, as large as the model's images.

        Those of published lists are fetched into the folder `data.images`; most of their addresses are dead, so many
        are missing.

        Raises:
            ValueError: there is none at all; names the folder.
        """
        rows = self.prompts.memorized_rows[: self.parameters.grid.memorized]
        if "image" in rows:
            return dict(enumerate(map(decode_png, rows["image"])))
        folder = self.images_folder
        with first_on_each_machine():
            if not folder.is_dir():
                for fetch in TRAINING_IMAGES.values():
                    print(fetch(rows, folder))
        files = {i: image_files(folder / str(index)) for i, index in enumerate(rows["index"])}
        images = {i: read_images(there[:1], self._image_side())[0] for i, there in files.items() if there}
        if not images:
            raise ValueError(f"{folder} holds no training image of these prompts; expected {folder}/<index>/*.png.")
        return images

    @cached_property
    def corpus(self) -> np.ndarray:
        """Training images that are known: of a world every one (or those in its list, by `testbed.corpus`), else those
        of the memorized prompts."""
        if not self.world:
            return np.stack(list(self.references.values()))
        if self.parameters.testbed.corpus == "all":
            return self.world.training_images()
        listed = self.prompts.table
        return np.stack([decode_png(image) for image in listed["image"][listed["exposures"] > 0]])

    def real_images(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Images the model was not trained on: held-out ones of a world, or those in the folder `data.real`, by name.

        Raises:
            ValueError: the parameter `data.real` names no folder of images.
        """
        if "image" in self.prompts.table:
            return self.prompts.images("heldout", start, stop)
        real = self.parameters.data.real
        files = image_files(Path(real)) if real else []
        if not files:
            raise ValueError(f"data.real: a folder of images, such as COCO's, is needed for KID and FID; got {real!r}.")
        return read_images(files[start:stop], self._image_side())
