"""What the documents tell a reader to type."""

import re
import shlex
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page of docs/ in one language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Its commands of memsub in order, as words behind "memsub"; without those for several processes."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("memsub ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]
