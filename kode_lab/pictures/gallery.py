"""The gallery: each notebook executed once, as a page that needs no kernel.

It owns how pages are made and how a page tells which notebook it shows: by the hash of that
notebook's cells, so that a test can say that the notebook has moved on. It runs nothing by itself;
``python -m kode_lab.pictures.gallery`` does, from the root of a checkout.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

__all__ = ["hash_in", "made", "main", "source_hash"]

_MARK = "kode-lab-notebook-sha256"
_TIMEOUT_S = 300
# From one page to another, where notebooks name each other.
_TO_NOTEBOOK = re.compile(r'href="([0-9a-z-]+)\.ipynb"')


def source_hash(notebook: Path) -> str:
    """Return the hash of what a notebook's cells say; outputs and ids do not count."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    said = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    return sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()


def hash_in(page: Path) -> str:
    """Return the hash of the notebook that a page shows, or ""."""
    found = re.search(rf'<meta name="{_MARK}" content="([0-9a-f]+)">', page.read_text("utf-8"))
    return found[1] if found else ""


async def made(notebook: Path, gallery: Path) -> Path:
    """Run a notebook in an empty directory, write its page, and give its path."""
    import nbformat  # noqa: PLC0415 - a developer's tools, here and below
    from nbclient import NotebookClient  # noqa: PLC0415
    from nbconvert import HTMLExporter  # noqa: PLC0415

    executed: Any = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory) / "notebooks"
        here.mkdir()
        client: Any = NotebookClient(
            executed,
            timeout=_TIMEOUT_S,
            kernel_name="python3",
            resources={"metadata": {"path": str(here)}},
        )
        await client.async_execute()
    exporter: Any = HTMLExporter(  # type: ignore[no-untyped-call]
        template_name="basic"
    )
    body, _ = exporter.from_notebook_node(executed)
    page = gallery / f"{notebook.stem}.html"
    body = _TO_NOTEBOOK.sub(r'href="\1.html"', body)
    page.write_text(_page(notebook, body), encoding="utf-8")
    return page


def _page(notebook: Path, body: str) -> str:
    style = Path(__file__).with_name("gallery.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="{_MARK}" content="{source_hash(notebook)}">\n'
        f"<title>{notebook.stem}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


async def _all(notebooks: Sequence[Path], gallery: Path) -> None:
    for notebook in notebooks:
        page = await made(notebook, gallery)
        sys.stderr.write(f"{page}  {page.stat().st_size // 1000:,} kB\n")


def main(names: Sequence[str]) -> None:
    """Make the pages of all notebooks that have moved on, or of those named."""
    gallery = Path("docs/gallery")
    gallery.mkdir(parents=True, exist_ok=True)
    notebooks = sorted(Path("notebooks").glob("*.ipynb"))
    stale = [
        notebook
        for notebook in notebooks
        if (notebook.stem in names if names else _is_stale(notebook, gallery))
    ]
    asyncio.run(_all(stale, gallery))


def _is_stale(notebook: Path, gallery: Path) -> bool:
    page = gallery / f"{notebook.stem}.html"
    return not page.exists() or hash_in(page) != source_hash(notebook)


if __name__ == "__main__":
    main(sys.argv[1:])
