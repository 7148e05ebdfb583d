"""The steps of CONTRIBUTING are real: its example package, installed as another one would be, is found and works."""

import re
import sys
import tomllib
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from tools import modules

import memsub
from memsub.measure.metrics import IMAGE_METRICS
from memsub.models import MODELS, find_model, fingerprint, generate
from memsub_extra.mitigations import BASELINES, Context
from memsub_extra.mitigations.detection import SCORES, first_step_scores
from memsub_extra.notebooks.listing import NOTEBOOKS
from memsub_extra.unlearning.pairs import Pairs
from memsub_extra.unlearning.removals import REMOVALS

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"`(my_memsub/\w+\.py)`.*?```python\n(.*?)```", TEXT, re.DOTALL))
(PROJECT,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
GROUPS: dict[str, dict[str, str]] = tomllib.loads(PROJECT)["project"]["entry-points"]
REGISTRIES = {registry.group: registry for registry in (BASELINES, SCORES, IMAGE_METRICS, REMOVALS, MODELS, NOTEBOOKS)}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory):
    """The examples as a package on sys.path, with the entry points that installing it would write."""
    site = tmp_path_factory.mktemp("site")
    package, about = site / "my_memsub", site / "my_memsub-1.0.dist-info"
    package.mkdir()
    about.mkdir()
    (package / "__init__.py").touch()
    for path, code in FILES.items():
        (site / path).write_text(code)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my_memsub\nVersion: 1.0\n")
    entries = [
        "\n".join([f"[{group}]", *(f"{name} = {place}" for name, place in names.items())])
        for group, names in GROUPS.items()
    ]
    (about / "entry_points.txt").write_text("\n".join(entries))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield
        for name in [name for name in sys.modules if name.partition(".")[0] == "my_memsub"]:
            del sys.modules[name]
        for group, names in GROUPS.items():
            for name in names:
                REGISTRIES[group]._loaded.pop(name, None)  # as if it had never been looked up: other tests list them


def test_there_is_an_example_of_each():
    assert set(GROUPS) == set(REGISTRIES)
    assert {place.partition(":")[0] for names in GROUPS.values() for place in names.values()} == {
        path.removesuffix(".py").replace("/", ".") for path in FILES
    }


def test_the_table_names_registries_and_groups_that_exist():
    rows = re.findall(r"^\| .* \| .* \| `([\w.]+)\.(\w+)` \| `([\w.]+)` \|$", TEXT, re.MULTILINE)
    assert len(rows) == 8
    for module, name, group in rows:
        __import__(module)
        assert getattr(sys.modules[module], name).group == group


def test_the_baseline(micro):
    baseline = BASELINES["lower guidance"]
    captions = ["a red heart on a plain green background", "a blue fish on a plain white background"]
    context = Context(micro, partial(generate, micro), captions, steps=2, batch_size=2, gradient_rows=2)
    images = [baseline.make(context, s)(captions, seeds=[0, 1]) for s in baseline.strengths[:2]]
    assert images[0].shape == (2, 32, 32, 3)
    assert (images[0] != images[1]).any()


def test_the_score(micro):
    values = first_step_scores(micro, ["a red heart on a plain green background"], seeds=1, scores=["text share"])
    assert values["text share"].shape == (1,)
    assert 0 < values["text share"][0] < 10


def test_the_metric():
    np.testing.assert_allclose(IMAGE_METRICS["brightness"](np.full((2, 4, 4, 3), 9, np.uint8), [], None), [9, 9])


def test_the_removal(micro, tmp_path):
    assert [name for name in REMOVALS if name.startswith("gradient ascent")] == sorted(GROUPS["memsub.removals"])
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    pairs = Pairs([f"a red heart, poster {i}" for i in range(4)], images)
    ordinary = Pairs([f"a blue fish, poster {i}" for i in range(4)], images)
    edit = REMOVALS["gradient ascent"].edit(micro, pairs, ordinary, folder=tmp_path, epochs=1, lr=1e-2, progress=False)
    before = fingerprint(micro)
    with memsub.pruned(micro, edit):
        assert fingerprint(micro) != before
    assert fingerprint(micro) == before


def test_the_model():
    row = find_model("my-model")
    assert row is MODELS["my-model"]
    assert row.sparsity == 0.02
    assert find_model("path/to/my-model") is row


def test_the_notebook(run):
    notebook = NOTEBOOKS["08_density"]
    assert notebook.suits(MODELS["sd14"])
    assert set(notebook.needs) <= set(NOTEBOOKS)
    table = notebook.experiments["density"](run)
    assert table["size"].tolist() == run.parameters.grid.sizes
    assert (table["density"] > 0).all()


def test_the_table_of_modules_says_what_the_docstrings_say():
    assert modules.fill(TEXT) == TEXT, "call `python -m tools.modules`"


def test_a_module_without_a_docstring_is_named(tmp_path):
    (tmp_path / "memsub").mkdir()
    (tmp_path / "memsub" / "quiet.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"quiet\.py has no docstring"):
        modules.table(tmp_path)


def test_the_first_sentence_is_taken_and_the_method_comes_first(tmp_path):
    (tmp_path / "memsub" / "models").mkdir(parents=True)
    for name, docstring in {
        "world.py": "A world.",
        "pruning.py": "The edit: weights | values.\n\n    pruned(pipe, edit)\n",
        "neurons.py": "Wanda (Sun et al. 2023). More of it.",
        "models/__init__.py": "Models\nby name:\n\n    MODELS\n",
    }.items():
        (tmp_path / "memsub" / name).write_text(f'"""{docstring}"""\n')
    (tmp_path / "memsub" / "__init__.py").touch()
    assert modules.table(tmp_path).splitlines()[2:] == [
        "| `memsub.neurons` | Wanda (Sun et al. 2023) |",
        "| `memsub.pruning` | The edit: weights \\| values |",
        "| `memsub.models` | Models by name |",
        "| `memsub.world` | A world |",
    ]


@pytest.mark.parametrize(
    "name", sorted(p.stem for p in Path(modules.__file__).parent.glob("*.py") if "argparse" in p.read_text())
)
def test_a_tool_says_how_it_is_used(name, monkeypatch, capsys):
    """... before it does any work: a percent sign in a help text, or options read after the work, would fail here."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        import_module(f"tools.{name}").main()
    assert f"usage: python -m tools.{name}" in capsys.readouterr().out
