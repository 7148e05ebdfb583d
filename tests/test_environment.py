"""environment.yml can be installed: pip reads what conda hands it, and that is the package with the locked versions."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DEPENDENCIES = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
pip = pytest.importorskip("pip")


def read_by_pip(lines: list[str], folder: Path) -> list:
    """The requirements in a file of these lines, as pip's own parser reads it.

    Raises:
        pip's RequirementsFileParseError: a line is neither a requirement nor an option that such a file may hold.
    """
    from pip._internal.network.session import PipSession
    from pip._internal.req import parse_requirements

    file = folder / "requirements.txt"
    file.write_text("\n".join(lines) + "\n")
    return list(parse_requirements(str(file), session=PipSession()))


@pytest.fixture
def checkout(tmp_path):
    """conda writes its file beside environment.yml; what that refers to lies there too."""
    (tmp_path / "requirements.lock").write_text((ROOT / "requirements.lock").read_text())
    return tmp_path


def of_pip() -> list[str]:
    """The entries of the pip section."""
    (section,) = [part["pip"] for part in DEPENDENCIES if isinstance(part, dict)]
    return section


def test_pip_reads_what_conda_hands_it(checkout):
    requirements = read_by_pip(of_pip(), checkout)
    editable = [r.requirement for r in requirements if r.is_editable]
    locked = {Requirement(r.requirement).name for r in requirements if not r.is_editable}
    assert editable == ["."]  # conda calls pip in the folder of environment.yml
    assert {"torch", "diffusers", "jupyterlab", "papermill"} <= locked


def test_an_option_of_pip_install_is_found(checkout):
    """What stood there before: pip refuses it, and so did every installation."""
    from pip._internal.exceptions import RequirementsFileParseError

    with pytest.raises(RequirementsFileParseError, match="--no-deps"):
        read_by_pip(["-r requirements.lock", "--no-deps", "-e ."], checkout)


def test_pip_itself_is_installed_by_conda():
    assert "pip" in DEPENDENCIES


def test_the_python_is_one_the_package_supports():
    """And the one whose versions are locked."""
    (python,) = [part for part in DEPENDENCIES if str(part).startswith("python=")]
    locked = re.search(r"\(Python (3\.\d+)\)", (ROOT / "requirements.lock").read_text())
    assert locked and python == f"python={locked[1]}"
