"""mkdocs hook: pages of the site whose files lie elsewhere in the repository."""

import re
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"contributing.md": ROOT / "CONTRIBUTING.md", "model-card.md": ROOT / "src/memsub/testbed/weights/README.md"}


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files, config):
    """Adds the notebooks as they are, and the two documents with links that hold from here."""
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File(f"notebooks/{notebook.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    for name, path in PAGES.items():
        text = re.sub(r"\]\(docs/", "](", path.read_text(encoding="utf-8"))
        files.append(File.generated(config, name, content=text))
    return files
