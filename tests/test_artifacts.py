"""A stored result must not outlive the code that made it: one artifact of each kind is made again and compared. On the
way there, every experiment samples what its estimate says.

If this fails, code makes something else than it did. Raise the `version` of the kind that is named, so that nobody is
served what the old code made, and write the file anew: `python tests/test_artifacts.py`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from conftest import ONE_METHOD
from memsub_extra.notebooks import cost, listing, notebook00, notebook03
from memsub_extra.run import scores
from memsub_extra.store import Kind
from memsub_extra.unlearning import fine_tuning, notebook06

FILE = Path(__file__).with_name("artifacts.json")
FEW = {
    "grid": {"memorized": 12, "subsets": 2, "sizes": [2], "sparsity": 0.05},
    "sweep": {"sparsity": [0.3], "steps": [2]},
    "baselines": ONE_METHOD,
    "evaluation": {"captions": 2, "models": 1, "controls": 1, "real_images": 6, "seed_captions": 2},
    "deletion": {"targets": 2, "iterations": [0, 1], "noises": 1, "edits": {}},
}
TIMED = {"seconds"}
"""Kinds whose numbers are times."""
PICTURES = {"extraction"}
"""Kinds that are folders of images."""


def kinds() -> dict[str, int]:
    """Version by name of every kind that some module of the library defines."""
    # Canaries are a world of their own, which other tests of this process may have imported.
    ours = [name for name in sys.modules if name.partition(".")[0] in ("memsub", "memsub_extra")]
    modules = [sys.modules[name] for name in ours if ".canaries" not in name]
    found = [thing for module in modules for thing in vars(module).values() if isinstance(thing, Kind)]
    return {kind.name: kind.version for kind in found}


def summary(folder: Path) -> dict[str, float]:
    """How many files there are, and how large their numbers are."""
    sizes, files = [], sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".parquet"))
    for path in files:
        if path.suffix == ".parquet":
            numbers = pd.read_parquet(path).select_dtypes(["number", "bool"]).to_numpy(float)
            numbers = np.abs(numbers[np.isfinite(numbers)])  # an attack that finds nothing takes infinitely long
            sizes.append(float(numbers.mean()) if numbers.size else 0.0)
        else:
            tensors = [np.abs(t.astype(float)).mean() for t in load_file(path).values() if t.size]
            sizes.append(float(np.mean(tensors)) if tensors else 0.0)
    return {"files": len(files), "size": float(np.mean(sizes)) if sizes else 0.0}


EXACT = (
    *("sweep", "similarity between seeds", "KID and FID", "timing", "extraction", "baselines"),
    *("capture of the grid", "capture in control models", "a second noise, and the conditional half"),
)
"""Experiments of 01 to 05 that sample as much as is estimated; others end early, or ask for more than images."""


def check_estimate(run, rows: list[int]) -> None:
    """One experiment after the other: what two of them share is sampled, and counted, once."""
    estimate = cost.work(run.parameters).set_index("part")["rows"]
    for notebook in listing.of_model(run.info):
        if notebook.name[:2] == "00":
            continue  # it reads the whole list of the world; of its own kind `make` makes a little
        for title, experiment in notebook.experiments.items():
            rows.clear()
            experiment(run)
            if notebook.name[:2] in ("06", "07"):
                continue  # bounds; a lab
            expected = estimate[f"{notebook.name[:2]} {title}"]
            if title in EXACT:
                assert sum(rows) == expected > 0, title
            else:
                assert sum(rows) <= expected or not sum(rows), title


def make(run, rows: list[int]) -> dict[str, dict[str, float]]:
    """Every kind's summary, from all that the notebooks compute on the micro pipeline."""
    check_estimate(run, rows)
    notebook00.membership(run, pairs=2, steps=1)
    notebook03.overlap(run.grid, "memorized", 2)
    captions, images = run.data.prompts.memorized[:2], run.data.prompts.images("verbatim", 0, 2)
    run.scores.replicated(images, captions, images)
    run.scores.scored(run.unedited, captions, images)
    made = {path.name: summary(path) for path in run.store.folder.iterdir()}
    return {name: about | {"version": kinds()[name]} for name, about in sorted(made.items())}


@pytest.fixture
def made(new_run, rows, monkeypatch):
    monkeypatch.setattr(notebook06.shipped, "belongs_to", lambda model: False)  # they are not of the micro pipeline
    return make(new_run(**FEW), rows)


def test_the_estimate_is_what_is_sampled_and_every_kind_is_as_it_was_or_has_another_version(made):
    recorded = json.loads(FILE.read_text())
    assert set(made) == set(recorded)
    # Checkpoints of trainings; descriptors of the corpus, which a cell of notebook 00 asks for.
    others = {fine_tuning.UNFINISHED.name, scores.CORPUS.name}
    assert set(kinds()) - set(made) == others
    for name, about in made.items():
        before = recorded[name]
        if about["version"] != before["version"]:
            pytest.fail(f"Kind({name!r}) has another version: call `python tests/test_artifacts.py`.")
        same = about["files"] == before["files"]
        same &= name in TIMED | PICTURES or about["size"] == pytest.approx(before["size"], rel=0.03, abs=1e-6)
        assert same, f"{name}: {before} before, {about} now. Raise the version of Kind({name!r})."


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", "-p", "no:cacheprovider", "--override-ini", "python_functions=write_*"]))


def write_what_is_made_now(made):
    FILE.write_text(json.dumps(made, indent=1) + "\n")
