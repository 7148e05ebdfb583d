"""The parameters of a run, validated before anything is loaded: for notebooks, papermill and command line.

    Parameters.load("papermill_params/tiny.yaml")
    Parameters.checked({"model": "tiny", "grid": {"sizes": [10]}})
    Parameters.from_notebook(globals())         # from the parameters cell of a notebook, and papermill

Parameters are grouped in parts (`sampling.steps`, `edit.sparsity`). A misspelt key is an error that lists the valid
keys. Files may come from strangers: they are plain YAML of limited size, without anchors and repeated keys.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from memsub.io.files import printable
from memsub.measure.metrics import IMAGE_METRICS
from memsub.models import Solver, find_model
from memsub.registry import Registry
from memsub_extra.mitigations import BASELINES

from .specs import EditSpec, Part

_PLAIN = (str, int, float, list, dict, type(None))
_READ = "_memsub_parameters_were_read"
LARGEST_FILE = 100_000
"""Largest size of a parameter file in bytes."""
_DEEPEST = 20


def _once(values: list[Any]) -> list[Any]:
    if repeated := [value for i, value in enumerate(values) if value in values[:i]]:
        raise ValueError(f"{repeated[0]!r} stands there twice")
    return values


def _ascending(values: list[int]) -> list[int]:
    if sorted(set(values)) != values:
        raise ValueError("ascending numbers are expected")
    return values


Share = Annotated[float, Field(gt=0, le=1)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Name = Annotated[str, Field(pattern=r"^[^<>&|`\x00-\x1f\x7f]{1,80}$")]
"""Options of tables and figures."""
Strength = int | float | str | None


class Data(Part):
    """Prompts and images."""

    prompts: str | dict[Literal["memorized", "ordinary", "heldout"], str] | None = Field(
        None, description="a list by name, or files (default: the lists that belong to the model)"
    )
    types: str | None = Field(
        None, description="table of the memorized prompts' types (default: the published one of the model's own list)"
    )
    near_duplicates: Literal["keep", "drop"] = Field(
        "keep", description="memorized captions that nearly repeat another"
    )
    images: str | None = Field(
        None, description="folder of training images, see docs/images.md (default: gt_images in `folder`)"
    )
    real: str | None = Field(None, description="folder of images never trained on, such as COCO's: for KID and FID")


class MetricNames(Part):
    """Metrics."""

    copy_: str | None = Field(None, alias="copy", description="an SSCD by name or path (default: the model's metric)")
    prompt: str | None = Field(None, description="a CLIP by name or folder (default: the model's metric)")
    more: Annotated[list[str], AfterValidator(_once)] = Field(
        ["exact_p", "sharpness"], description="names in memsub.metrics.IMAGE_METRICS: more columns"
    )


class Sampling(Part):
    """Sampling of scored images."""

    steps: Steps = Field(8, description="denoising steps")
    solver: Solver = Field("multistep", description="the model's own scheduler, or one that needs fewer steps")
    guidance_scale: float = Field(3.0, ge=1, description="also of capture")
    batch_size: int = Field(60, ge=1, description="prompts at a time, also of capture")


class Capture(Part):
    """Capture of activations."""

    steps: Steps = Field(50, description="denoising steps")
    seed: int = Field(0, ge=0, lt=2**63, description="of the initial noise that all prompts share")
    cfg_half: Literal["both", "cond"] = Field(
        "both", description="both halves of a guided call, or the conditional one"
    )


class Grid(Part):
    """The paper's grid: subsets of memorized and, as the control, of ordinary prompts."""

    memorized: int = Field(
        100, ge=6, description="memorized prompts to use, each kind in its proportion, and as many ordinary ones"
    )
    subsets: int = Field(10, ge=2, description="subsets of each size")
    sizes: Annotated[list[Annotated[int, Field(ge=1)]], AfterValidator(_ascending)] = Field(
        [10, 20, 30, 40, 50], min_length=1, description="prompts in a subset, ascending"
    )
    sparsity: float | None = Field(
        None, gt=0, le=1, description="of the masks that are shown and compared (default: the edit's)"
    )


class Captured(Part):
    """Which part of the grid is captured at all steps, and with other options."""

    first: Steps | None = Field(
        10, description="the grid is captured at so many steps, those that edits unite; null: at all"
    )
    subsets: int = Field(
        4,
        ge=2,
        description="of the smallest size: captured at all steps, from a second noise, and the conditional half",
    )


