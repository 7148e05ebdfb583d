"""The site's pages: every module of the library is in the reference, every notebook in the navigation."""

import re
from pathlib import Path

from test_structure import ORDER

ROOT = Path(__file__).parents[1]
NO_REFERENCE = {"testbed", "__main__", "batch", "estimate"}
"""Programs, and the package whose modules are listed one by one."""


def test_the_reference_names_every_module():
    named = set(re.findall(r"::: memsub\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    assert named == set(ORDER) - NO_REFERENCE


def test_the_site_shows_every_notebook():
    shown = set(re.findall(r"notebooks/(\w+\.ipynb)", (ROOT / "mkdocs.yml").read_text()))
    assert shown == {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
