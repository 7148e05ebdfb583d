"""The rehearsal takes every parameter file of published models, as the file is, with less of each."""

import pytest
import yaml
from tools import rehearsal

from memsub_extra.notebooks.batch import project
from memsub_extra.run.parameters import Parameters

PUBLISHED = sorted(p.stem for p in (project() / "papermill_params").glob("sd*.yaml"))


def test_every_file_of_a_published_model_is_rehearsed():
    assert sorted(rehearsal.FILES) == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_is_rehearsed_with_less_of_each(name, tmp_path):
    whole = Parameters.load(project() / "papermill_params" / f"{name}.yaml")
    given = rehearsal.smaller(name, tmp_path) | {"model": whole.model}  # whose folder is not made here
    small = Parameters.checked(yaml.safe_load(yaml.safe_dump(given)))
    assert small.sampling.solver == whole.sampling.solver
    assert small.metrics.more == whole.metrics.more
    assert bool(small.distance_images) == bool(whole.distance_images) == bool(small.data.real)
    assert small.missing_images() == ""
    assert small.grid.memorized < whole.grid.memorized and small.extraction.images < whole.extraction.images
