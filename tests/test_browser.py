"""Notebooks by Run All in JupyterLab, in a real browser: what one-cell-at-a-time tools cannot see.

All notebooks are opened first and then run side by side. A notebook is done when the status bar
says Idle and no cell is waiting any more, both for a while, for between two cells it says Idle,
too. What happened is read from the file that JupyterLab saved.

``KODE_LAB_SCREENSHOTS=<directory>`` keeps a picture of each.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
START_LIMIT_S = 180
RUN_LIMIT_S = 300
LOOK_S = 0.3
CALM_LOOKS = 5
# Cells that were dropped wait without end; a kernel that is idle so long beside them has lost them.
LOST_LOOKS = 20
NOTEBOOK = "00-start-here"
PARAMETERS = {"SPEED": "20.0", "RESULTS": '"results"'}
FAILING = ["1 + 1", "raise ValueError('the reason')", "2 + 2"]
NESTED = [
    "import asyncio\nfrom kode_lab.lab.nested import run_nested",
    "run_nested(asyncio.sleep(0.2))",
    "'after'",
    "'last'",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]


def smaller(path):
    """Return the notebook with less to do: its parameters' values replaced, line by line."""
    notebook = json.loads(path.read_text("utf-8"))
    (cell,) = (c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", ()))
    lines = "".join(cell["source"]).splitlines()
    names = [line.partition(" = ")[0] for line in lines]
    assert set(PARAMETERS) <= set(names)
    kept = [line for line, name in zip(lines, names, strict=True) if name not in PARAMETERS]
    cell["source"] = "\n".join([*kept, *(f"{name} = {v}" for name, v in PARAMETERS.items())])
    return notebook


def of_cells(sources):
    cells = [
        {
            "cell_type": "code", "id": f"cell-{number}", "metadata": {}, "source": source,
            "outputs": [], "execution_count": None,
        }
        for number, source in enumerate(sources)
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def complaints_about(notebook):
    """Return what is wrong with a notebook that was run: errors, and cells that never ran."""
    found = []
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        errors = [o for o in cell["outputs"] if o["output_type"] == "error"]
        found += [f"cell {number} failed: {o['ename']}: {o['evalue']}" for o in errors]
        if cell["execution_count"] is None:
            found.append(f"cell {number} never ran")
        found += [
            f"cell {number} wrote to stderr: {''.join(o['text']):.200}"
            for o in cell["outputs"]
            if o["output_type"] == "stream" and o["name"] == "stderr"
        ]
    return found


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    """JupyterLab on loopback, over a directory of notebooks; gives its address and directory."""
    root = tmp_path_factory.mktemp("lab")
    home = tmp_path_factory.mktemp("home")
    for name, notebook in (
        (NOTEBOOK, smaller(NOTEBOOKS / f"{NOTEBOOK}.ipynb")),
        ("failing", of_cells(FAILING)),
        ("nested", of_cells(NESTED)),
    ):
        (root / f"{name}.ipynb").write_text(json.dumps(notebook), "utf-8")
    settings = home / "lab" / "user-settings" / "@jupyterlab"
    for plugin, values in (
        ("apputils-extension/notification", {"fetchNews": "false", "checkForUpdates": False}),
        ("notebook-extension/tracker", {"windowingMode": "none"}),
    ):
        path = settings / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    log = (home / "log").open("wb")
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.port=0"),
            *("--IdentityProvider.token=", "--allow-root", f"--ServerApp.root_dir={root}"),
            "--LabApp.news_url=",
        ],
        env=environment, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        yield address_of(home, server), root
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def address_of(home, server):
    """Return the address, once the server has written down that it listens."""
    give_up_s = time.monotonic() + START_LIMIT_S
    while not (port := port_in(home / "runtime")):
        assert server.poll() is None, (home / "log").read_text()[-2000:]
        assert time.monotonic() < give_up_s, f"not up after START_LIMIT_S={START_LIMIT_S}"
        time.sleep(0.1)
    return f"http://127.0.0.1:{port}"


def port_in(runtime):
    """Return the port that JupyterLab noted, or 0 while it has not."""
    for path in runtime.glob("jpserver-*.json"):
        try:
            return json.loads(path.read_text())["port"]
        except (ValueError, KeyError):  # it is being written
            return 0
    return 0


@pytest.fixture(scope="module")
def ran(jupyter):
    """Run every notebook; give for each what was complained of, and every address asked for."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only where there is a browser

    address, root = jupyter
    asked = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1150, "height": 1400})
        pages = {}
        for path in sorted(root.glob("*.ipynb")):
            page = context.new_page()
            page.set_default_timeout(START_LIMIT_S * 1000)
            page.on("request", lambda request: asked.append(request.url))
            page.goto(f"{address}/lab/workspaces/{path.stem}/tree/{path.name}")
            page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
            page.get_by_text("| Idle").wait_for()
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            pages[path] = page
        found = {path.stem: outcome(path, page) for path, page in pages.items()}
        browser.close()
    return found, asked


def outcome(path, page):
    """Wait until a notebook is calm, save it, and give the complaints about what was saved."""
    wait_until_calm(page)
    before_ns = path.stat().st_mtime_ns
    page.locator(".jp-Notebook").click(position={"x": 5, "y": 5})
    page.keyboard.press("Control+s")
    for _ in range(int(START_LIMIT_S / LOOK_S)):
        if path.stat().st_mtime_ns != before_ns:
            break
        page.wait_for_timeout(LOOK_S * 1000)
    pictures = os.environ.get("KODE_LAB_SCREENSHOTS")
    if pictures:
        height = page.evaluate("document.querySelector('.jp-WindowedPanel-inner').scrollHeight")
        page.set_viewport_size({"width": 1150, "height": min(6000, int(height) + 300)})
        page.locator(".jp-WindowedPanel-outer").evaluate("panel => panel.scrollTo(0, 0)")
        page.wait_for_timeout(500)
        page.screenshot(path=str(Path(pictures) / f"lab-{path.stem}.png"))
    return complaints_about(json.loads(path.read_text("utf-8")))


def wait_until_calm(page):
    calm = idle = 0
    for _ in range(int(RUN_LIMIT_S / LOOK_S)):
        waiting = page.locator(".jp-InputPrompt", has_text="[*]").count()
        is_idle = page.get_by_text("| Idle").count() == 1
        idle = idle + 1 if is_idle else 0
        calm = calm + 1 if is_idle and not waiting else 0
        if calm == CALM_LOOKS or idle == LOST_LOOKS:
            return
        page.wait_for_timeout(LOOK_S * 1000)
    raise AssertionError(f"not calm after RUN_LIMIT_S={RUN_LIMIT_S}")


def test_run_all_in_jupyterlab_runs_every_cell_without_an_error(ran):
    assert ran[0][NOTEBOOK] == []


def test_the_driver_sees_a_failing_notebook(ran):
    assert ran[0]["failing"] == ["cell 1 failed: ValueError: the reason", "cell 2 never ran"]


def test_a_nested_loop_drops_no_cell_of_run_all(ran):
    # nest_asyncio 1.6 did, before ipykernel brought nest_asyncio2, which run_nested prefers.
    assert ran[0]["nested"] == []


def test_nothing_outside_this_machine_was_asked_for(ran):
    hosts = {urlsplit(url).hostname for url in ran[1] if urlsplit(url).scheme in ("http", "https")}
    assert hosts == {"127.0.0.1"}
