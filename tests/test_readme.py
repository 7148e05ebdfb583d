"""What the README and the card say is so: the five lines run and do something, and figures come from runs."""

import re
from functools import partial
from pathlib import Path

import pytest
from tools import figures

import memsub
from memsub.files import load_json

ROOT = Path(__file__).parents[1]
SITE_PAGES = ("contributing.md", "model-card.md")
"""That `docs/site_files.py` makes; notebooks lie beside the pages there."""
README = (ROOT / "README.md").read_text()


def test_the_five_lines_do_something(metrics, prompts, monkeypatch):
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "locate" in block]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) == 6  # import, and five
    assert "sparsity=" not in code
    # The same with fewer denoising steps, in a tenth of the time.
    monkeypatch.setattr(memsub, "capture", partial(memsub.capture, steps=10, batch_size=50, progress=False))
    names: dict = {}
    exec("\n".join(lines[:-1]), names)  # all but the line that applies the edit
    sample = partial(memsub.generate, names["pipe"], steps=8, solver="multistep", guidance_scale=3.0, progress=False)
    captions, images = prompts.memorized[:30], prompts.images("verbatim", 0, 30)
    before = memsub.score(sample, metrics, captions, images, seeds=[0])["replicated"].mean()
    exec(lines[-1], names)
    after = memsub.score(sample, metrics, captions, images, seeds=[0])["replicated"].mean()
    assert before > 0.9
    assert after < 0.6 * before


def test_the_readme_is_short():
    prose = re.sub(r"```.*?```|<!--.*?-->", "", README, flags=re.DOTALL)
    assert len(prose.split()) <= 900


@pytest.mark.parametrize("name", figures.DOCUMENTS)
def test_documents_say_what_the_runs_found(name):
    text = (ROOT / name).read_text()
    assert figures.fill(text, load_json(ROOT / "docs" / "figures.json"), name) == text


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!http|#|mailto)([^)#]+)", path.read_text()):
        on_the_site = path.parent.name == "docs" and (target in SITE_PAGES or (ROOT / target).exists())
        assert on_the_site or (path.parent / target).exists(), target
