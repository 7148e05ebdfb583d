"""What the README and the card say is so: the five lines run and do something, and figures come from runs."""

import importlib.util
import re
from functools import partial
from pathlib import Path

import pytest
from tools import figures

import memsub
from memsub.__main__ import COMMANDS
from memsub.io.files import load_json

ROOT = Path(__file__).parents[1]
SITE_PAGES = ("contributing.md", "model-card.md")
"""That `docs/site_files.py` makes; notebooks lie beside the pages there."""
README = (ROOT / "README.md").read_text()
CARD = ROOT / "src" / "memsub" / "testbed" / "weights" / "README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", CARD, *sorted((ROOT / "docs").glob("*.md"))]


def test_the_five_lines_do_something(metrics, prompts, monkeypatch):
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "locate" in block]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) == 6  # import, and five
    assert "sparsity=" not in code
    assert code in (ROOT / "docs" / "index.md").read_text()
    # The same with fewer prompts and denoising steps, in a twentieth of the time.
    capture = partial(memsub.capture, steps=10, batch_size=50, progress=False)
    monkeypatch.setattr(memsub, "capture", lambda pipe, prompts: capture(pipe, prompts[:24]))
    names: dict = {}
    exec("\n".join(lines[:-1]), names)  # all but the line that applies the edit
    sample = partial(memsub.generate, names["pipe"], steps=8, solver="multistep", guidance_scale=3.0, progress=False)
    captions, images = prompts.memorized[:12], prompts.images("verbatim", 0, 12)
    before = memsub.score(sample, metrics, captions, images, seeds=[0])["replicated"].mean()
    exec(lines[-1], names)
    after = memsub.score(sample, metrics, captions, images, seeds=[0])["replicated"].mean()
    assert before > 0.9
    assert after < 0.6 * before


def test_the_readme_is_short_and_leads_to_the_paper():
    prose = re.sub(r"```.*?```|<!--.*?-->", "", README, flags=re.DOTALL)
    prose = re.sub(r"^\|.*$", "", prose, flags=re.MULTILINE)  # tables
    assert len(prose.split()) <= 900
    assert "https://arxiv.org/abs/2406.18566" in prose[: prose.index("## ")]
    assert "TIME_" not in README, "a time that nobody has measured"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_exist(path):
    """Those in blocks of the shell: targets of the Makefile, commands of memsub, modules that are run."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for block in re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL):
        assert set(re.findall(r"^make ([\w-]+)", block, re.MULTILINE)) <= set(targets)
        assert set(re.findall(r"\bmemsub (\w+) ", block)) <= set(COMMANDS)
        for module in re.findall(r"python -m ([\w.]+)", block):
            assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("name", figures.DOCUMENTS)
def test_documents_say_what_the_runs_found(name):
    text = (ROOT / name).read_text()
    assert figures.fill(text, load_json(ROOT / "docs" / "figures.json"), name) == text


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!http|#|mailto)([^)#]+)", path.read_text()):
        on_the_site = path.parent.name == "docs" and (target in SITE_PAGES or (ROOT / target).exists())
        assert on_the_site or (path.parent / target).exists(), target