class Sweep(Part):
    """Settings of the edit that the sweep compares."""

    sparsity: Annotated[list[Share], AfterValidator(_once)] = Field([0.01, 0.1, 0.25, 0.4], min_length=1)
    steps: Annotated[list[Steps], AfterValidator(_once)] = Field([10], min_length=1, description="values of tau")


class Evaluation(Part):
    """Sample sizes of the evaluation of an edit."""

    captions: int = Field(16, ge=2, description="memorized, and as many unseen captions")
    models: int = Field(10, ge=1, description="pruned models, each located on another subset of the smallest size")
    controls: int = Field(1, ge=1, description="of them with controls: random weights, ordinary prompts")
    real_images: int = Field(32, ge=0, description="unseen captions for KID, four or more; 0: no KID")
    fid_images: int | None = Field(
        None, ge=0, description="unseen captions for FID (default: of a known world those of KID, else none)"
    )
    seed_captions: int = Field(10, ge=2, description="captions whose images are compared between seeds")


class BaselineSetting(Part):
    """Comparison with mitigations at inference time."""

    captions: int = Field(16, ge=2, description="memorized captions")
    never_seen: int = Field(16, ge=4, description="unseen captions")
    strengths: dict[str, Annotated[list[Strength], AfterValidator(_once)]] = Field(
        {"embedding optimization": [0.7, 0.4, 0.3, 0.2], "random tokens": [1, 2, 4], "value neurons": []},
        description="baseline to its sweep; [] leaves it out (default: its own)",
    )
    timed: int = Field(4, ge=1, description="captions that are timed")
    turns: int = Field(3, ge=1, description="times that the methods are timed, in turns")


class Detection(Part):
    """Detection of memorized captions before sampling."""

    captions: int = Field(33, ge=2, description="memorized captions, and as many unseen ones like them")
    among: Literal["reported", "all"] = Field(
        "reported",
        description="of which: those that report the edit and have a training image, or all of the list that did not "
        "locate it (no image is needed, and 100 can tell a rate of false positives of 1 %)",
    )
    calls: int = Field(3, ge=1, description="network calls that score a caption and seed")
    seeds: int = Field(1, ge=1, description="seeds of a caption")


class Extraction(Part):
    """Extraction attack of Carlini et al."""

    captions: int = Field(10, ge=2, description="memorized captions, and as many ordinary ones")
    images: int = Field(4, ge=2, description="images a caption")
    clique: int = Field(3, ge=2, description="near-duplicates that make a claim")
    distance: float = Field(0.1, gt=0, description="tiled distance of near-duplicates")


class EmbeddingAttack(Part):
    """Embedding attack of Kowalczuk et al."""

    images: int = Field(8, ge=1, description="training images, and as many that were never trained on")
    iterations: int = Field(60, ge=1, description="steps of the optimization")
    noises: int = Field(1, ge=1, description="noises an image and step")
    models: Literal["edited", "all"] = Field(
        "edited", description="under attack: the pruned model (and the twin), or the unedited one, too"
    )


class Deletion(Part):
    """Notebook 06: success of an attacker with the weights, against the work of the attack."""

    edits: dict[Name, str] = Field(
        {}, description="files of edits by name (default: those that ship with the model, or else that of notebook 04)"
    )
    targets: int = Field(8, ge=2, description="memorized images under attack, and as many never trained on")
    iterations: list[int] = Field([0, 10, 25], min_length=2, description="of the attack, after which it is checked")
    noises: int = Field(2, ge=1, description="noises an image and iteration")


class Membership(Part):
    """The exact membership test of notebook 00: 32 rows of the network a pair, step, model and caption."""

    pairs: int = Field(16, ge=2, description="verbatim pairs")
    steps: int = Field(2, ge=1, le=1000, description="steps of the noise schedule at which losses are averaged")


class Testbed(Part):
    """Sample sizes of the notebook of a world with known ground truth."""

    seeds: int = Field(1, ge=1, description="images of a memorized caption")
    captions: int | None = Field(None, ge=10, description="captions of a kind (default: all)")
    never_seen: int = Field(100, ge=2, description="images of captions that are not in the training set")
    membership: Membership = Membership()


