"""Parameters of a run on canaries: all notebooks, sized by what was planted.

save_parameters(folder, manifest, info)     # folder/run.yaml, for `memsub run folder/run.yaml`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from memsub.io.files import save_text
from memsub.models import ModelInfo
from memsub_extra.run.parameters import Parameters

from .planting import Manifest

FILE = "run.yaml"
LARGE: dict[str, Any] = {
    "metrics": {"copy": "sscd_disc_large", "prompt": "ViT-L/14", "more": ["exact_p", "sharpness"]},
    "sampling": {"steps": 50, "solver": "own", "guidance_scale": 7.5, "batch_size": 8},
    "sweep": {"sparsity": [0.005, 0.01, 0.02, 0.05], "steps": [10]},
    "extraction": {"images": 30, "clique": 10},
}
"""Of models whose metrics are the published ones; others have the embedded model's, which are the defaults."""


def parameters_of(folder: Path, manifest: Manifest, info: ModelInfo) -> dict[str, Any]:
    """Parameters that suit the canaries of a model, where they differ from the defaults.

    Args:
        folder: of the model.
        info: of the model that was fine-tuned.

    Raises:
        ValueError: there are too few canaries, unseen ones or held-out pairs for a run.
    """
    n, unseen = len(manifest.canaries), len(manifest.unseen)
    apart = unseen + len(manifest.heldout)
    if n < 6 or unseen < 2 or apart < 10:
        raise ValueError(
            f"{n} canaries, {unseen} unseen ones and {len(manifest.heldout)} held-out pairs are too few for the "
            "notebooks, which need 6, 2, and 10 of the last two together."
        )
    sizes = [size for size in (10, 20, 30, 40, 50) if 3 * size <= n] or [max(2, n // 3)]
    subsets, reported = max(2, min(10, n // sizes[0])), n // 3
    never_seen = min(28, apart // 2)
    chosen: dict[str, Any] = LARGE if info.scorers == "published" else {"extraction": {"images": 4, "clique": 3}}
    return chosen | {
        "model": str(folder.resolve()),
        "folder": str((folder / "run").resolve()),
        "grid": {"memorized": n, "subsets": subsets, "sizes": sizes, "sparsity": min(0.05, info.sparsity)},
        "edit": {"sparsity": info.sparsity, "steps": info.steps},
        "evaluation": {
            "captions": min(28, reported, apart),
            "models": min(8, subsets),
            "controls": 1,
            "real_images": min(120, apart),
            "seed_captions": min(10, reported),
        },
        "baselines": {"captions": min(20, reported), "never_seen": never_seen, "timed": min(4, reported)},
        "detection": {"captions": min(34, apart)},
        "extraction": chosen["extraction"] | {"captions": min(12, reported)},
        "embedding_attack": {"images": min(4, unseen, reported)},
        "deletion": {"targets": min(12, unseen)},
        "testbed": {"corpus": "listed"},
    }


def save_parameters(folder: Path, manifest: Manifest, info: ModelInfo) -> Path:
    """Writes run.yaml into the folder of a model, and returns its path. Raises as `parameters_of`."""
    values = parameters_of(folder, manifest, info)
    Parameters.checked(values)
    text = "# All notebooks on these canaries: memsub run <this file>. Written by memsub_extra.canaries.\n"
    save_text(text + yaml.safe_dump(values, sort_keys=False), folder / FILE)
    return folder / FILE
