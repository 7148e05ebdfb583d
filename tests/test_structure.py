"""The house: imports go down, nothing outgrows a reader, one adapter knows a pipeline's parts."""

import ast
import inspect
import pkgutil
import re
import subprocess
import sys
from functools import cached_property
from importlib import import_module
from pathlib import Path

import pytest

import memsub
import memsub_extra

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
FLOORS = [
    {"io", "registry"},
    {"models"},
    {"activations", "neurons", "fast_masks", "pruning", "overlap", "controls", "prompts"},
    {"measure"},
    {"world", "testbed"},
    {"__main__"},
]
"""From the ground up. The rooms of one floor that may use another of it stand in `BESIDE`."""
BESIDE = {
    "io": "registry",
    "neurons": "activations fast_masks pruning",
    "fast_masks": "neurons",
    "overlap": "neurons",
    "controls": "neurons pruning",
    "testbed": "world",
}
METHOD = ("activations", "neurons", "fast_masks", "pruning", "overlap", "controls")
LIBRARY = sorted((SOURCE / "memsub").rglob("*.py"))
EXTRA = sorted((SOURCE / "memsub_extra").rglob("*.py"))
TOP = {SOURCE / "memsub" / "__init__.py"}  # imports by name, when a name is used


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Absolute names that a file imports, also inside functions; not those for type checkers alone."""
    module, tree = module_of(path), ast.parse(path.read_text())
    base = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):  # `if TYPE_CHECKING:` is no import
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = base[: len(base) - node.level + 1] if node.level else []
            name = ".".join([*above, *([node.module] if node.module else [])])
            names |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    return names


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("memsub.")} & set.union(*FLOORS)


def floor(room: str) -> int:
    return next(i for i, on_it in enumerate(FLOORS) if room in on_it)


@pytest.mark.parametrize("path", [p for p in LIBRARY if p not in TOP], ids=module_of)
def test_imports_go_down(path):
    own = module_of(path).split(".")[1]
    used = rooms(imported(path)) - {own, *BESIDE.get(own, "").split()}
    assert not {room for room in used if floor(room) >= floor(own)}


def test_every_room_has_its_floor():
    assert {module_of(p).split(".")[1] for p in LIBRARY if p not in TOP} == set.union(*FLOORS)


@pytest.mark.parametrize("name", METHOD)
def test_the_method_imports_models_and_io_alone(name):
    assert rooms(imported(SOURCE / "memsub" / f"{name}.py")) <= {"models", "io", *METHOD}


def test_nobody_imports_the_testbed_nor_what_goes_beyond_the_paper():
    for path in LIBRARY:
        names = imported(path)
        assert not any(name.startswith("memsub_extra") for name in names), path
        if "testbed" not in path.parts:
            assert "testbed" not in rooms(names), path


def test_nothing_of_the_library_uses_the_tools():
    for path in (*LIBRARY, *EXTRA):
        assert not any(name.partition(".")[0] == "tools" for name in imported(path)), path


PARTS = re.compile(r"\.unet\b|encode_prompt|encoder_hidden_states|\.vae\b|\.text_encoder\b")


@pytest.mark.parametrize("path", [p for p in LIBRARY if not {"models", "testbed"} & set(p.parts)], ids=module_of)
def test_only_the_adapter_names_the_parts_of_a_pipeline(path):
    assert not PARTS.findall(path.read_text())


# --- sizes ------------------------------------------------------------------------------------------------------


def lines(paths) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def test_the_library_is_thin():
    assert lines(LIBRARY) <= 7_000


@pytest.mark.parametrize("path", [*LIBRARY, *EXTRA, *sorted((ROOT / "tools").glob("*.py"))], ids=lambda p: p.stem)
def test_no_function_is_longer_than_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, node.name


def classes():
    for package in (memsub, memsub_extra):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not info.name.endswith("__main__"):
                module = import_module(info.name)
                for cls in vars(module).values():
                    if inspect.isclass(cls) and cls.__module__ == info.name:
                        yield cls


def test_no_class_has_too_much_to_say():
    for cls in classes():
        if getattr(cls, "_is_protocol", False):
            continue
        public = [
            name
            for name, member in vars(cls).items()
            if not name.startswith("_")
            and isinstance(member, (property, cached_property, classmethod, staticmethod, type(classes)))
        ]
        assert len(public) <= 15, f"{cls.__name__}: {', '.join(public)}"


# --- what an import executes --------------------------------------------------------------------------------------

COUNT = """
import sys
before = set(sys.modules)
{code}
own = [m for m in set(sys.modules) - before if m.split(".")[0] in ("memsub", "memsub_extra")]
print(sum(len(open(sys.modules[m].__file__, encoding="utf-8").read().splitlines()) for m in own))
print(" ".join(sorted(own)))
print(" ".join(m for m in ("torch", "diffusers", "transformers", "sklearn", "pandas") if m in sys.modules))
"""


def executed(code: str, *arguments: str) -> tuple[int, list[str], list[str]]:
    """Own lines of the modules that some code imports, the modules, and which heavy libraries are there."""
    command = [sys.executable, "-c", COUNT.format(code=code), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, own, heavy = done.stdout.splitlines()[-3:]
    return int(count), own.split(), heavy.split()


def test_importing_the_library_executes_next_to_nothing():
    count, _, heavy = executed("import memsub")
    assert count <= 100
    assert not heavy


def test_the_method_can_be_imported_without_the_rest():
    count, own, heavy = executed("from memsub import capture, locate, pruned, pairwise_iou, load_pipeline")
    assert count <= 2_700
    assert not {"diffusers", "transformers", "sklearn"} & set(heavy)
    assert not [m for m in own if "testbed" in m or "extra" in m]


def test_the_five_lines_on_a_saved_folder_execute_the_library_alone(tmp_path, micro):
    micro.save_pretrained(tmp_path / "model")
    (tmp_path / "captions.txt").write_text("a red heart\na blue fish\n")
    code = """
import memsub
pipe = memsub.load_pipeline(sys.argv[1] + "/model")
prompts = memsub.load_prompts(sys.argv[1] + "/captions.txt").memorized
stats, null = (memsub.capture(pipe, some, steps=2, progress=False) for some in (prompts, [""]))
edit = memsub.locate(pipe, stats, null).union(steps=2)
edit.apply(pipe)
"""
    count, own, _ = executed(code, str(tmp_path))
    assert count <= 3_500
    assert not [m for m in own if "testbed" in m or "extra" in m]