class Parameters(Part):
    """The parameters of a run; the defaults suit the embedded model."""

    model: str = Field("tiny", description="a name, a folder, or a hub id")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="of the networks (default: float32 on a CPU, the model's own on a GPU)"
    )
    folder: str = Field("../runs/tiny", description="of the run: artifacts, notebooks, report")
    seed: int = Field(
        0, ge=0, lt=2**63, description="of the subsets and of the split into locating, choosing and reporting prompts"
    )
    data: Data = Data()
    metrics: MetricNames = MetricNames()
    sampling: Sampling = Sampling()
    capture: Capture = Capture()
    grid: Grid = Grid()
    captured: Captured = Captured()
    edit: EditSpec = EditSpec()
    sweep: Sweep = Sweep()
    evaluation: Evaluation = Evaluation()
    baselines: BaselineSetting = BaselineSetting()
    detection: Detection = Detection()
    extraction: Extraction = Extraction()
    embedding_attack: EmbeddingAttack = EmbeddingAttack()
    deletion: Deletion = Deletion()
    testbed: Testbed = Testbed()

    @model_validator(mode="after")
    def _fits_together(self) -> Parameters:
        longest = {"edit.steps": self.edit.steps, "sweep.steps": max(self.sweep.steps)}
        for name, steps in longest.items():
            if steps > self.capture.steps:
                raise ValueError(f"{name} unites {steps} steps, but capture.steps makes {self.capture.steps}")
            if steps > self.grid_steps:
                raise ValueError(f"{name} unites {steps} steps, but captured.first ends after {self.captured.first}")
        if max(self.grid.sizes) > self.grid.memorized:
            raise ValueError(f"grid.sizes asks for {max(self.grid.sizes)} of {self.grid.memorized} prompts")
        if sorted(set(self.deletion.iterations)) != self.deletion.iterations or self.deletion.iterations[0] < 0:
            raise ValueError(
                f"deletion.iterations: ascending numbers from 0 on expected, got {self.deletion.iterations}"
            )
        self._check_names()
        located, grid = self.edit.located_on, self.grid
        if located.part == "subset" and not (located.size in grid.sizes and 0 <= located.index < grid.subsets):
            raise ValueError(f"edit.located_on: the grid has no subset {located}")
        for name, count in {"real_images": self.evaluation.real_images, "fid_images": self.fid_images}.items():
            if 0 < count < 4:
                raise ValueError(f"evaluation.{name}: a distance needs four images or more, got {count}; 0 for none")
        if self.extraction.clique > self.extraction.images:
            raise ValueError(f"extraction.clique is {self.extraction.clique} of {self.extraction.images} images")
        return self

    def _check_names(self) -> None:
        """Raises ValueError for names that no registry has."""
        lists: dict[str, tuple[Iterable[str], Registry]] = {
            "metrics.more": (self.metrics.more, IMAGE_METRICS),
            "baselines.strengths": (self.baselines.strengths, BASELINES),
        }
        for key, (names, registry) in lists.items():
            if unknown := [name for name in names if name not in registry]:
                raise ValueError(f"{key}: unknown {unknown[0]!r}; expected some of {', '.join(registry)}")

    @property
    def spec(self) -> EditSpec:
        """The spec of the edit. Its sparsity is the parameter, or the value recommended for the model."""
        return self.edit.changed(sparsity=self.edit.sparsity or find_model(self.model).sparsity)

    @property
    def grid_steps(self) -> int:
        """Steps at which the whole grid is captured."""
        return min(self.capture.steps, self.captured.first or self.capture.steps)

    @property
    def mask_sparsity(self) -> float:
        """Sparsity of shown masks: the parameter, or that of the edit."""
        return self.grid.sparsity or self.spec.sparsity or 0.0

    @property
    def fid_images(self) -> int:
        """Number of images for FID: the parameter, or that of KID if this requires no more sampling; else 0."""
        asked = self.evaluation.fid_images
        if asked is None:
            return self.evaluation.real_images if find_model(self.model).world else 0
        return asked

    @property
    def distance_images(self) -> int:
        """Number of unseen captions that KID and FID share."""
        return max(self.evaluation.real_images, self.fid_images)

    def missing_images(self) -> str:
        """What is missing for KID and FID, as text; "" if nothing is missing.

        A parquet file of prompts may contain the images.
        """
        needed, lists = self.distance_images, self.data.prompts
        files = lists.values() if isinstance(lists, dict) else [lists or ""]
        if not needed or self.data.real or find_model(self.model).world or any(f.endswith(".parquet") for f in files):
            return ""
        return (
            f"data.real names no folder, but KID and FID need {needed:,} images that the model was not trained on, and "
            f"{needed:,} more for their floor, such as COCO's; evaluation.real_images: 0 and evaluation.fid_images: 0 "
            "leave them out"
        )

    @classmethod
    def checked(cls, given: Mapping[str, Any], source: str = "parameters") -> Parameters:
        """Validated parameters.

        Raises:
            ValueError: an unknown key (the message lists the valid keys), or a value out of bounds; names key and
                source.
        """
        try:
            _check_keys(cls, given, source)
            return cls(**{name: _as_meant(f"{source}: {name}", value) for name, value in given.items()})
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(str(part)[:40] for part in e['loc'])}: {e['msg']}, got {reprlib.repr(e['input'])}"
                if e["loc"]
                else e["msg"]
                for e in error.errors()[:3]
            )
            raise ValueError(f"{source}: {printable(problems)}.") from None
        except RecursionError:
            raise ValueError(f"{source} nests deeper than parameters do.") from None

    @classmethod
    def load(cls, path: str | Path) -> Parameters:
        """Parameters from a YAML file.

        Raises:
            FileNotFoundError, ValueError: there is no such file; it is no YAML mapping, or `checked` raises an error.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no parameter file at {path}.")
        if (size := Path(path).stat().st_size) > LARGEST_FILE:
            raise ValueError(f"{path} has {size:,} bytes; a parameter file has at most {LARGEST_FILE:,}.")
        try:
            given = yaml.load(Path(path).read_text(encoding="utf-8-sig"), _PlainYaml)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f" (line {mark.line + 1})" if mark else ""
            raise ValueError(f"{path} is no YAML of parameters: {printable(_problem(error))[:200]}{line}.") from None
        if not isinstance(given, dict):
            raise ValueError(f"{path} must hold a mapping of parameters; it holds {type(given).__name__}.")
        return cls.checked(given, str(path))

    @classmethod
    def from_notebook(cls, variables: MutableMapping[str, Any]) -> Parameters:
        """The parameters of a notebook, as assigned by its parameters cell and by the cell that papermill injected.

        Args:
            variables: `globals()`. At the first call in a kernel, every public variable with plain data counts, so that
                misspelt names are found. Later calls use the names of parameters only, so the cell can be run again.

        Raises:
            ValueError: as `checked`, or the name of a parameter was assigned something else.
        """
        names = {field.alias or name for name, field in cls.model_fields.items()}
        ours = ("_", "PAPERMILL")
        public = {k: v for k, v in variables.items() if not k.startswith(ours) and k not in ("In", "Out")}
        if variables.get(_READ):
            given = {k: v for k, v in public.items() if k in names}
            if other := [k for k, v in given.items() if not isinstance(v, _PLAIN)]:
                raise ValueError(
                    f"{other[0]} is a parameter and holds a {type(given[other[0]]).__name__} by now: run the parameters"
                    " cell again, and give that variable another name."
                )
        else:
            # Names in capitals are constants that a cell imported.
            given = {k: v for k, v in public.items() if isinstance(v, _PLAIN) and not k.isupper()}
        validated = cls.checked(given, "the parameters cell")
        variables[_READ] = True
        return validated

    def dump(self) -> dict[str, Any]:
        """The parameters as plain values, with the keys of YAML files."""
        return self.model_dump(by_alias=True, mode="json")


def _check_keys(part: type[BaseModel], given: Mapping[str, Any], source: str, path: str = "") -> None:
    fields = {field.alias or name: field for name, field in part.model_fields.items()}
    for key, value in given.items():
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f" Did you mean {path + close[0]!r}?" if close else ""
            name = reprlib.repr(path + str(key))
            raise ValueError(f"unknown key {name} in {source}.{hint} Valid keys: {', '.join(fields)}.")
        kind = fields[key].annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and isinstance(value, Mapping):
            _check_keys(kind, value, source, f"{path}{key}.")


def _as_meant(name: str, value: Any) -> Any:
    """A value with `~` expanded; raises ValueError for booleans, which Python would accept as numbers."""
    if isinstance(value, bool):
        raise ValueError(f"{name} is {value}, where a number, text or a list is expected.")
    if isinstance(value, str) and value.startswith("~"):
        return str(Path(value).expanduser())
    if isinstance(value, Mapping):
        return {key: _as_meant(f"{name}.{str(key)[:40]}", each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_meant(name, each) for each in value]
    return value


class _PlainYaml(yaml.SafeLoader):
    """A YAML loader without anchors, repeated keys and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise yaml.MarkedYAMLError(problem="anchors and aliases (&, *) are not read", problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.MarkedYAMLError(problem="it nests deeper than parameters do", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if repeated := [key for i, key in enumerate(keys) if key in keys[:i]]:
                problem = f"the key {reprlib.repr(repeated[0])} stands there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node


def _problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or type(error).__name__ + f": {error}".split("\n")[0])
