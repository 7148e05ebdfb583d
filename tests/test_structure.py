"""The house: no module imports what stands above it, nothing outgrows a reader, one adapter knows the pipeline."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memsub.store import imported

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "memsub"
ORDER = """
files distributed store downloads recovery precision muon fitting testbed meta published prompts denoiser models
generation activations hub pruning neurons overlap controls exact metrics evaluation detection attacks audit baselines
removal parameters runs experiments plots findings report batch estimate lab __main__
""".split()  # noqa: SIM905
"""From the ground up; `pruning` holds the edit that `neurons` makes."""
FILES = sorted(SOURCE.rglob("*.py"))


TRAINING = SOURCE / "testbed" / "train.py"
"""A program, and nobody's import: it measures copies with all of the library."""


def part(path: Path) -> str:
    """The module or package of the list that a file belongs to."""
    if path == TRAINING:
        return "__main__"
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """The parts of the library that a file imports, also inside functions."""
    module = ".".join(["memsub", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
    found = imported(ast.parse(path.read_text()), module, path.name == "__init__.py")
    return {name.split(".")[1] for name in found if name.startswith("memsub.")} & set(ORDER)


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != SOURCE or p.name != "__init__.py"], ids=str)
def test_no_module_imports_what_stands_above_it(path):
    own = part(path)
    above = {name for name in imports(path) if ORDER.index(name) > ORDER.index(own)}
    assert not above


def test_every_module_has_its_place():
    assert {part(p) for p in FILES} - {"__init__"} == set(ORDER)


def test_the_testbed_stands_on_the_ground():
    used = set.union(*(imports(p) for p in FILES if part(p) == "testbed"))
    assert used <= {"files", "distributed", "downloads", "fitting", "testbed"}


def test_nothing_of_the_library_uses_the_tools():
    for path in FILES:
        assert not re.search(r"^\s*(from|import) tools", path.read_text(), re.MULTILINE), path


PARTS = re.compile(r"\.unet\b|encode_prompt|encoder_hidden_states|\.vae\b|\.text_encoder\b")


@pytest.mark.parametrize("path", [p for p in FILES if part(p) != "denoiser" and "testbed" not in p.parts], ids=str)
def test_only_the_adapter_names_the_parts_of_a_pipeline(path):
    assert not PARTS.findall(path.read_text())


def test_the_core_is_one_sitting():
    core = ("activations", "neurons", "overlap", "pruning")
    assert sum(len((SOURCE / f"{name}.py").read_text().splitlines()) for name in core) <= 650


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tools").glob("*.py"))], ids=str)
def test_no_function_is_longer_than_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, node.name


def test_importing_the_library_does_not_load_diffusers_or_transformers():
    code = "import sys, memsub; print([m for m in ('diffusers', 'transformers', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
