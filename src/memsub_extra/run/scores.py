"""Generated images of the models of a run, and their scores; everything is computed once.

    scores = run.scores
    scores.images(run.unedited, captions, seeds)            # uint8 (n, height, width, 3)
    scores.memorized(model, places)                         # one row per image of memorized captions
    scores.unseen(model, 28)                                # the same for unseen captions
    scores.evaluate(model, places)                          # both axes of the trade-off

Models are arguments (`run.model.Model`). The edit of a model is applied only during sampling.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property, partial
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from memsub.measure.evaluation import alignment, score, summary
from memsub.measure.metric import References
from memsub.measure.noise import noise_seeds
from memsub.models import Conditioning, Sample, generate
from memsub_extra.store import Kind

from .model import Model

if TYPE_CHECKING:
    from .run import Run

IMAGES = Kind("images")
VERDICTS = Kind("verdicts")
SCORED = Kind("scored")
MEMORIZED = Kind("memorized")
UNSEEN = Kind("unseen")
CORPUS = Kind("corpus")
REAL = Kind("real")
CHUNK = 1024
"""Number of images in memory at a time, if there are more."""


class Scores:
    """Images, verdicts and scores of the models of a run."""

    def __init__(self, run: Run):
        self.run = run

    # --- images -------------------------------------------------------------------------------------------------

    def sample(self, model: Model) -> Sample:
        """`generate` with the run's sampling options, for an applied model (`model.applied()`)."""
        return partial(generate, model.pipe, progress=False, **self.run.parameters.sampling.model_dump())

    def images(self, model: Model, prompts: Sequence[str] | Conditioning, seeds: Sequence[int]) -> np.ndarray:
        """Images of captions, or of embeddings: uint8 (n, height, width, 3)."""

        def make() -> dict[str, np.ndarray]:
            with model.applied():
                return {"images": self.sample(model)(prompts, seeds=seeds)}

        content = {"prompts": prompts, "seeds": list(seeds), "model": model, **self._sampling}
        return self.run.store.arrays(IMAGES, make, **content)["images"]

    def seeds(self, captions: Sequence[str]) -> list[int]:
        """Seeds for one image a caption. All models get the same noise for the same caption."""
        return noise_seeds(captions, 0)

    def replicated(self, images: np.ndarray, captions: Sequence[str], references: References) -> np.ndarray:
        """The run's verdict on images, bool (n,)."""
        judge = self.run.judge
        content = {"images": images, "captions": list(captions), "references": references, "judge": judge}
        make = lambda: {"replicated": judge(images, captions, references)}  # noqa: E731
        return self.run.store.arrays(VERDICTS, make, **content)["replicated"]

    # --- scores -------------------------------------------------------------------------------------------------

    def scored(
        self,
        model: Model,
        captions: list[str],
        references: References | None = None,
        *,
        seeds: Sequence[int] | None = None,
        sample: Sample | None = None,
        kind: Kind = SCORED,
        **content: Any,
    ) -> pd.DataFrame:
        """`memsub.score` of captions by a model, one row per image.

        Args:
            references: training images of the captions.
            seeds: every caption is sampled with every seed; default: one seed.
            sample: function that replaces plain sampling; `content` has everything that it depends on.
        """

        def make() -> pd.DataFrame:
            with model.applied():
                plain = sample or self.sample(model)
                return score(plain, self.run.metrics, captions, references, seeds=seeds)

        content |= {"references": references, "seeds": seeds} | self._content(model, captions)
        return self.run.store.table(kind, make, **content)

    def memorized(
        self,
        model: Model,
        places: Collection[int],
        sample: Sample | None = None,
        seeds: Sequence[int] | None = None,
        **content: Any,
    ) -> pd.DataFrame:
        """`scored` of memorized captions, by their places in the run's list."""
        captions = [self.run.data.captions("memorized")[i] for i in places]
        references = self.run.data.references_of(places)
        return self.scored(model, captions, references, seeds=seeds, sample=sample, kind=MEMORIZED, **content)

    def unseen(
        self, model: Model, n: int, sample: Sample | None = None, part: str = "report", **content: Any
    ) -> pd.DataFrame:
        """`memsub.score` of n unseen captions (`Data.unseen`), a few in memory at a time.

        The captions of evaluations are stored as a separate part, so that larger n reuse them.
        """
        place, captions = self.run.data.unseen(n, part)
        first = min(self.run.parameters.evaluation.captions, len(captions))
        edges = [0, *range(first, len(captions) - 1, CHUNK), len(captions)]  # no part has a single caption
        parts = []
        for begin, end in tqdm([*pairwise(edges)], desc="sampling unseen captions", disable=n <= CHUNK):
            start, those = place + begin, captions[begin:end]
            make = partial(self._score, model, sample, those)
            content_here = {"start": start} | self._content(model, those) | content
            parts.append(self.run.store.table(UNSEEN, make, **content_here))
        return pd.concat(parts, ignore_index=True)

    def _score(self, model: Model, sample: Sample | None, captions: list[str]) -> pd.DataFrame:
        with model.applied():
            return score(sample or self.sample(model), self.run.metrics, captions)

    def evaluate(
        self, model: Model, places: Collection[int], n: int | None = None, part: str = "report", **how: Any
    ) -> dict[str, float]:
        """`memsub.summary` of a model on memorized and unseen prompts.

        Args:
            places: places of memorized prompts that did not locate the model's edit.
            n: number of unseen captions of this `part` (default: `evaluation.captions`).
            how: `sample` and `content`, if sampling is not plain.

        Returns:
            The entries of `summary`, relative_alignment (of unseen captions, relative to `reference`) and density.
        """
        n = n or self.run.parameters.evaluation.captions
        entries = summary(self.memorized(model, places, **how), self.unseen(model, n, part=part, **how))
        relative = entries["alignment"] / alignment(self.unseen(self.reference, n, part=part))
        return entries | {"relative_alignment": relative, "density": model.density}

    @property
    def reference(self) -> Model:
        """The reference of relative alignment: the twin, or the unedited model without one."""
        return self.run.twin or self.run.unedited

    # --- features of images that are known ------------------------------------------------------------------------

    @cached_property
    def corpus_features(self) -> np.ndarray:
        """The copy metric's descriptors of all known training images: (n, dim)."""
        copy, corpus = self.run.metrics.copy, self.run.data.corpus
        make = lambda: {"features": copy.features(corpus)}  # noqa: E731
        return self.run.store.arrays(CORPUS, make, metric=copy.identity, images=corpus)["features"]

    @cached_property
    def real_features(self) -> np.ndarray:
        """The prompt metric's features of all real images: (n, dim)."""
        metric, features = self.run.metrics.prompt, []
        for start in tqdm(count(0, CHUNK), desc="features of real images", unit=f"{CHUNK} images", mininterval=2):
            if not len(part := self.run.data.real_images(start, start + CHUNK)):
                break
            make = partial(_features, metric.image_features, part)
            features.append(self.run.store.arrays(REAL, make, metric=metric.identity, images=part)["features"])
        return np.concatenate(features)

    # --- keys -----------------------------------------------------------------------------------------------------

    @property
    def _sampling(self) -> dict[str, Any]:
        return self.run.parameters.sampling.model_dump(exclude={"batch_size"})

    def _content(self, model: Model, captions: list[str]) -> dict[str, Any]:
        """Everything that scores depend on, for keys of the store."""
        metrics = {
            "copy": [self.run.metrics.copy.identity, self.run.metrics.copy.threshold],
            "prompt": self.run.metrics.prompt.identity,
            "more": self.run.metrics.more,
        }
        return {"captions": captions, "metrics": metrics, "model": model, **self._sampling}


def _features(embed: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    return {"features": embed(images)}
