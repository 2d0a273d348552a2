"""``make notebooks``: every notebook by *Run All* in JupyterLab, in a real browser.

Each is run as it is committed but for the directory of its results, one after another. It writes a
line a notebook (seconds, cells, what went wrong), keeps a picture of each with ``--pictures``, and
ends with 1 unless all ran to their ends without an error or a word on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from kode_lab.lab.provenance import commit_name, machine

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import test_browser  # noqa: E402 - how JupyterLab is driven

NOTEBOOKS = HERE.parents[1] / "notebooks"
# The longest notebook takes two minutes on a quiet machine.
test_browser.RUN_LIMIT_S = 900


def prepared(path: Path, root: Path) -> Path:
    """Copy a notebook, with its results beside it."""
    notebook = json.loads(path.read_text("utf-8"))
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", ()):
            cell["source"] = [*cell["source"], '\nRESULTS = "results"']
    copy = root / path.name
    copy.write_text(json.dumps(notebook), "utf-8")
    return copy


def main() -> int:
    """Run all notebooks and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="only these (default: all)")
    parser.add_argument("--table", type=Path, help="also write it there")
    parser.add_argument("--pictures", type=Path, help="a directory for a picture of each")
    options = parser.parse_args()
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        os.environ["KODE_LAB_SCREENSHOTS"] = str(options.pictures)
    every = sorted(NOTEBOOKS.glob("*.ipynb"))
    paths = [path for path in every if not options.names or path.stem in options.names]
    lines = [
        f"`make notebooks`, commit {commit_name()}; {machine()}", "",
        "| notebook | cells | seconds | what went wrong |", "|---|---|---|---|",
    ]  # fmt: skip
    is_right = True
    with tempfile.TemporaryDirectory(prefix="kode-lab-notebooks-") as scratch:
        root, home = Path(scratch) / "lab", Path(scratch) / "home"
        root.mkdir()
        home.mkdir()
        places = {"CONFIG_DIR": home, "RUNTIME_DIR": home / "runtime", "DATA_DIR": home / "data"}
        environment = os.environ | {f"JUPYTER_{name}": str(place) for name, place in places.items()}
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.port=0",
                 "--IdentityProvider.token=", "--allow-root", f"--ServerApp.root_dir={root}",
                 "--LabApp.news_url="],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
            try:
                address = test_browser.address_of(home, server)
                with sync_playwright() as playwright:
                    browser = playwright.chromium.launch(
                        executable_path=test_browser.CHROMIUM, args=["--no-sandbox"]
                    )
                    for path in paths:
                        copy, began_s = prepared(path, root), time.monotonic()
                        page = browser.new_page(viewport={"width": 1150, "height": 1400})
                        page.set_default_timeout(120_000)
                        page.goto(f"{address}/lab/workspaces/{path.stem}/tree/{path.name}")
                        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
                        page.get_by_text("| Idle").wait_for()
                        page.get_by_role("menuitem", name="Run", exact=True).click()
                        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
                        found = test_browser.outcome(copy, page)
                        page.close()
                        took_s = time.monotonic() - began_s
                        cells = sum(
                            cell["cell_type"] == "code"
                            for cell in json.loads(copy.read_text("utf-8"))["cells"]
                        )
                        is_right &= not found
                        told = "; ".join(found) or "nothing"
                        lines.append(f"| {path.stem} | {cells} | {took_s:.0f} | {told} |")
                        sys.stderr.write(lines[-1] + "\n")
                    browser.close()
            finally:
                server.terminate()
                server.wait(30)
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
