"""The notebooks where users are: JupyterLab in a real browser, with the parameters of `quick.yaml`.

`make browser`; skipped where there is no browser.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbformat.reader import NotJSONError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from memsub_extra.notebooks.batch import find_parameters

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: `make browser` installs it")
ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MINUTES = 20
"""That a notebook may take here."""


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as p:
        if path is None and not Path(p.chromium.executable_path).is_file():
            pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed, nor playwright's own")
        quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
        launched = p.chromium.launch(executable_path=path, args=quiet)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the notebooks without their outputs and with quick parameters, beside an empty run folder."""
    root = tmp_path_factory.mktemp("jupyterlab")
    for name in ("notebooks", "papermill_params"):
        shutil.copytree(ROOT / name, root / name)
    parameters = find_parameters(str(ROOT / "papermill_params" / "quick.yaml"))[0].dump()
    for path in (root / "notebooks").glob("*.ipynb"):
        notebook = parameterize_notebook(load_notebook_node(str(path)), parameters)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)
    return root


@pytest.fixture(scope="module")
def server(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]
    command += ["--ServerApp.port", str(port), "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "JUPYTER_CONFIG_DIR": str(folder / "config")}
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(60):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2)
                break
            except OSError:
                time.sleep(1)
        yield address
        process.terminate()


@pytest.fixture
def page(browser):
    opened = browser.new_page(viewport={"width": 1500, "height": 1300})
    yield opened
    opened.close()


RUNS = r"[...document.querySelectorAll('.jp-InputPrompt')].some(prompt => /\[(\*|\d+)\]/.test(prompt.innerText))"
"""Whether the prompt of a cell in view is "[*]" or "[1]"."""


def run_all(page, server: str, name: str) -> None:
    """Opens a notebook and chooses Run, Run All Cells, until a cell shows that it runs or has run.

    A server that is just up may ask for a kernel, or take Run All before the kernel is ready, and then nothing runs.
    (That the kernel is busy says too little: it is while it starts.)
    """
    page.goto(f"{server}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    asked = []
    for _ in range(3):
        try:
            page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=20_000)
            page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click(timeout=5_000)
            page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click(timeout=5_000)
            page.wait_for_function(RUNS, timeout=20_000)
            return
        except playwright.TimeoutError:
            for dialog in page.locator(".jp-Dialog").all():
                asked.append(dialog.inner_text())
                print(f"{name}: JupyterLab asked {asked[-1]!r}")
                dialog.locator(".jp-mod-accept").first.click(timeout=5_000)
            page.keyboard.press("Escape")  # a menu that is left open
    raise AssertionError(f"{name}: no cell ran after Run All Cells, three times; JupyterLab asked: {asked}")


def saved(page, path: Path, wanted: str) -> nbformat.NotebookNode:
    """The notebook once the output of its last cell matches a pattern, as JupyterLab saved it."""
    for _ in range(12 * MINUTES):
        page.keyboard.press("Control+s")
        time.sleep(5)
        notebook = whole(path)
        outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
        assert not [o for o in outputs if o.output_type == "error"], "a cell ended with an error"
        if any(re.search(wanted, o.get("text", "")) for o in notebook.cells[-1].get("outputs", [])):
            return notebook
    raise TimeoutError(f"{path.name}: not done after {MINUTES} minutes")


def whole(path: Path) -> nbformat.NotebookNode:
    """A notebook that JupyterLab may be writing just now: until it is done, the file is cut off somewhere.

    Raises:
        NotJSONError: it stays cut off for ten seconds.
    """
    for left in reversed(range(20)):
        try:
            return nbformat.read(path, as_version=4)
        except NotJSONError:
            if not left:
                raise
            time.sleep(0.5)
    raise AssertionError("not reached")


CHECKED = r"holds \d+, fails \d+, inconclusive \d+"
"""The last line of a notebook's last cell."""


def test_run_all_of_the_testbed(page, server, folder):
    run_all(page, server, "00_testbed")
    notebook = saved(page, folder / "notebooks" / "00_testbed.ipynb", CHECKED)
    checks = "".join(o.text for o in notebook.cells[-1].outputs if o.output_type == "stream" and o.name == "stdout")
    assert "fails 0" in checks
    assert checks.count("holds: ") + checks.count("inconclusive: ") >= 8  # of few images some tell too little
    assert re.search("(holds|inconclusive): verbatim captions replicate", checks)
    page.screenshot(path=folder / "00.png")


def test_the_explorers_slider_changes_the_images(page, server, folder):
    run_all(page, server, "07_explorer")
    notebook = saved(page, folder / "notebooks" / "07_explorer.ipynb", CHECKED)
    assert "holds: the lab's edit" in notebook.cells[-1].outputs[0].text
    # JupyterLab renders only the cells in view.
    page.locator(".jp-Cell", has_text="explorer = explore(run)").first.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('.widget-html img').length >= 6", timeout=60_000)
    images = "[...document.querySelectorAll('.widget-html img')].map(i => i.src).join()"
    before = page.evaluate(images)
    page.screenshot(path=folder / "explorer.png")
    page.locator(".widget-hslider", has_text="sparsity").locator(".noUi-handle").focus()
    began = time.monotonic()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"({images}) !== {before!r}", timeout=60_000)
    took = time.monotonic() - began
    bars = page.evaluate("[...document.querySelectorAll('.progress-bar')].map(b => b.className)")
    assert bars and all("danger" not in bar for bar in bars)
    page.screenshot(path=folder / "explorer-after.png")
    print(f"images {took:.1f} s after a change; screenshots in {folder}")
