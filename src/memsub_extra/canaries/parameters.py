"""Parameters of a run of all notebooks on canaries; sizes follow from the number of canaries.

save_parameters(folder, manifest, info)     # folder/run.yaml, for `memsub run folder/run.yaml`
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import yaml

from memsub.io.files import save_text
from memsub.models import ModelInfo
from memsub_extra.run.data import Data
from memsub_extra.run.parameters import Parameters

from .planting import Manifest

FILE = "run.yaml"
LARGE: dict[str, dict[str, Any]] = {
    "metrics": {"copy": "sscd_disc_large", "prompt": "ViT-L/14", "more": ["exact_p", "sharpness"]},
    "sampling": {"steps": 50, "solver": "own", "guidance_scale": 7.5, "batch_size": 8},
    "sweep": {"sparsity": [0.005, 0.01, 0.02, 0.05]},
    "baselines": {
        "strengths": {"embedding optimization": [5.0, 3.0, 1.0], "random tokens": [1, 2, 4], "value neurons": []}
    },
    "extraction": {"images": 30, "clique": 10},
    "embedding_attack": {"iterations": 50, "noises": 8},
    "deletion": {"iterations": [0, 10, 25, 50, 100], "noises": 8},
}
"""Parameters for models with the published metrics. Other models use the defaults, which suit the embedded model."""
SIZES = (10, 20, 30, 40, 50)
"""Sizes of the paper's subsets."""
LEAST = 12
"""Smallest number of canaries of a run: it gives thirds of four, and subsets of two."""
SHOWN = 4
"""Number of subsets whose edits notebook 04 compares, on canaries that located none of them."""


def parameters_of(folder: Path, manifest: Manifest, info: ModelInfo) -> dict[str, Any]:
    """Parameters for the canaries of a model, as far as they differ from the defaults.

    Args:
        folder: folder of the fine-tuned model.
        info: registry row of the model that was fine-tuned.

    Raises:
        ValueError: there are too few canaries, unseen canaries or other pairs for a run.
    """
    n, unseen = len(manifest.canaries), len(manifest.unseen)
    apart = unseen + len(manifest.heldout)
    if n < LEAST or unseen < 2 or apart < 10 or len(manifest.ordinary) < n:
        raise ValueError(
            f"{n} canaries, {unseen} unseen ones, {len(manifest.ordinary)} ordinary and {len(manifest.heldout)} "
            f"held-out pairs are too few for the notebooks, which need {LEAST} canaries, as many ordinary pairs, 2 "
            "unseen canaries, and 10 of these and of held-out pairs together."
        )
    size = min(SIZES[0], n // 6)
    sizes = [s for s in SIZES if 3 * s <= n] if size == SIZES[0] else [size, 2 * size]
    subsets, reported = min(10, n // size), n // 3
    half = apart // 2  # one half reports; the other chooses a setting, or is what distances are measured to
    grid = {"memorized": n, "subsets": subsets, "sizes": sizes}
    fitted: dict[str, Any] = {
        "grid": grid | {"sparsity": min(0.05, info.sparsity)},
        "edit": {"sparsity": info.sparsity, "steps": info.steps},
        "sweep": {"steps": [info.steps]},
        "evaluation": {
            "captions": min(28, reported, half),
            "models": min(8, subsets),
            "controls": 1,
            "real_images": min(120, half),
            "seed_captions": min(10, reported),
        },
        "baselines": {"captions": min(20, reported), "never_seen": min(28, half), "timed": min(4, reported)},
        "detection": {"captions": min(34, reported, apart)},
        "extraction": {"captions": min(12, reported)},
        "embedding_attack": {"images": min(10, reported, unseen)},
        "deletion": {"targets": min(12, unseen)},
    }
    chosen = LARGE if info.scorers == "published" else {}
    parts = {name: chosen.get(name, {}) | fitted.get(name, {}) for name in [*chosen, *fitted]}
    run = {"model": str(folder.resolve()), "folder": str((folder / "run").resolve())}
    return run | {"seed": seed_of(grid)} | parts


def seed_of(grid: dict[str, Any]) -> int:
    """The first seed of a grid whose subsets leave at least two canaries for choosing and two for reporting.

    The seed determines which canaries locate, choose and report, and the members of the subsets. With few canaries, a
    subset may contain all that report. The choice does not depend on the model.
    """

    def leaves_enough(seed: int) -> bool:
        data = Data(Parameters.checked({"grid": grid, "seed": seed}), lambda: 0)
        members = [set(places) for places in data.members(grid["sizes"][0])]
        groups = [*members, set[int]().union(*members[:SHOWN])]
        left = [len(set(data.split["report"]) - group) for group in groups]
        return min(*left, len(set(data.split["choose"]) - members[0])) >= 2

    return next(seed for seed in count() if leaves_enough(seed))


def save_parameters(folder: Path, manifest: Manifest, info: ModelInfo) -> Path:
    """Writes run.yaml into the folder of a model, and returns its path. Raises as `parameters_of`."""
    values = parameters_of(folder, manifest, info)
    Parameters.checked(values)
    text = "# All notebooks on these canaries: memsub run <this file>. Written by memsub_extra.canaries.\n"
    save_text(text + yaml.safe_dump(values, sort_keys=False), folder / FILE)
    return folder / FILE
